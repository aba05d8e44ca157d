"""What the verbs that look at finished files show: `inspect`, `verify`, `metadata` and `push`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from lora_studio.console import Screen, columns
from lora_studio.text import file_size, in_words, plural, shown

if TYPE_CHECKING:
    from lora_studio.metadata.provenance import OriginReport
    from lora_studio.tools.inspect import Damaged, Facts
    from lora_studio.tools.push import Upload
    from lora_studio.verify import VerifyReport
    from lora_studio.verify.uis import UiVerdict

_LONGEST = 200  # letters of a metadata value; --json has all
_MOST = 100  # lines of metadata
_FIRST = ("made_for", "base", "keys_mapped", "vectors")  # of what verify has checked
_BAR = 30  # letters of the longest bar
_COLOURS = {
    **{"completely": "green", "partly": "yellow", "not at all": "bold red"},
    **{"no base for it": "yellow", "not known": "dim"},
}


def print_facts(facts: Facts, screen: Screen) -> None:
    """Facts first, then norms by block, then metadata cut to what a terminal can take, and UIs last."""
    rows = [
        ("file", f"{facts.file}  ({file_size(facts.num_bytes)})"),
        ("kind", facts.kind),
        ("made for", facts.family),
        ("rank", _span(facts.ranks)),
        ("alpha", _span(facts.alphas)),
        ("numbers", ", ".join(facts.dtypes)),
        ("layers", ", ".join(f"{count} in {part}" for part, count in facts.layers.items())),
        ("triggers", ", ".join(shown(trigger, limit=_LONGEST) for trigger in facts.triggers)),
        *(("note", note) for note in facts.notes),
        *((name if len(name) < 12 else "sshs hash", digest) for name, digest in facts.hashes.items()),
    ]
    screen.say_rows([(title, shown(text)) for title, text in rows if text])
    if facts.norms:
        screen.say()
        screen.say("norm of the change of weight, by block")
        _print_bars(facts.norms, screen)
    if facts.metadata:
        screen.say()
        screen.say("metadata")
        _print_metadata(facts.metadata, screen, most=_MOST)
    screen.say()
    print_verdicts(facts.uis, screen)


def _print_bars(norms: dict[str, float | None], screen: Screen) -> None:
    largest = max((norm for norm in norms.values() if norm), default=0.0)
    width = max(map(len, norms))
    for block, norm in norms.items():
        share = norm / largest if norm is not None and 0 < largest < float("inf") else 0.0
        bar = "#" * round(_BAR * share) if share == share else ""
        text = "not known without the base" if norm is None else f"{norm:9.4g} {bar}"
        screen.say(f"  {block:{width}} {text}")


def _print_metadata(metadata: Mapping[str, str], screen: Screen, *, most: int | None = None) -> None:
    for name in sorted(metadata)[:most]:
        screen.say(f"  {shown(name, limit=_LONGEST)} = {shown(metadata[name], limit=_LONGEST)}")
    if most is not None and len(metadata) > most:
        screen.say(f"  and {len(metadata) - most:,} more; --json has them all")


def print_folder(found: Sequence[Facts | Damaged], screen: Screen) -> None:
    """A row for each file; why some are damaged stands below the table."""
    table = columns(("file", "size", "kind", "made for", "rank", "alpha", "numbers", "UIs"))
    damaged = []
    for one in found:
        values: dict[str, Any] = one.to_json()
        if "error" in values:
            damaged.append(values)
            table.add_row(Text(shown(one.file)), *[""] * 2, Text("damaged, see below", style="bold red"))
        else:
            table.add_row(*map(Text, map(shown, _row(values))))
    screen.print(table)
    screen.say("UIs: how many of those that are known load it completely; inspect a file to see which")
    for values in damaged:
        screen.say(f"damaged: {shown(values['error'])}")


def _row(values: dict[str, Any]) -> list[str]:
    complete = sum(one["loads"] == "completely" for one in values["uis"])
    loads = f"{complete} of {len(values['uis'])}" if values["uis"] else ""
    start = [values["file"], file_size(values["num_bytes"]), values["kind"], values["family"]]
    return [*start, _span(values["ranks"]), _span(values["alphas"]), ", ".join(values["dtypes"]), loads]


def _span(values: Sequence[float]) -> str:
    """ "4", or "4 to 16"."""
    return " to ".join(f"{one:g}" for one in dict.fromkeys(values))


def print_verdicts(verdicts: Sequence[UiVerdict], screen: Screen) -> None:
    """A row for each UI, with what it does not load and what that leads to; the same is said once."""
    table, said = columns(("UI", "loads", "why"), whole=("UI", "loads")), dict[str, str]()
    for one in verdicts:
        reasons = "\n".join(shown(f"{reason.what}: {reason.consequence}") for reason in one.reasons)
        first = said.setdefault(reasons, one.ui)
        why = f"as {first}" if reasons and first != one.ui else reasons
        table.add_row(one.ui, Text(one.loads, style=_COLOURS[one.loads]), Text(why))
    screen.print(table)


def print_report(report: VerifyReport, screen: Screen) -> None:
    """Whether it is valid and why not, for which base it is, what UIs make of it, and what was measured."""
    screen.say(f"{shown(report.file)}: {'valid' if report.ok else 'INVALID'}")
    for title, lines in (("fault", report.faults), ("note", report.notes)):
        for line in lines:
            screen.say(f"  {title}: {shown(line)}")
    first = {name: report.checks[name] for name in _FIRST if name in report.checks}
    _print_checks(first, screen)
    if report.uis:
        print_verdicts(report.uis, screen)
    if others := {k: one for k, one in report.checks.items() if k not in first and one not in ([], "")}:
        screen.say("measured")
        _print_checks(others, screen)


def _print_checks(checks: Mapping[str, object], screen: Screen) -> None:
    for name, value in checks.items():
        values = value if isinstance(value, list) else [value]
        words = ", ".join(f"{one:.3g}" if isinstance(one, float) else str(one) for one in values)
        screen.say(f"  {in_words(name)}: {shown(words)}")


def print_metadata(
    path: Path,
    metadata: Mapping[str, str],
    tensor_hash: str,
    screen: Screen,
    *,
    before: Mapping[str, str] | None = None,
) -> None:
    """Every key with its value cut, or what was changed of those `before`; hashes as cards show them.

    With a warning if the tensors do not match.
    """
    keys = f"{plural(len(metadata), 'key')} of metadata"
    if before is None:
        screen.say(f"{path}: {keys}")
        _print_metadata(metadata, screen)
    else:
        gone = sorted(before.keys() - metadata.keys())
        screen.say(f"{path}: written, {keys}")
        _print_metadata({key: value for key, value in metadata.items() if before.get(key) != value}, screen)
        screen.say_rows([("taken out", ", ".join(map(shown, gone)))] if gone else [])
    screen.say_rows([("tensors", f"sha256 {tensor_hash}, on cards {tensor_hash[:12]}")])
    if (named := metadata.get("sshs_model_hash")) and named != tensor_hash:
        fault = f"sshs_model_hash is {shown(named, limit=_LONGEST)}: the tensors were changed after that"
        screen.say_rows([("warning", fault)])


def print_origin(origin: OriginReport, screen: Screen) -> None:
    """Yes or no, and every line that differs, is the same or could not be looked at."""
    screen.say(f"{origin.file}: {'yes, made from these' if origin.proven else 'NO, not made from these'}")
    reasons = {"differs": origin.differs, "same": origin.same, "not looked at": origin.not_looked_at}
    for title, lines in reasons.items():
        for line in lines:
            screen.say(f"  {title}: {line}")


def print_uploads(
    uploads: Sequence[Upload], repo: str, screen: Screen, *, public: bool, dry_run: bool
) -> None:
    """What goes to the hub, before it does."""
    verb, who = ("would go" if dry_run else "goes"), ("everybody" if public else "you alone")
    screen.say(f"to {repo} on the hub {verb}, for {who} to see:")
    for one in uploads:
        screen.say(f"  {one.name}  ({one.num_bytes:,} bytes)")
