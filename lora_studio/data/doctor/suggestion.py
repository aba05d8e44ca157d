"""The doctor's suggestion what to leave out, as a list that `data.exclude` of a recipe reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.data.manifest import Record
from lora_studio.data.scan.exclude import is_by_choice
from lora_studio.errors import DatasetError
from lora_studio.files import write_atomically
from lora_studio.text import in_words, shown

_HEAD = (
    "# Images that may be better left out, by lora-studio doctor. Look at each, remove the lines of those\n"
)
_HEAD += '# to keep, and name this file in the recipe: exclude = "..." in [data].\n'


def suggest(report: DoctorReport, records: Sequence[Record]) -> dict[str, str]:
    """Name -> why it may be left out, in the order of the records; what is left out already stays so."""
    why: dict[str, list[str]] = {
        record.name: ["left out before"] for record in records if is_by_choice(record.excluded)
    }
    for finding in report.findings:
        if finding.leave_out:
            why.setdefault(finding.path, []).append(f"{in_words(finding.kind)}: {finding.detail}")
    order = [record.name for record in records]
    return {name: "; ".join(why[name]) for name in sorted(why, key=order.index)}


def write_suggestion(path: Path, report: DoctorReport, records: Sequence[Record]) -> int:
    """Write the list into a new file; how many names it holds. Raises DatasetError if the file is there."""
    if path.exists():
        raise DatasetError(f"{path} is there already; remove it, or name another file for the list.")
    suggested = suggest(report, records)
    text = _HEAD + "".join(f"\n# {shown(reason)}\n{name}\n" for name, reason in suggested.items())
    try:
        write_atomically(path, text.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error.strerror}; choose another place.") from None
    return len(suggested)
