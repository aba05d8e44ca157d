"""Networks of shapes only, as fast as their modules can be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, parameters of new modules have shapes only; buffers, which no file holds, are real.

    What libraries would draw for such parameters is left out, a quarter of the time that a network takes.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers.initialization import TORCH_INIT_FUNCTIONS

    drawn = {name: getattr(torch.nn.init, name) for name in TORCH_INIT_FUNCTIONS}
    own = dict(TORCH_INIT_FUNCTIONS)  # which transformers calls, as they were when it was imported
    lazy = {name: _unless_meta(function) for name, function in drawn.items()}
    vars(torch.nn.init).update(lazy)
    TORCH_INIT_FUNCTIONS.update(lazy)
    try:
        with init_empty_weights(include_buffers=False):
            yield
    finally:
        vars(torch.nn.init).update(drawn)
        TORCH_INIT_FUNCTIONS.update(own)


def _unless_meta(function: Callable[..., Any]) -> Callable[..., Any]:
    def draw(tensor: Any, *arguments: Any, **named: Any) -> Any:
        return tensor if tensor.is_meta else function(tensor, *arguments, **named)

    return draw
