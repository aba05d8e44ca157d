"""diffusers' attention without the questions that the denoisers here answer with no.

At every call its own asks its processor's signature and divides by an output factor that is 1, forward and
backward: a tenth of what the host does in a step, and 280 launches of SDXL's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn


def shorten_attention(denoiser: nn.Module) -> None:
    """Give each attention that is nothing but four linear layers and torch's own product a shorter way.

    The result is the same, bit for bit. Masks, images and other processors go the usual way.
    """
    for module in denoiser.modules():
        if isinstance(module, Attention) and "forward" not in vars(module) and _is_plain(module):
            module.forward = partial(_attend, module, module.forward)


def _is_plain(attention: Any) -> bool:
    norms = (attention.spatial_norm, attention.group_norm, attention.norm_q, attention.norm_k)
    unused = (*norms, attention.norm_cross, attention.residual_connection, attention.only_cross_attention)
    usual = attention.rescale_output_factor == 1 and attention.inner_kv_dim == attention.inner_dim
    own = type(attention.processor) is AttnProcessor2_0 and not attention.pre_only
    return own and usual and not any(unused) and not attention.to_out[1].p


def _attend(
    attention: Any,
    usual: Callable[..., Tensor],
    x: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **more: Any,
) -> Tensor:
    """x [B, N, C] and, for keys and values, [B, M, D], or x itself -> [B, N, C]."""
    if (
        attention_mask is not None
        or more
        or x.dim() != 3
        or type(attention.processor) is not AttnProcessor2_0
    ):
        return usual(x, encoder_hidden_states, attention_mask, **more)
    source = x if encoder_hidden_states is None else encoder_hidden_states
    q, k, v = attention.to_q(x), attention.to_k(source), attention.to_v(source)
    shape = len(x), -1, attention.heads, q.shape[-1] // attention.heads
    q, k, v = (one.view(shape).transpose(1, 2) for one in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    output: Tensor = attention.to_out[0](mixed.flatten(2))
    return output
