"""What the verbs `export` and `convert` show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from lora_studio.tools.convert import Converted
    from lora_studio.training.finish.export import Exported


def print_exported(found: Sequence[Exported], console: Console) -> None:
    """Each target's files, what was measured in them, and what their user should know."""
    for one in found:
        for path in one.made.paths:
            console.print(f"{one.target:<13}{path}", markup=False, soft_wrap=True)
        checks = one.report.checks
        said = [f"rounding {checks['cast_error']:.1e}"]
        if "delta_error" in checks:
            said.append(f"weight changes within {checks['delta_error']:.1e} of the trained ones")
        if "plain_left_out" in checks:
            said.append(left_out_in_words(checks["plain_left_out"]))
        if "probe_difference_share" in checks:
            said.append(f"through diffusers the probe differs by {checks['probe_difference_share']:.2%}")
        console.print(f"{'':<13}{'; '.join(said)}", markup=False, soft_wrap=True)
        for note in one.made.notes:
            console.print(f"{'':<13}{note}", markup=False, soft_wrap=True)


def print_converted(converted: Converted, console: Console) -> None:
    """The file, and how much of it is new."""
    console.print(f"written      {converted.path}", markup=False, soft_wrap=True)
    said = [f"{converted.layers} layers", f"rounding {converted.cast_error:.1e}"]
    if converted.cut:
        said.append(left_out_in_words(converted.left_out))
    console.print(f"{'':<13}{'; '.join(said)}", markup=False, soft_wrap=True)


def left_out_in_words(share: float) -> str:
    """Of the conversion to plain LoRA."""
    return f"as plain LoRA a layer's change lacks at most {share:.1e} of itself"
