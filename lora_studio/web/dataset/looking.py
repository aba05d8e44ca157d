"""The doctor's look at a set of images, in a process of its own: `python -m lora_studio.web.dataset.looking`.

Prints a JSON object a line: {"done", "total"} while it looks, then {"report", "images"}, or {"error"}.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lora_studio.data.doctor import DoctorOptions, examine_folder
from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.data.manifest import Manifest, Record
from lora_studio.errors import StudioError
from lora_studio.quiet import quietly
from lora_studio.text import printable
from lora_studio.web.dataset.watching import tell

_FIELDS = ("width", "height", "resize", "crop", "role")


@quietly
def look(target: Path) -> tuple[DoctorReport, Manifest]:
    """At a folder or a recipe's images, as `lora-studio doctor` does; progress is printed."""
    if target.is_dir():
        return examine_folder(target, DoctorOptions(), on_progress=_say_progress)
    from lora_studio.recipe.load import load_recipe
    from lora_studio.training.prepare.dataset import examine_recipe

    return examine_recipe(load_recipe(target), on_progress=_say_progress)


def seen_json(report: DoctorReport, manifest: Manifest) -> dict[str, Any]:
    """What the page shows of it."""
    return {"report": report.to_json(), "images": [_image(one) for one in manifest.records if one.sha256]}


def _image(record: Record) -> dict[str, Any]:
    return {
        "name": printable(record.name),
        "excluded": printable(record.excluded),
        "bucket": record.bucket and record.bucket.name,
        **{name: getattr(record, name) for name in _FIELDS},
    }


def _say_progress(done: int, total: int) -> None:
    tell({"done": done, "total": total})


def main(target: str) -> int:
    """Exit 0, or 2 for what the user can mend."""
    try:
        tell(seen_json(*look(Path(target))))
    except StudioError as error:
        tell({"error": str(error)})
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
