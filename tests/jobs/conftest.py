"""These tests and scripts stand beside one another, not in a package: put their folder on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
