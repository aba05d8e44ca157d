"""How rows of a micro-batch are spread over several passes."""

from __future__ import annotations

from lora_studio.processes import Processes, part_of


def shares(rows: slice, parts: int) -> list[slice]:
    """`rows` in at most `parts` runs of rows, as equal as they can be, the longer ones first.

    >>> shares(slice(0, 5), 2)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    assert parts >= 1, parts
    count = rows.stop - rows.start
    parts = min(parts, count)
    found = [part_of(count, number, parts) for number in range(parts)]
    return [slice(rows.start + one.start, rows.start + one.stop) for one in found]


def own_passes(rows: int, processes: Processes, passes: int, *, lockstep: bool = False) -> list[slice]:
    """This process's part of so many rows, spread over its passes.

    In lockstep all have the same number of passes, empty ones where only others have rows left.
    """
    found = shares(processes.share(rows), passes)
    most = min(passes, -(-rows // processes.count))
    return found + [slice(0, 0)] * (most - len(found)) if lockstep else found
