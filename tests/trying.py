"""What odd input makes of a program: it is used, refused in words, or crashes."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lora_studio.errors import StudioError


def in_one_line(most: int) -> Callable[[str], bool]:
    """Whether a text is a line of at most so many letters."""
    return lambda text: "\n" not in text and len(text) <= most


@contextmanager
def tried(
    label: str, counts: dict[str, int], crashes: list[str], *, is_said: Callable[[str], bool]
) -> Iterator[None]:
    """Counts a refusal of what is within; one that is not said well, and any other exception, is a crash."""
    try:
        yield
    except StudioError as error:
        counts["refused"] += 1
        if not is_said(str(error)):
            crashes.append(f"{label}: no sentence: {str(error)[:300]}")
    except Exception:
        crashes.append(f"{label}: {traceback.format_exc()}")
