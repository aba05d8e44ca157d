"""How much of changes of weights a dtype rounds away, and from where on that is too much."""

from __future__ import annotations

import math

from lora_studio.adapters.layer import Factors
from lora_studio.errors import StudioError
from lora_studio.lora_file.factors import energy, stacked

MUCH = 0.05  # of the norm of all changes, from which on it is said


class Rounding:
    """Of a file or a base in the making, whose user is told to take float32 where too much is lost."""

    def __init__(self, dtype: object, remedy: str = "give --dtype float32") -> None:
        self._dtype = str(dtype).removeprefix("torch.")
        self._remedy = remedy if self._dtype != "float32" else "give a larger strength"
        self._lost = self._whole = 0.0  # sums of squares
        self._is_left = False  # whether anything is

    def add(self, lost: float, whole: float, *, is_left: bool) -> None:
        """A layer's sums of squares: of what is lost, and of its change."""
        self._lost, self._whole = self._lost + lost, self._whole + whole
        self._is_left |= is_left

    def add_factors(self, exact: Factors, cast: Factors, scale: float, whole: float) -> None:
        """A layer of this scale, of which the cast factors are written."""
        down, up = cast
        # From the differences of factors that are nearly the same: float32 is enough and nothing cancels.
        off = [
            Factors(exact.down.float(), (exact.up - up).float()),
            Factors((exact.down - down).float(), up.float()),
        ]
        self.add(energy(stacked(off)) * scale**2, whole, is_left=bool(down.any() and up.any()))

    @property
    def share(self) -> float:
        """The norm of what is lost, relative to that of all changes."""
        return math.sqrt(self._lost / self._whole) if self._whole else 0.0

    def check(self) -> None:
        """Raise StudioError if nothing would be left."""
        if self._whole and not self._is_left:
            raise StudioError(
                f"the changes are too small for {self._dtype}: nothing of them would be left; {self._remedy}."
            )

    def check_something(self) -> None:
        """Raise StudioError if all changes were zero before they were cast, or would be after it."""
        if not self._whole:
            raise StudioError("every layer of the result would be zero, so nothing was written.")
        self.check()

    @property
    def warnings(self) -> list[str]:
        if self.share <= MUCH:
            return []
        return [f"{self._dtype} rounds away {self.share:.0%} of the change's norm; {self._remedy} to keep it"]
