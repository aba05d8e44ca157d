"""What the verbs on finished files show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_studio.files import size_of
from lora_studio.tools.combine import CombineReport
from lora_studio.tools.compare import Comparison
from lora_studio.tools.extract import ExtractReport
from lora_studio.tools.merge_into import MergeReport
from lora_studio.tools.resize import ResizeReport

_MOST = 8  # layers in the table of a comparison


def print_combined(report: CombineReport, out: Path, console: Console) -> None:
    """What was put together, and what that cost."""
    shares = ", ".join(f"{name} {norm:.3g}" for name, norm in report.shares.items())
    exact = "nothing, it is the exact sum" if report.method == "concat" else ""
    lines = [
        ("layers", f"{report.layers}, {_ranks(report.ranks)}"),
        ("norms", f"{shares}; together {report.norm:.3g}"),
        ("off the sum", exact or f"{report.left_out:.2%} of the plain sum's norm, by {report.method}"),
        ("rounding", f"{report.cast_error:.2%} of the change's norm"),
    ]
    _show(out, report.bytes, lines, report.notes, console)


def print_resized(report: ResizeReport, out: Path, console: Console) -> None:
    """What is left, and what is gone."""
    lines = [
        ("layers", f"{report.layers}, {_ranks(report.ranks)}, before {_ranks(report.ranks_before)}"),
        ("left out", f"{report.left_out:.2%} of the change's norm; {report.worst:.2%} in the worst layer"),
        ("rounding", f"{report.cast_error:.2%} of the change's norm"),
        ("size", f"{_size(report.bytes_before)} -> {_size(report.bytes)}"),
    ]
    _show(out, report.bytes, lines, report.notes, console)


def print_extracted(report: ExtractReport, out: Path, console: Console) -> None:
    """What is in the file, and what else differs."""
    others = ", ".join(f"{kind} ({count})" for kind, count in report.not_in_file.items())
    missing = (
        f"{others}; {report.not_in_file_norm:.1%} of the norm" if others else "nothing: all else is equal"
    )
    lines = [
        ("layers", f"{report.layers}, {_ranks(report.ranks)}; {report.unchanged} are the same in both"),
        ("left out", f"{report.left_out:.2%} of the difference's norm, by the rank"),
        ("not in it", missing),
        ("rounding", f"{report.cast_error:.2%} of the change's norm"),
    ]
    _show(out, report.bytes, lines, report.notes, console)


def print_merged(report: MergeReport, out: Path, console: Console) -> None:
    """What was changed."""
    lines = [
        ("changed", f"{report.layers} tensors of the base"),
        ("rounding", f"{report.cast_error:.2%} of the changes' norm, by the base's dtypes"),
    ]
    _show(out, size_of(out), lines, report.notes, console)


def print_comparison(comparison: Comparison, written: Sequence[Path], console: Console) -> None:
    """The verdict and what it rests on, then the layers where the two meet most."""
    console.print(Text(comparison.verdict, style="bold").append(f": {_advice(comparison)}", style="not bold"))
    for reason in comparison.reasons:
        console.print(Text(f"  {reason}"), soft_wrap=True)
    a, b = comparison.files
    norms, alone = comparison.norms, comparison.alone
    called = " and ".join(repr(words) if words else "not said" for words in comparison.triggers)
    console.print(
        Text(
            f"norms        {a} {norms[0]:.3g}, {b} {norms[1]:.3g}\n"
            f"layers       {len(comparison.shared)} in both, {alone[0]} only in {a}, {alone[1]} only in {b}\n"
            f"triggers     {called}"
        ),
        soft_wrap=True,
    )
    if comparison.clashing_words:
        words = ", ".join(comparison.clashing_words)
        console.print(Text(f"CLASH        both are called by: {words}", style="yellow"), soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("norm A", "norm B", "cosine", "reads", "writes"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("layer", overflow="fold")
    for layer in sorted(comparison.shared, key=lambda one: -abs(one.cosine))[:_MOST]:
        norms_of_it = (f"{norm:.3g}" for norm in layer.norms)
        overlaps = (f"{one:.0%}" for one in (layer.reads, layer.writes))
        table.add_row(*norms_of_it, f"{layer.cosine:+.3f}", *overlaps, layer.name)
    console.print(table)
    for path in written:
        console.print(Text(f"image      {path}"), soft_wrap=True)
    _notes(comparison.notes, console)


def _advice(comparison: Comparison) -> str:
    if comparison.verdict == "combine":
        return "little of one is in the way of the other; concat adds them exactly"
    if comparison.verdict == "compete":
        return "they change the same weights alike; try lower strengths, or --method project to protect one"
    larger = comparison.files[comparison.norms.index(max(comparison.norms))]
    return f"{larger} drowns the other; give it a lower strength"


def _show(
    out: Path, size: int, lines: Sequence[tuple[str, str]], notes: Sequence[str], console: Console
) -> None:
    console.print(Text(f"{out} ({_size(size)})", style="bold"), soft_wrap=True)
    for title, text in lines:
        console.print(Text(f"{title:<12} {text}"), soft_wrap=True)
    _notes(notes, console)


def _notes(notes: Sequence[str], console: Console) -> None:
    for note in notes:
        console.print(Text(f"note         {note}", style="yellow"), soft_wrap=True)


def _ranks(ranks: tuple[int, int]) -> str:
    least, most = ranks
    return f"rank {most}" if least == most else f"ranks {least} to {most}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
