"""The layers of Stable Diffusion's UNets and text encoders, from the published configurations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

Shape = tuple[int, ...]


def encoder_layers(width: int, layers: int) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of a text encoder's layers, as transformers calls them."""
    wide, narrow = 4 * width, width
    for number in range(layers):
        stem = f"text_model_encoder_layers_{number}_"
        for name in ("q", "k", "v", "out"):
            yield f"{stem}self_attn_{name}_proj", (narrow, narrow)
        yield f"{stem}mlp_fc1", (wide, narrow)
        yield f"{stem}mlp_fc2", (narrow, wide)


def unet_layers(
    channels: Sequence[int], depths: Sequence[int], *, cross: int, linear: bool
) -> Iterator[tuple[str, str, Shape]]:
    """diffusers' name, the original's name and the shape of every layer, block by block.

    Two residual blocks a level on the way down and three on the way up, each of which takes what one place
    on the way down has left. The original counts the places through, and a downsampler is one of its own.
    """
    levels = list(zip(channels, depths, strict=True))
    time = 4 * channels[0]
    attention = partial(_attention, cross=cross, linear=linear)
    width, place, left = channels[0], 0, [channels[0]]
    for level, (out, depth) in enumerate(levels):
        for number in range(2):
            place += 1
            stems = f"down_blocks_{level}_resnets_{number}", f"input_blocks_{place}_0"
            yield from _resnet(*stems, (width, out, time))
            stems = f"down_blocks_{level}_attentions_{number}", f"input_blocks_{place}_1"
            yield from attention(*stems, (out, depth))
            width = out
            left.append(width)
        if level < len(levels) - 1:
            place += 1
            yield f"down_blocks_{level}_downsamplers_0_conv", f"input_blocks_{place}_0_op", _square(width)
            left.append(width)
    for number in range(2):
        stems = f"mid_block_resnets_{number}", f"middle_block_{2 * number}"
        yield from _resnet(*stems, (width, width, time))
    deepest = max(depths)
    yield from attention("mid_block_attentions_0", "middle_block_1", (width, deepest))
    place = -1
    for level, (out, depth) in enumerate(reversed(levels)):
        for number in range(3):
            place += 1
            stems = f"up_blocks_{level}_resnets_{number}", f"output_blocks_{place}_0"
            yield from _resnet(*stems, (width + left.pop(), out, time))
            stems = f"up_blocks_{level}_attentions_{number}", f"output_blocks_{place}_1"
            yield from attention(*stems, (out, depth))
            width = out
        if level < len(levels) - 1:
            after = 2 if depth else 1
            original = f"output_blocks_{place}_{after}_conv"
            yield f"up_blocks_{level}_upsamplers_0_conv", original, _square(width)


def _square(width: int) -> Shape:
    return (width, width, 3, 3)


def _resnet(diffusers: str, original: str, sizes: tuple[int, int, int]) -> Iterator[tuple[str, str, Shape]]:
    inputs, out, time = sizes
    yield f"{diffusers}_conv1", f"{original}_in_layers_2", (out, inputs, 3, 3)
    yield f"{diffusers}_time_emb_proj", f"{original}_emb_layers_1", (out, time)
    yield f"{diffusers}_conv2", f"{original}_out_layers_3", _square(out)
    if inputs != out:
        yield f"{diffusers}_conv_shortcut", f"{original}_skip_connection", (out, inputs, 1, 1)


def _attention(
    diffusers: str, original: str, sizes: tuple[int, int], *, cross: int, linear: bool
) -> Iterator[tuple[str, str, Shape]]:
    width, depth = sizes
    if not depth:
        return
    inside: dict[str, Shape] = {}
    projection = (width, width) if linear else (width, width, 1, 1)
    inside["proj_in"] = projection
    for number in range(depth):
        stem = f"transformer_blocks_{number}_"
        for attention, read in (("attn1", width), ("attn2", cross)):
            inside[f"{stem}{attention}_to_q"] = (width, width)
            inside[f"{stem}{attention}_to_k"] = (width, read)
            inside[f"{stem}{attention}_to_v"] = (width, read)
            inside[f"{stem}{attention}_to_out_0"] = (width, width)
        inside[f"{stem}ff_net_0_proj"] = (8 * width, width)  # GEGLU: value and gate, 4 times as wide each
        inside[f"{stem}ff_net_2"] = (width, 4 * width)
    inside["proj_out"] = projection
    for name, shape in inside.items():
        yield f"{diffusers}_{name}", f"{original}_{name}", shape
