"""A Z-Image's forward pass over whole batches, for training: the same numbers at a fraction of the time.

diffusers' own takes lists, rotates complex numbers in float32, and builds ids, masks and padding for every
image anew. Here all of a batch have one size; queries, keys and values are one product, as are the two ways
into a feed-forward; and the rotation's tables are made once per size. The module keeps its weights.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ZImageTransformer2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_z_image import FeedForward, ZImageTransformerBlock
from torch import Tensor

MULTIPLE = 32  # to which a Z-Image pads captions and images, each for itself, with tokens that it attends to


class Captions(NamedTuple):
    """[B, L, D] features, L a multiple of 32; [B] how many of each are real."""

    features: Tensor
    lengths: Tensor


class Turns(NamedTuple):
    """Cosines and sines [B or 1, 1, L, D / 2] that turn queries and keys; mask [B, 1, 1, L] or none."""

    cosines: Tensor
    sines: Tensor
    mask: Tensor | None


def padded(features: list[Tensor]) -> Captions:
    """Captions of [their tokens, D] in one tensor."""
    lengths = [len(one) for one in features]
    room = MULTIPLE * -(-max(lengths) // MULTIPLE)
    rows = [F.pad(one, (0, 0, 0, room - len(one))) for one in features]
    return Captions(torch.stack(rows), torch.tensor(lengths, device=features[0].device))


@cache
def _angles(axes: tuple[int, ...], theta: float, said: int, shape: tuple[int, int]) -> Tensor:
    """[image's tokens + said, D / 2] angles of the positions that diffusers gives them."""
    height, width = shape
    count = height * width
    image = torch.stack(
        [
            torch.full((height, width), said + 1),
            *torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"),
        ],
        dim=-1,
    ).view(count, 3)
    nowhere = torch.zeros(-count % MULTIPLE, 3, dtype=torch.long)
    caption = F.pad(torch.arange(1, said + 1)[:, None], (0, 2))
    positions = torch.cat([image, nowhere, caption]).double()
    parts = [
        positions[:, axis, None] / theta ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
        for axis, size in enumerate(axes)
    ]
    return torch.cat(parts, dim=-1)


def turns(transformer: ZImageTransformer2DModel, lengths: Tensor, room: int, shape: tuple[int, int]) -> Turns:
    """Of image tokens in a grid of `shape` and of captions of `lengths` in `room` tokens."""
    axes, theta = tuple(transformer.axes_dims), transformer.rope_theta
    kinds = sorted({MULTIPLE * -(-length // MULTIPLE) for length in lengths.tolist()})
    count = room + MULTIPLE * -(-shape[0] * shape[1] // MULTIPLE)
    angles = [_angles(axes, theta, said, shape) for said in kinds]
    table = torch.stack([F.pad(some, (0, 0, 0, count - len(some))) for some in angles])
    of = torch.tensor([kinds.index(MULTIPLE * -(-n // MULTIPLE)) for n in lengths.tolist()])
    table = (table if len(kinds) == 1 else table[of]).to(lengths.device)
    mask = None
    if kinds != [room]:
        ends = torch.tensor(kinds, device=lengths.device)[of] + count - room
        mask = (torch.arange(count, device=lengths.device) < ends[:, None])[:, None, None]
    return Turns(table.cos().float().unsqueeze(1), table.sin().float().unsqueeze(1), mask)


def _apart(heads: int, size: int, device: torch.device) -> Tensor:
    """The order that brings the first of each pair of a head's channels before all the second ones."""
    pairs = torch.arange(heads * size, device=device).view(heads, size // 2, 2)
    return pairs.transpose(1, 2).reshape(-1)


class _Normed(torch.autograd.Function):
    """x / rms(x) over the last axis, with what is needed of the backward pass only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = (
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            .square_()
            .div_(x.shape[-1])
            .add_(eps)
            .rsqrt_()
        )
        normed = wide * inverse
        ctx.save_for_backward(normed, inverse)
        ctx.dtype = x.dtype
        return normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (normed, inverse) = gradients, ctx.saved_tensors
        along = (gradient * normed).mean(-1, keepdim=True)
        return torch.addcmul(gradient, normed, along, value=-1).mul_(inverse).to(ctx.dtype), None


def _normed(x: Tensor, norm: RMSNorm, scale: Tensor | None = None) -> Tensor:
    """An RMSNorm of [..., D], times `scale` [B, 1, D]: it is laid together with the norm's weight."""
    return _Normed.apply(x, norm.eps) * (norm.weight if scale is None else norm.weight * scale)


def _turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=-1)
    return torch.cat([one * cosines - other * sines, one * sines + other * cosines], dim=-1)


def _attention(attention: Attention, x: Tensor, turns: Turns) -> Tensor:
    """Of [B, L, D]. Both queries and keys have their channels in another order: their products stay."""
    b, length, width = x.shape
    heads = attention.heads
    size = width // heads
    apart = _apart(heads, size, x.device)
    weights = attention.to_q.weight[apart], attention.to_k.weight[apart], attention.to_v.weight
    three = F.linear(x, torch.cat(weights)).view(b, length, 3, heads, size)
    query, key, value = three.permute(2, 0, 3, 1, 4)
    cosines, sines, mask = turns
    within = apart[:size]
    norms = zip((query, key), (attention.norm_q, attention.norm_k), strict=True)
    query, key = (
        _turned(_Normed.apply(one, norm.eps) * norm.weight[within], cosines, sines).to(value.dtype)
        for one, norm in norms
    )
    scores = query @ key.transpose(-2, -1) * size**-0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    answer = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return attention.to_out[0](answer.transpose(1, 2).reshape(b, length, width))


def _feed_forward(layer: FeedForward, x: Tensor) -> Tensor:
    gate, way = F.linear(x, torch.cat([layer.w1.weight, layer.w3.weight])).chunk(2, dim=-1)
    return layer.w2(F.silu(gate) * way)


def block(layer: ZImageTransformerBlock, x: Tensor, turns: Turns, time: Tensor | None) -> Tensor:
    """One of a Z-Image's blocks on [B, L, D]; `time` [B, D'] where it is modulated."""
    scales: list[Tensor | None] = [None] * 4
    if time is not None:
        scale, gate, scale_after, gate_after = (
            layer.adaLN_modulation(time).float().unsqueeze(1).chunk(4, dim=2)
        )
        scales = [1 + scale, gate.tanh(), 1 + scale_after, gate_after.tanh()]
    heard = _attention(layer.attention, _normed(x, layer.attention_norm1, scales[0]), turns)
    x = x + _normed(heard, layer.attention_norm2, scales[1])
    after = _feed_forward(layer.feed_forward, _normed(x, layer.ffn_norm1, scales[2]))
    return x + _normed(after, layer.ffn_norm2, scales[3])


def _parts(turns: Turns, start: int, end: int) -> Turns:
    mask = None if turns.mask is None else turns.mask[..., start:end]
    return Turns(turns.cosines[..., start:end, :], turns.sines[..., start:end, :], mask)


def _tokens(transformer: ZImageTransformer2DModel, noised: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, a multiple of 32, D]."""
    b, c, h, w = noised.shape
    patches = noised.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w // 4, 4 * c)
    embedded = transformer.all_x_embedder["2-1"](patches)
    rest = transformer.x_pad_token.to(embedded.dtype).expand(b, -embedded.shape[1] % MULTIPLE, -1)
    return torch.cat([embedded, rest], dim=1)


def forward(
    transformer: ZImageTransformer2DModel,
    noised: Tensor,
    time: Tensor,
    captions: Captions,
    turns: Turns,
    asked: int,
) -> tuple[Tensor, Tensor]:
    """A Z-Image's answer [B, C, h, w] at `time` [B] (0 is noise), and layer `asked`'s [B, its tokens, D]."""
    (b, c, h, w), final = noised.shape, transformer.all_final_layer["2-1"]
    told = transformer.t_embedder(time * transformer.t_scale).to(noised.dtype)
    x = _tokens(transformer, noised)
    count, room = x.shape[1], captions.features.shape[1]
    of_image, of_caption = _parts(turns, 0, count), _parts(turns, count, count + room)
    for layer in transformer.noise_refiner:
        x = block(layer, x, of_image._replace(mask=None), told)
    said = transformer.cap_embedder(captions.features)
    real = torch.arange(room, device=noised.device) < captions.lengths[:, None]
    said = torch.where(real.unsqueeze(-1), said, transformer.cap_pad_token.to(said.dtype))
    for layer in transformer.context_refiner:
        said = block(layer, said, of_caption, None)
    both = torch.cat([x, said], dim=1)
    heard = both
    for number, layer in enumerate(transformer.layers):
        both = block(layer, both, turns, told)
        heard = both if number == asked else heard
    scale = (1 + final.adaLN_modulation(told)).float().unsqueeze(1)
    cells = h * w // 4
    plain = F.layer_norm(both[:, :cells].float(), (both.shape[2],), eps=final.norm_final.eps)
    answer = final.linear(plain * scale).view(b, h // 2, w // 2, 2, 2, c)
    return answer.permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w), heard[:, :cells]
