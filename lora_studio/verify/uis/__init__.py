"""How each UI loads a file: completely, partly or not at all, and why."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lora_studio.verify.uis.table import GAPS, TABLE, UIS, Loss

COMPLETELY, PARTLY, NOT_AT_ALL, NOT_KNOWN = "completely", "partly", "not at all", "not known"


@dataclass(frozen=True)
class UiFinding:
    """A row of the table that is true of a file, and of which of its layers or keys."""

    row: str
    concerns: Sequence[str] = ()

    def in_words(self, base: str) -> str:
        """What is the matter."""
        number = len(self.concerns)
        counts = {
            what: f"{number} {what if number != 1 else what[:-1]}" for what in ("layers", "keys")
        }  # "1 layer", "3 layers"
        return TABLE[self.row][0].format(base=base, first=self.concerns[0] if number else "", **counts)


@dataclass(frozen=True)
class Reason:
    """Why a UI loads a file as it does."""

    what: str
    consequence: str
    loss: str
    keys: tuple[str, ...]  # the first three
    is_gap: bool = False


@dataclass(frozen=True)
class Verdict:
    """How a UI loads a file."""

    ui: str
    loads: str  # completely, partly, not at all, not known
    reasons: tuple[Reason, ...] = ()

    @property
    def is_files_fault(self) -> bool:
        """Whether another file for the same base would be loaded better."""
        return any(
            one.loss not in (Loss.NONE.value, Loss.UNKNOWN.value) and not one.is_gap for one in self.reasons
        )


def verdicts(findings: Sequence[UiFinding], layers: Collection[str], base: str) -> list[Verdict]:
    """A verdict for each UI from what was found in a file of these layers."""
    return [_verdict(ui, findings, layers, base) for ui in UIS]


def _verdict(ui: str, findings: Sequence[UiFinding], layers: Collection[str], base: str) -> Verdict:
    reasons, lost, losses = [], set(), set()
    for found in findings:
        answer = TABLE[found.row][1].get(ui)
        if answer is None:
            continue
        losses.add(answer.loss)
        if answer.loss is Loss.LAYERS:
            lost |= set(found.concerns)
        what, keys = found.in_words(base), tuple(found.concerns[:3])
        reasons.append(Reason(what, answer.words, answer.loss.value, keys, found.row in GAPS))
    if Loss.FILE in losses or (lost and lost >= set(layers)):
        loads = NOT_AT_ALL
    elif losses & {Loss.LAYERS, Loss.WRONG}:
        loads = PARTLY
    else:
        loads = NOT_KNOWN if Loss.UNKNOWN in losses else COMPLETELY
    return Verdict(ui, loads, tuple(reasons))


def loaded_by(judged: Sequence[Verdict], how: str = COMPLETELY) -> list[str]:
    """The UIs that load it so."""
    return [one.ui for one in judged if one.loads == how]
