"""How a micro-batch's rows are spread over several passes."""

from __future__ import annotations

from itertools import pairwise


def shares(rows: int, parts: int) -> list[slice]:
    """`rows` in at most `parts` runs of rows, as equal as they can be, the longer ones first.

    >>> shares(5, 2)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    assert rows >= 1 and parts >= 1, (rows, parts)
    parts = min(parts, rows)
    size, longer = divmod(rows, parts)
    starts = [number * size + min(number, longer) for number in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(starts)]
