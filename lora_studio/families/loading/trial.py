"""A base that has shapes only, asked for what a run first asks of it: no weights are read or made.

What its configurations say may fit the weights and still compute nothing: convolutions that cut a side off
between levels, or a list where a number belongs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.families import vaes
from lora_studio.families.base import ModelFamily

_SHAPES_ONLY = torch.device("meta")
_computed: set[str] = set()  # configurations that have been tried


@torch.no_grad()
def check_computes(base: ModelFamily, model: str, configurations: Mapping[str, Any]) -> None:
    """Raise BaseModelError that names the part that cannot compute, of a base without weights.

    0.4 s for SD1, 1 s for SDXL; once in a process for the same configurations.
    """
    said = json.dumps(configurations, sort_keys=True)
    if said in _computed:
        return
    with suppress(NotImplementedError):  # by a library for shapes only, which says nothing of the base
        _compute(base, model)
    _computed.add(said)


def _compute(base: ModelFamily, model: str) -> None:
    with _told("vae", model):
        try_vae(base.parts["vae"], base.native_side)
    with _told("text_encoder", model):
        text = base.encode_text([""] * 2)
    with _told(base.denoiser, model):
        latents, timestep, geometry = (one.to(_SHAPES_ONLY) for one in base.probe_inputs())
        base.denoise(latents, timestep, text, geometry)


@torch.no_grad()
def try_vae(vae: Any, side: int) -> None:
    """Raises whatever a VAE of shapes only raises that cannot compute; `side` is in pixels."""
    pixels = torch.empty(1, 3, side, side, device=_SHAPES_ONLY)
    vaes.decode(vae, vaes.encode(vae, pixels)[0])


@contextmanager
def _told(part: str, model: str) -> Iterator[None]:
    try:
        yield
    except NotImplementedError:  # for shapes only: says nothing of the base
        raise
    except RuntimeError as error:
        if "meta tensors" in str(error):  # whose numbers were asked for
            raise NotImplementedError from None
        raise _damaged(part, model, error) from None
    except Exception as error:  # libraries meet a configuration that somebody made up with any error
        raise _damaged(part, model, error) from None


def _damaged(part: str, model: str, error: Exception) -> BaseModelError:
    fault = f"the part {part} of the base model {model} cannot compute: {reason_of(error)}"
    return BaseModelError(f"{fault}; its configuration is damaged: download it again.")
