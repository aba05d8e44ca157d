"""Questions in the terminal, each with a default; where no one sits at it the options answer."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.text import Text

from lora_studio.console import Screen, folded
from lora_studio.errors import RecipeError, StudioError


def someone_answers() -> bool:
    """Whether both ends are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


class Questions:
    """Asks what no option has said yet."""

    def __init__(self, screen: Screen, *, asks: bool) -> None:
        self.screen, self.asks = screen, asks

    def ask(
        self,
        question: str,
        option: str,
        given: str,
        *,
        default: str = "",
        check: Callable[[str], object] = lambda text: None,
    ) -> str:
        """What was `given` with `option`, else the answer, else the default.

        `check` raises a StudioError for what cannot be, and the question is asked again; without a terminal
        the error is raised, as is RecipeError where there is neither a default.
        """
        while True:
            text = given.strip() or (self._answer(question, default) if self.asks else default)
            try:
                if not text:
                    raise RecipeError(f"{option} is missing: {question[:1].lower()}{question[1:]}.")
                check(text)
                return text
            except StudioError as error:
                if not self.asks:
                    raise
                self.screen.say(str(error))
                given = ""

    def _answer(self, question: str, default: str) -> str:
        shown = f" [{default}]" if default else ""
        asked = folded(Text(f"{question}{shown}: "), self.screen.width)
        self.screen.print(asked, end="", soft_wrap=True)
        try:
            return input().strip() or default
        except EOFError:
            raise StudioError("the terminal was closed; nothing was written.") from None
