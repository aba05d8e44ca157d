"""`lora-studio verify`: a file from anywhere, with or without its base."""

from __future__ import annotations

from pathlib import Path

from lora_studio.errors import DamagedFile, reason_of
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.lora_file.header import Header, read_header
from lora_studio.lora_file.lora_file import LoraFile, lora_file
from lora_studio.recipe.base import POCKET
from lora_studio.verify.embedding import check_embedding, check_tensors
from lora_studio.verify.file import VerifyReport, check_against_base, check_file
from lora_studio.verify.probe import ask_merged, check_probe
from lora_studio.verify.uis import COMPLETELY, verdicts
from lora_studio.verify.uis.findings import embedding_findings, is_embedding
from lora_studio.verify.uis.table import DIFFUSERS


def verify(path: Path, *, base: str | None = None) -> VerifyReport:
    """Look at a file as far as possible, against `base` or, if its metadata names that, the pocket base.

    It is a LoRA, or the embedding of a learned token, of which the probe is left out.

    No other name in a file from anywhere is followed: it must not choose what is opened or downloaded. With a
    base the probe compares diffusers' loader with W + delta computed from the bytes.
    Raises StudioError when there is no such file or base.
    """
    try:
        header = read_header(path)
    except DamagedFile as damage:
        return VerifyReport(path.name, faults=[str(damage)])
    if is_embedding(header):
        return _verify_embedding(header, base)
    file = lora_file(header)
    report = check_file(file)
    name = _base_of(header, base, report)
    if name is None:
        return report
    family = load_base(name)
    check_against_base(file, family, report)
    if report.ok:
        _probe(file, family, report)
    return report


def _probe(file: LoraFile, family: ModelFamily, report: VerifyReport) -> None:
    """Where the file is plain LoRA, and for diffusers, too; else a word on why not."""
    if file.stray:
        report.checks["probe"] = "left out: only the change of plain LoRA in the kohya format is computed"
    elif all(one.loads != COMPLETELY for one in report.uis if one.ui == DIFFUSERS):
        report.checks["probe"] = "left out: diffusers does not load all of the file"
    else:
        expected = ask_merged(file, family)
        try:
            check_probe(file, family, expected, report)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
            report.faults.append(f"diffusers' loader stops at it: {reason_of(error)}")


def _verify_embedding(header: Header, base: str | None) -> VerifyReport:
    path, report = header.path, VerifyReport(header.path.name)
    report.uis = verdicts(embedding_findings(header), list(header.entries), "any base")
    name = _base_of(header, base, report)
    tensors = check_tensors(path, report) if name is None else check_embedding(path, load_base(name), report)
    report.checks["vectors"] = {key: list(tensor.shape) for key, tensor in tensors.items()}
    return report


def _base_of(header: Header, base: str | None, report: VerifyReport) -> str | None:
    name = base or (POCKET if header.metadata.get("lora_studio.base") == POCKET else None)
    report.checks["base"] = name or "not known: only the file itself was looked at (name it with --base)"
    return name
