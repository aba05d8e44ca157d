"""`lora-studio verify`: a file from anywhere, with or without its base."""

from __future__ import annotations

from pathlib import Path

from lora_studio.export.embedding import check_embedding, check_tensors, is_embedding, open_embedding
from lora_studio.export.probe import ask_merged, check_probe
from lora_studio.export.verify import LoraFile, Report, check_against_base, check_file, open_lora
from lora_studio.families.loading import POCKET, load_base


def verify(path: Path, *, base: str | None = None) -> Report:
    """Look at a file as far as possible, against `base` or, if its metadata names that, the pocket base.

    It is a LoRA, or the embedding of a learned token, of which the probe is left out.

    No other name in a file from anywhere is followed: it must not choose what is opened or downloaded. With a
    base the probe compares diffusers' loader with W + delta computed from the bytes.
    Raises StudioError when there is no such file or base.
    """
    if path.is_file() and is_embedding(open_embedding(path)):
        return _verify_embedding(path, base)
    file = open_lora(path)
    report = check_file(file)
    name = _base_of(file, base, report)
    if name is None:
        return report
    family = load_base(name)
    check_against_base(file, family, report)
    if report.whole:
        check_probe(file, family, ask_merged(file, family), report)
    return report


def _verify_embedding(path: Path, base: str | None) -> Report:
    report = Report(path.name)
    name = _base_of(open_lora(path), base, report)
    tensors = check_tensors(path, report) if name is None else check_embedding(path, load_base(name), report)
    report.checks["vectors"] = {key: list(tensor.shape) for key, tensor in tensors.items()}
    return report


def _base_of(file: LoraFile, base: str | None, report: Report) -> str | None:
    name = base or (POCKET if file.metadata.get("lora_studio.base") == POCKET else None)
    report.checks["base"] = name or "not known: only the file itself was looked at (name it with --base)"
    return name
