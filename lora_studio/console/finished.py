"""What a finished run leaves, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from lora_studio.console.plan import duration

if TYPE_CHECKING:
    from lora_studio.training.finish import Finished


def print_finished(result: Finished, console: Console) -> None:
    """Where everything is."""
    checks, summary = result.report.checks, result.summary
    console.print()
    if result.lora_file:
        made = "whole base" if result.lora_file.is_dir() else "LoRA file"
        size = f"{summary['file_bytes'] / 1e6:.1f} MB"
        console.print(f"{made:12} {result.lora_file}  ({size})", markup=False, soft_wrap=True)
    for word, path in result.embeddings.items():
        console.print(f"embedding    {path}, the word {word!r}", markup=False, soft_wrap=True)
    console.print(f"verified     {_verified(checks)}", soft_wrap=True)
    if (previews := result.folder / "previews").is_dir():
        console.print(f"images     {previews}", markup=False, soft_wrap=True)
    console.print(f"loss         {result.folder / 'loss.png'}", markup=False, soft_wrap=True)
    if measured := summary["validation"]:
        console.print(
            f"held out     {measured['relative_last']:.1%} of the base's loss; the lowest was "
            f"{measured['relative_best']:.1%} at step {measured['best_step']}, whose checkpoint is kept",
            soft_wrap=True,
        )
    if summary["steps_skipped"]:
        console.print(f"warning      {summary['steps_skipped']} steps were not finite and skipped")
    console.print(f"time         {duration(summary['seconds']['training'])} for the steps")


def _verified(checks: dict[str, Any]) -> str:
    """What was looked at in a LoRA file and embeddings, or in the folder of a whole base."""
    if "tensors_trained" in checks:
        return (
            f"{checks['tensors_trained']} of {checks['tensors']} tensors were trained, and all are as they "
            f"should be; through diffusers the probe differs by {checks['probe_difference']:.2%}"
        )
    mapped = f"{checks['keys_mapped']} layers map to the base; " if "keys_mapped" in checks else ""
    share = checks["probe_difference_share"]
    return f"{mapped}through diffusers the probe differs by {share:.2%} of the adapter's effect"
