"""Images whose structure was changed, of eight formats: each is used or left out with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest
from image_mutator import FORMATS, several
from memory import PEAK_BYTES, needs_proc

MAX_PEAK_BYTES = 1_000_000_000
# A process of its own: a decoder that crashes cannot take the tests with it, and the peak is its alone.
LOOK = f"""{PEAK_BYTES}
import json, sys
from pathlib import Path
from lora_studio.data.doctor import DoctorOptions, examine_folder
from lora_studio.data.doctor.page import page
report, manifest = examine_folder(Path(sys.argv[1]), DoctorOptions(resolution=64))
written = len(page(report, manifest, title="mutated"))
json.dumps(report.to_json())
records = [(r.name, r.width, r.height, r.excluded, r.note) for r in manifest.records]
print(json.dumps([records, written, peak_bytes()]))
"""


@needs_proc
@pytest.mark.parametrize(
    ("count", "seed"), [(104, 1), pytest.param(2000, 2, marks=pytest.mark.slow)], ids=["quick", "full"]
)
def test_images_with_their_structure_changed_are_used_or_left_out_with_a_reason(folder, count, seed):
    """By the scan, the doctor's looks and its page, within the time and a gigabyte."""
    for name, data in several(count, seed):
        (folder / name).write_bytes(data)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOOK, str(folder)],
        capture_output=True,
        text=True,
        timeout=60 + count,
    )
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr[-3000:]
    records, written, peak_bytes = json.loads(result.stdout)
    assert sorted(name for name, *_ in records) == sorted(before) and written > 10_000
    used = Counter()
    for name, width, height, excluded, note in records:
        assert excluded or min(width, height) >= 16, name
        assert all(text.isprintable() and len(text) < 250 for text in (excluded, note)), (
            name,
            excluded,
            note,
        )
        used[name.rpartition(".")[2]] += not excluded
    # The mutator neither spares nor destroys everything, of any format.
    assert all(0 < used[ending] < count / len(FORMATS) for ending in FORMATS), used
    assert peak_bytes < MAX_PEAK_BYTES
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
