"""What the verb `inspect` shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lora_studio.data.doctor.finding import shown

if TYPE_CHECKING:
    from lora_studio.tools.inspect import Damaged, Facts
    from lora_studio.verify.file import VerifyReport
    from lora_studio.verify.uis import Verdict


_LONGEST = 200  # letters of a metadata value
_MOST = 100  # lines of metadata
_BAR = 30  # letters of the longest bar


def print_facts(facts: Facts, console: Console) -> None:
    """All that is known of one file."""

    def line(title: str, text: str) -> None:
        console.print(f"{title:12} {shown(text)}", markup=False, soft_wrap=True)

    line("file", f"{facts.file}  ({megabytes(facts.num_bytes)})")
    line("kind", facts.kind)
    line("made for", facts.family)
    for title, values in (("rank", facts.ranks), ("alpha", facts.alphas)):
        if values:
            line(title, span(values))
    line("numbers", ", ".join(facts.dtypes))
    if facts.layers:
        line("layers", ", ".join(f"{count} in {part}" for part, count in facts.layers.items()))
    if facts.triggers:
        line("triggers", ", ".join(map(_short, facts.triggers)))
    for note in facts.notes:
        line("note", note)
    for name, digest in facts.hashes.items():
        line(name if len(name) < 12 else "sshs hash", digest)
    if facts.norms:
        console.print("\nnorm of the change of weight, by block")
        _print_bars(facts.norms, console)
    if facts.metadata:
        console.print("\nmetadata")
        for name in sorted(facts.metadata)[:_MOST]:
            line(f"  {shown(name[:_LONGEST])}:", _short(facts.metadata[name]))
        if (more := len(facts.metadata) - _MOST) > 0:
            line("", f"and {more:,} more; --json has them all")
    console.print()
    print_verdicts(facts.uis, console)


def _short(text: str) -> str:
    rest = f" ... ({len(text):,} letters)" if len(text) > _LONGEST else ""
    return text[:_LONGEST] + rest


def _print_bars(norms: dict[str, float | None], console: Console) -> None:
    largest = max((norm for norm in norms.values() if norm), default=0.0)
    width = max(map(len, norms))
    for block, norm in norms.items():
        if norm is None:
            text = "not known without the base"
        else:
            share = norm / largest if 0 < largest < float("inf") else 0.0
            bar = "#" * round(_BAR * share) if share == share else ""
            text = f"{norm:9.4g} {bar}"
        console.print(f"  {block:{width}} {text}", markup=False, soft_wrap=True)


def print_folder(found: Sequence[Facts | Damaged], console: Console) -> None:
    """A line for each file."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("file", "size", "kind", "made for", "rank", "alpha", "numbers", "UIs"):
        table.add_column(title, overflow="fold")
    damaged = []
    for one in found:
        values: dict[str, Any] = one.to_json()
        if "error" in values:
            damaged.append(values)
            table.add_row(Text(shown(one.file)), *[""] * 2, Text("damaged, see below", style="bold red"))
        else:
            table.add_row(*map(Text, map(shown, _row(values))))
    console.print(table)
    console.print("UIs: how many of those that are known load it completely; inspect a file to see which")
    for values in damaged:
        console.print(f"damaged: {shown(values['error'])}", markup=False, soft_wrap=True)


def _row(values: dict[str, Any]) -> list[str]:
    whole = [one["ui"] for one in values["uis"] if one["loads"] == "completely"]
    loads = f"{len(whole)} of {len(values['uis'])}" if values["uis"] else ""
    size, kind, family = megabytes(values["num_bytes"]), values["kind"], values["family"]
    ranks, alphas = span(values["ranks"]), span(values["alphas"])
    return [values["file"], size, kind, family, ranks, alphas, ", ".join(values["dtypes"]), loads]


def span(values: Sequence[float]) -> str:
    """ "4", or "4 to 16"."""
    return " to ".join(f"{one:g}" for one in dict.fromkeys(values))


def megabytes(num_bytes: int) -> str:
    """As files are shown elsewhere."""
    return f"{num_bytes / 1e6:.1f} MB"


_COLOURS = {"completely": "green", "partly": "yellow", "not at all": "bold red", "not known": "dim"}


def print_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    """UI, how much of the file it loads, and why."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("UI", "loads", "why"):
        table.add_column(title, overflow="fold", no_wrap=title != "why")
    for one in verdicts:
        reasons = [shown(f"{reason.what}: {reason.consequence}") for reason in one.reasons]
        table.add_row(one.ui, Text(one.loads, style=_COLOURS[one.loads]), Text("\n".join(reasons)))
    console.print(table)


def print_report(report: VerifyReport, console: Console) -> None:
    """A verify report."""
    console.print(f"{shown(report.file)}: {'whole' if report.ok else 'FAULTY'}", markup=False)
    for title, lines in (("fault", report.faults), ("note", report.notes)):
        for line in lines:
            console.print(f"  {title}: {shown(line)}", markup=False, soft_wrap=True)
    for name, value in report.checks.items():
        words = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        console.print(f"  {name.replace('_', ' ')}: {shown(words)}", markup=False, soft_wrap=True)
    if report.uis:
        print_verdicts(report.uis, console)
