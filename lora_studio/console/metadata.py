"""What the verbs about a file's own words show: its metadata, its origin, and what is uploaded of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from lora_studio.metadata.provenance_check import OriginReport
    from lora_studio.tools.push import Upload

_LONGEST = 160  # letters of a value; --json has all


def print_metadata(
    path: Path, metadata: Mapping[str, str], whole: str, console: Console, *, written: bool
) -> None:
    """Every key in alphabetical order, long values cut, and whether the tensors are what they say."""
    _say(console, f"{path}: {'written, ' if written else ''}{len(metadata)} keys of metadata")
    for key, value in sorted(metadata.items()):
        _say(console, f"  {_printable(key)} = {_printable(value)}")
    _say(console, f"tensors      sha256 {whole}, on cards {whole[:12]}")
    if (said := metadata.get("sshs_model_hash")) and said != whole:
        _say(
            console,
            f"warning      sshs_model_hash is {_printable(said)}: the tensors were changed after that",
        )


def print_origin(origin: OriginReport, console: Console) -> None:
    """Yes or no, and why."""
    _say(console, f"{origin.file}: {'yes, made from these' if origin.proven else 'NO, not made from these'}")
    for title, lines in (
        ("differs", origin.differs),
        ("same", origin.same),
        ("not looked at", origin.not_looked_at),
    ):
        for line in lines:
            _say(console, f"  {title}: {line}")


def print_uploads(
    uploads: Sequence[Upload], repo: str, console: Console, *, public: bool, dry_run: bool
) -> None:
    """What goes to the hub, before it does."""
    verb, who = ("would go" if dry_run else "goes"), ("everybody" if public else "you alone")
    _say(console, f"to {repo} on the hub {verb}, for {who} to see:")
    for one in uploads:
        _say(console, f"  {one.name}  ({one.num_bytes:,} bytes)")


def _printable(text: str) -> str:
    """On one line: what a stranger wrote must not move the cursor."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} letters)"
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in shown)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
