"""One server for all tests of the page; its helpers stand beside it, not in a package."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Site"]:  # noqa: F821
    from sites import start_site, write_project

    root = tmp_path_factory.mktemp("web")
    project, outside = root / "project", root / "outside"
    write_project(project, outside)
    made = start_site(project, outside, root / "home")
    yield made
    made.end()
