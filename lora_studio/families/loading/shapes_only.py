"""Networks of shapes only, as fast as their modules can be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, parameters of new modules have shapes only; buffers, which no file holds, are real.

    What libraries would draw for such parameters is left out, a quarter of the time that a network takes; and
    so is Stable Diffusion 3's table of places, which files have, and which takes 4 to 17 s.
    """
    import torch
    from accelerate import init_empty_weights
    from diffusers.models import embeddings
    from transformers.initialization import TORCH_INIT_FUNCTIONS

    drawn = {name: getattr(torch.nn.init, name) for name in TORCH_INIT_FUNCTIONS}
    own = dict(TORCH_INIT_FUNCTIONS)  # which transformers calls, as they were when it was imported
    lazy = {name: _unless_meta(function) for name, function in drawn.items()}
    table = embeddings.get_2d_sincos_pos_embed
    vars(torch.nn.init).update(lazy)
    vars(embeddings).update(get_2d_sincos_pos_embed=_shape_of_table)
    TORCH_INIT_FUNCTIONS.update(lazy)
    try:
        with init_empty_weights(include_buffers=False):
            yield
    finally:
        vars(torch.nn.init).update(drawn)
        vars(embeddings).update(get_2d_sincos_pos_embed=table)
        TORCH_INIT_FUNCTIONS.update(own)


def _unless_meta(function: Callable[..., Any]) -> Callable[..., Any]:
    def draw(tensor: Any, *arguments: Any, **named: Any) -> Any:
        return tensor if tensor.is_meta else function(tensor, *arguments, **named)

    return draw


def _shape_of_table(width: int, side: int, **_given: object) -> Any:
    """[side x side, width]"""
    import torch

    return torch.empty(side * side, width, device="meta")
