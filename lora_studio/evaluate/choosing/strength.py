"""At which strengths a finished LoRA is of use, by the rule that chooses checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.evaluate.choosing import Budget, Candidate, Choice, choose


@dataclass(frozen=True)
class StrengthChoice:
    """The recommended strength, and the range around it in which all that were measured are usable.

    Usable: within the budgets, and with a fidelity that is surely above the base's. No range if not even the
    recommended one is.
    """

    choice: Choice
    lowest: float | None
    highest: float | None

    @property
    def recommended(self) -> float:
        return self.choice.taken.variant.strength

    @property
    def in_words(self) -> str:
        """For people and for `modelspec.usage_hint`."""
        if self.lowest is None or self.highest is None:
            return f"strength {self.recommended:g}, though none is surely of use within the budgets"
        if self.lowest == self.highest:
            return f"strength {self.recommended:g}"
        return f"strength {self.recommended:g}, usable from {self.lowest:g} to {self.highest:g}"

    def to_json(self) -> dict[str, Any]:
        """As `strengths.json` has it."""
        usable = None if self.lowest is None else [self.lowest, self.highest]
        return {"recommended": self.recommended, "usable": usable} | self.choice.to_json()


def choose_strength(candidates: Sequence[Candidate], budget: Budget) -> StrengthChoice | None:
    """Of one checkpoint at several strengths; None if fidelity could be measured at none."""
    ordered = sorted(candidates, key=lambda one: one.variant.strength)
    if (choice := choose(ordered, budget)) is None:
        return None
    usable = [not one.beyond(budget) and not one.spoiled and one.fidelity.low > 0 for one in ordered]
    place = ordered.index(choice.taken)
    if not usable[place]:
        return StrengthChoice(choice, None, None)
    first, last = place, place
    while first > 0 and usable[first - 1]:
        first -= 1
    while last + 1 < len(usable) and usable[last + 1]:
        last += 1
    return StrengthChoice(choice, ordered[first].variant.strength, ordered[last].variant.strength)
