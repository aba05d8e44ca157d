"""What the verbs that write files of LoRA files or runs show, and what `compare` finds in two of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from lora_studio.console import Screen, columns
from lora_studio.files import size_of
from lora_studio.text import Rows, file_size, plural

if TYPE_CHECKING:
    from lora_studio.tools.combine import CombineReport, ResizeReport
    from lora_studio.tools.compare import Comparison
    from lora_studio.tools.convert import Converted
    from lora_studio.tools.extract import ExtractReport
    from lora_studio.tools.merge_into import MergeReport
    from lora_studio.training.finish.export import Exported

_MOST = 8  # layers in the table of a comparison


def print_combined(report: CombineReport, out: Path, screen: Screen) -> None:
    """How far the file is from the exact sum, and what the dtype rounded away."""
    shares = ", ".join(f"{name} {norm:.3g}" for name, norm in report.shares.items())
    exact = "nothing, it is the exact sum" if report.method == "concat" else ""
    rows = [
        ("layers", f"{report.layers}, {_ranks(report.ranks)}"),
        ("norms", f"{shares}; together {report.norm:.3g}"),
        ("off the sum", exact or f"{report.left_out:.2%} of the plain sum's norm, by {report.method}"),
        ("rounding", f"{report.cast_error:.2%} of the change's norm"),
    ]
    _print_written(out, report.bytes, rows, report, screen)


def print_resized(report: ResizeReport, out: Path, screen: Screen) -> None:
    """What the lower rank leaves out, overall and in the worst layer."""
    rows = [
        ("layers", f"{report.layers}, {_ranks(report.ranks)}, before {_ranks(report.ranks_before)}"),
        ("left out", f"{report.left_out:.2%} of the change's norm; {report.worst:.2%} in the worst layer"),
        ("rounding", f"{report.cast_error:.2%} of the change's norm"),
        ("size", f"{file_size(report.bytes_before)} -> {file_size(report.bytes)}"),
    ]
    _print_written(out, report.bytes, rows, report, screen)


def print_extracted(report: ExtractReport, out: Path, screen: Screen) -> None:
    """What the rank leaves out, and what no LoRA can hold of the difference."""
    others = ", ".join(f"{kind} ({count})" for kind, count in report.not_in_file.items())
    missing = f"{others}; {report.not_in_file_norm:.1%} of the norm" if others else ""
    rows = [
        ("layers", f"{report.layers}, {_ranks(report.ranks)}; {report.unchanged} are the same in both"),
        ("left out", f"{report.left_out:.2%} of the difference's norm, by the rank"),
        ("not in it", missing or "nothing: all else is equal"),
        ("rounding", f"{report.cast_error:.2%} of the change's norm"),
    ]
    _print_written(out, report.bytes, rows, report, screen)


def print_merged(report: MergeReport, out: Path, screen: Screen) -> None:
    """How many tensors changed, and what was rounded away."""
    rows = [
        ("changed", f"{plural(report.layers, 'tensor')} of the base"),
        ("rounding", f"{report.cast_error:.2%} of the changes' norm"),
    ]
    _print_written(out, size_of(out), rows, report, screen)


def print_exported(found: Sequence[Exported], screen: Screen) -> None:
    """Each target's files, what was measured in them, and what their user should know."""
    for one in found:
        checks = one.report.checks
        measured = [f"rounding {checks['cast_error']:.1e}"]
        if "delta_error" in checks:
            measured.append(f"weight changes within {checks['delta_error']:.1e} of the trained ones")
        if "plain_left_out" in checks:
            measured.append(_left_out_of_plain(checks["plain_left_out"]))
        if "probe_difference_share" in checks:
            measured.append(f"through diffusers the probe differs by {checks['probe_difference_share']:.2%}")
        notes = ["; ".join(measured), *one.made.notes]
        screen.say_rows([(one.target, str(path)) for path in one.made.paths] + [("", note) for note in notes])


def print_converted(converted: Converted, screen: Screen) -> None:
    """Where it is, and what was lost where a kind was cut to plain LoRA."""
    measured = f"{plural(converted.layers, 'layer')}; rounding {converted.cast_error:.1e}"
    if converted.cut:
        measured += f"; {_left_out_of_plain(converted.left_out)}"
    screen.say_rows([("written", converted.path), ("", measured)])
    screen.say_rows([("warning", warning) for warning in converted.warnings], style="bold yellow")
    screen.say_rows([("note", note) for note in converted.notes], style="yellow")


def _left_out_of_plain(share: float) -> str:
    return f"as plain LoRA a layer's change lacks at most {share:.1e} of itself"


def print_comparison(comparison: Comparison, written: Sequence[Path], screen: Screen) -> None:
    """The verdict and what it rests on, then the layers where the two meet most."""
    screen.say(Text(comparison.verdict, style="bold").append(f": {_advice(comparison)}", style="not bold"))
    for reason in comparison.reasons:
        screen.say(f"  {reason}")
    a, b = comparison.files
    norms, alone = comparison.norms, comparison.alone
    triggers = " and ".join(repr(words) if words else "not known" for words in comparison.triggers)
    layers = f"{len(comparison.shared)} in both, {alone[0]} only in {a}, {alone[1]} only in {b}"
    rows = [("norms", f"{a} {norms[0]:.3g}, {b} {norms[1]:.3g}"), ("layers", layers), ("triggers", triggers)]
    screen.say_rows(rows)
    if comparison.clashing_words:
        words = ", ".join(comparison.clashing_words)
        screen.say_rows([("CLASH", f"both have the trigger words: {words}")], style="yellow")
    numbers = ("norm A", "norm B", "cosine", "reads", "writes")
    table = columns([*numbers, "layer"], right=numbers, whole=numbers)
    for layer in sorted(comparison.shared, key=lambda one: -abs(one.cosine))[:_MOST]:
        own = (f"{norm:.3g}" for norm in layer.norms)
        table.add_row(*own, f"{layer.cosine:+.3f}", f"{layer.reads:.0%}", f"{layer.writes:.0%}", layer.name)
    screen.print(table)
    screen.say_rows([("image", str(path)) for path in written])
    screen.say_rows([("note", note) for note in comparison.notes], style="yellow")


def _advice(comparison: Comparison) -> str:
    if comparison.verdict == "combine":
        return "little of one is in the way of the other; concat adds them exactly"
    if comparison.verdict == "compete":
        return "they change the same weights alike; try lower strengths, or --method project to protect one"
    larger = comparison.files[comparison.norms.index(max(comparison.norms))]
    return f"{larger} drowns the other; give it a lower strength"


def _print_written(
    out: Path,
    size: int,
    rows: Rows,
    report: CombineReport | ResizeReport | ExtractReport | MergeReport,
    screen: Screen,
) -> None:
    screen.say(f"{out} ({file_size(size)})", "bold")
    screen.say_rows(rows)
    screen.say_rows([("note", note) for note in report.notes], style="yellow")
    screen.say_rows([("warning", warning) for warning in report.warnings], style="bold yellow")


def _ranks(ranks: tuple[int, int]) -> str:
    least, most = ranks
    return f"rank {most}" if least == most else f"ranks {least} to {most}"
