"""Which of Pillow's warnings are errors, for all threads that decode."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

_lock = threading.Lock()
_inside = 0
_outermost: warnings.catch_warnings[None] | None = None


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Remarks on odd metadata are not shown, those on decompression bombs are errors.

    Python's filters are one list for all threads, so they are changed by the first that enters and put back
    by the last that leaves.
    """
    global _inside, _outermost
    with _lock:
        _inside += 1
        if _inside == 1:
            _outermost = warnings.catch_warnings()
            _outermost.__enter__()
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _outermost is not None:
                _outermost.__exit__(None, None, None)
                _outermost = None
