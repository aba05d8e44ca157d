"""Names and counts in sentences."""

from __future__ import annotations

from collections.abc import Iterable


def preview_names(names: Iterable[str], *, limit: int = 3) -> str:
    """The first names for a message: "a.png, b.png, c.png and 4 more"."""
    listed = list(names)
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")
