"""The paths of SDXL's UNet in the original checkpoint, by which UIs and kohya name its layers."""

from __future__ import annotations

_KINDS = {"resnets": 0, "attentions": 1, "upsamplers": 2}
IN_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_path(path: str, *, layers_per_block: int) -> str:
    """A module's path in diffusers -> in the original checkpoint; 2 layers a block in every published SDXL.

    The original counts its blocks through: each layer is one, and so is each downsampler, while an upsampler
    belongs to the layer before it.
    """
    if path in OUTSIDE:
        return OUTSIDE[path]
    half, *words = path.split(".")
    if half == "mid_block":
        kind, number, *inner = words
        place = 1 if kind == "attentions" else 2 * int(number)
        return ".".join(["middle_block", str(place), *_inside(kind, inner)])
    block, kind, number, *inner = words
    first = int(block) * (layers_per_block + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers_per_block + 1}.0.op"
    if half == "down_blocks":
        blocks, place = "input_blocks", first + 1 + int(number)
    else:
        blocks, place = "output_blocks", first + (layers_per_block if kind == "upsamplers" else int(number))
    return ".".join([blocks, str(place), str(_KINDS[kind]), *_inside(kind, inner)])


def _inside(kind: str, inner: list[str]) -> list[str]:
    return [IN_RESNET[name] for name in inner] if kind == "resnets" else inner
