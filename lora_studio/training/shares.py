"""How rows of a micro-batch are spread over several passes."""

from __future__ import annotations

from itertools import pairwise


def shares(rows: slice, parts: int) -> list[slice]:
    """`rows` in at most `parts` runs of rows, as equal as they can be, the longer ones first.

    >>> shares(slice(0, 5), 2)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    assert parts >= 1, parts
    count = rows.stop - rows.start
    parts = min(parts, count)
    if not parts:
        return []
    size, longer = divmod(count, parts)
    starts = [rows.start + number * size + min(number, longer) for number in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(starts)]
