"""`lora-studio verify`: a file from anywhere, with its base or, without waiting for torch, alone."""

from __future__ import annotations

from pathlib import Path

from lora_studio.errors import DamagedFile
from lora_studio.lora_file.header import Header, read_header
from lora_studio.lora_file.lora_file import lora_file
from lora_studio.recipe.data import POCKET
from lora_studio.verify.file import VerifyReport, check_against_base, check_file
from lora_studio.verify.uis import verdicts
from lora_studio.verify.uis.findings import embedding_findings, is_embedding


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
    name = base or (POCKET if header.metadata.get("lora_studio.base") == POCKET else None)
    said = name or "not known: only the file itself was looked at (name it with --base)"
    if is_embedding(header):
        return _verify_embedding(header, name, said)
    file = lora_file(header)
    report = check_file(file)
    report.checks["base"] = said
    if name is not None:
        from lora_studio.families.loading import load_base
        from lora_studio.verify.probe import probe_file

        family = load_base(name)
        check_against_base(file, family, report)
        if report.ok:
            probe_file(file, family, report)
    return report


def _verify_embedding(header: Header, base: str | None, said: str) -> VerifyReport:
    from lora_studio.verify.trained import check_embedding, check_tensors

    report = VerifyReport(header.path.name)
    report.uis = verdicts(embedding_findings(header), list(header.entries), "any base")
    report.checks["base"] = said
    if base is None:
        check_tensors(header.path, report)
    else:
        from lora_studio.families.loading import load_base

        check_embedding(header.path, load_base(base), report)
    report.checks["vectors"] = {key: list(one.shape) for key, one in header.entries.items()}
    return report
