"""`lora-studio verify`: a file from anywhere, with or without its base."""

from __future__ import annotations

from pathlib import Path

from lora_studio.export.probe import ask_merged, check_probe
from lora_studio.export.verify import Report, check_against_base, check_file, open_lora
from lora_studio.families.loading import POCKET, load_base


def verify(path: Path, *, base: str | None = None) -> Report:
    """Look at a LoRA file as far as possible, against `base` or, if its metadata names that, the pocket base.

    No other name in a file from anywhere is followed: it must not choose what is opened or downloaded. With a
    base the probe compares diffusers' loader with W + delta computed from the bytes.
    Raises StudioError when there is no such file or base.
    """
    file = open_lora(path)
    report = check_file(file)
    name = base or (POCKET if file.metadata.get("lora_studio.base") == POCKET else None)
    report.checks["base"] = name or "not known: only the file itself was looked at (name it with --base)"
    if name is None:
        return report
    family = load_base(name)
    check_against_base(file, family, report)
    if report.whole:
        check_probe(file, family, ask_merged(file, family), report)
    return report
