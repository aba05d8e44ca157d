"""Which tensor of an original file each tensor of diffusers' transformer is.

A line names an original layer and the layers of diffusers that it is: one, or several one below the other.
`#` is a block's number, `$` the last one's, `~` a layer whose two halves (shift and scale) are swapped. What
is not named is called the same in both. Sources: the models' own code and diffusers' conversion functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

from lora_studio.families.original import Shapes
from lora_studio.families.original.names import TensorOrigin
from lora_studio.families.original.transformers import facts_of

_TWO_STREAMS = """
[double_blocks.# = transformer_blocks.#]
img_attn.qkv = attn.to_q attn.to_k attn.to_v
img_attn.norm.query_norm = attn.norm_q
img_attn.norm.key_norm = attn.norm_k
img_attn.proj = attn.to_out.0
txt_attn.qkv = attn.add_q_proj attn.add_k_proj attn.add_v_proj
txt_attn.norm.query_norm = attn.norm_added_q
txt_attn.norm.key_norm = attn.norm_added_k
txt_attn.proj = attn.to_add_out
"""
_EMBEDDERS = """
[]
img_in = x_embedder
txt_in = context_embedder
final_layer.linear = proj_out
"""
_STREAMS = f"""{_TWO_STREAMS}
img_mlp.0 = ff.net.0.proj
img_mlp.2 = ff.net.2
txt_mlp.0 = ff_context.net.0.proj
txt_mlp.2 = ff_context.net.2
img_mod.lin = norm1.linear
txt_mod.lin = norm1_context.linear
[single_blocks.# = single_transformer_blocks.#]
linear1 = attn.to_q attn.to_k attn.to_v proj_mlp
linear2 = proj_out
norm.query_norm = attn.norm_q
norm.key_norm = attn.norm_k
modulation.lin = norm.linear
{_EMBEDDERS}"""
_FLUX1 = """
time_in.in_layer = time_text_embed.timestep_embedder.linear_1
time_in.out_layer = time_text_embed.timestep_embedder.linear_2
vector_in.in_layer = time_text_embed.text_embedder.linear_1
vector_in.out_layer = time_text_embed.text_embedder.linear_2
guidance_in.in_layer = time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_text_embed.guidance_embedder.linear_2
final_layer.adaLN_modulation.1 ~ norm_out.linear
"""
_CHROMA = """
[distilled_guidance_layer.layers.# = distilled_guidance_layer.layers.#]
in_layer = linear_1
out_layer = linear_2
"""
_FLUX2 = f"""{_TWO_STREAMS}
img_mlp.0 = ff.linear_in
img_mlp.2 = ff.linear_out
txt_mlp.0 = ff_context.linear_in
txt_mlp.2 = ff_context.linear_out
[single_blocks.# = single_transformer_blocks.#]
linear1 = attn.to_qkv_mlp_proj
linear2 = attn.to_out
norm.query_norm = attn.norm_q
norm.key_norm = attn.norm_k
{_EMBEDDERS}
double_stream_modulation_img.lin = double_stream_modulation_img.linear
double_stream_modulation_txt.lin = double_stream_modulation_txt.linear
single_stream_modulation.lin = single_stream_modulation.linear
time_in.in_layer = time_guidance_embed.timestep_embedder.linear_1
time_in.out_layer = time_guidance_embed.timestep_embedder.linear_2
guidance_in.in_layer = time_guidance_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_guidance_embed.guidance_embedder.linear_2
final_layer.adaLN_modulation.1 ~ norm_out.linear
"""
_IN_Z_IMAGE_BLOCK = """
attention.qkv = attention.to_q attention.to_k attention.to_v
attention.q_norm = attention.norm_q
attention.k_norm = attention.norm_k
attention.out = attention.to_out.0
"""
_Z_IMAGE_BLOCKS = "".join(
    f"[{blocks}.# = {blocks}.#]{_IN_Z_IMAGE_BLOCK}"
    for blocks in ("layers", "noise_refiner", "context_refiner")
)
_Z_IMAGE = f"""{_Z_IMAGE_BLOCKS}[]
x_embedder = all_x_embedder.2-1
final_layer.linear = all_final_layer.2-1.linear
final_layer.adaLN_modulation.1 = all_final_layer.2-1.adaLN_modulation.1
"""
_SD3 = """
[joint_blocks.$ = transformer_blocks.$]
context_block.adaLN_modulation.1 ~ norm1_context.linear
[joint_blocks.# = transformer_blocks.#]
context_block.adaLN_modulation.1 = norm1_context.linear
context_block.attn.qkv = attn.add_q_proj attn.add_k_proj attn.add_v_proj
context_block.attn.ln_q = attn.norm_added_q
context_block.attn.ln_k = attn.norm_added_k
context_block.attn.proj = attn.to_add_out
context_block.mlp.fc1 = ff_context.net.0.proj
context_block.mlp.fc2 = ff_context.net.2
x_block.adaLN_modulation.1 = norm1.linear
x_block.attn.qkv = attn.to_q attn.to_k attn.to_v
x_block.attn.ln_q = attn.norm_q
x_block.attn.ln_k = attn.norm_k
x_block.attn.proj = attn.to_out.0
x_block.attn2.qkv = attn2.to_q attn2.to_k attn2.to_v
x_block.attn2.ln_q = attn2.norm_q
x_block.attn2.ln_k = attn2.norm_k
x_block.attn2.proj = attn2.to_out.0
x_block.mlp.fc1 = ff.net.0.proj
x_block.mlp.fc2 = ff.net.2
[]
pos_embed = pos_embed.pos_embed
x_embedder.proj = pos_embed.proj
t_embedder.mlp.0 = time_text_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_text_embed.timestep_embedder.linear_2
y_embedder.mlp.0 = time_text_embed.text_embedder.linear_1
y_embedder.mlp.2 = time_text_embed.text_embedder.linear_2
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 ~ norm_out.linear
"""
_IN_KREA2_BLOCK = """
attn.wq = attn.to_q
attn.wk = attn.to_k
attn.wv = attn.to_v
attn.wo = attn.to_out.0
attn.gate = attn.to_gate
attn.qknorm.qnorm = attn.norm_q
attn.qknorm.knorm = attn.norm_k
mlp.gate = ff.gate
mlp.up = ff.up
mlp.down = ff.down
prenorm = norm1
postnorm = norm2
mod.lin = scale_shift_table
"""
_KREA2_BLOCKS = "".join(
    f"[{original}.# = {own}.#]{_IN_KREA2_BLOCK}"
    for original, own in (
        ("blocks", "transformer_blocks"),
        ("txtfusion.layerwise_blocks", "text_fusion.layerwise_blocks"),
        ("txtfusion.refiner_blocks", "text_fusion.refiner_blocks"),
    )
)
_KREA2 = f"""{_KREA2_BLOCKS}[]
first = img_in
tmlp.0 = time_embed.linear_1
tmlp.2 = time_embed.linear_2
tproj.1 = time_mod_proj
txtmlp.0 = txt_in.norm
txtmlp.1 = txt_in.linear_1
txtmlp.3 = txt_in.linear_2
txtfusion.projector = text_fusion.projector
last.linear = final_layer.linear
last.norm = final_layer.norm
last.modulation.lin = final_layer.scale_shift_table
"""
_ANIMA = """
[blocks.# = transformer_blocks.#]
self_attn.q_proj = attn1.to_q
self_attn.k_proj = attn1.to_k
self_attn.v_proj = attn1.to_v
self_attn.output_proj = attn1.to_out.0
self_attn.q_norm = attn1.norm_q
self_attn.k_norm = attn1.norm_k
cross_attn.q_proj = attn2.to_q
cross_attn.k_proj = attn2.to_k
cross_attn.v_proj = attn2.to_v
cross_attn.output_proj = attn2.to_out.0
cross_attn.q_norm = attn2.norm_q
cross_attn.k_norm = attn2.norm_k
mlp.layer1 = ff.net.0.proj
mlp.layer2 = ff.net.2
adaln_modulation_self_attn.1 = norm1.linear_1
adaln_modulation_self_attn.2 = norm1.linear_2
adaln_modulation_cross_attn.1 = norm2.linear_1
adaln_modulation_cross_attn.2 = norm2.linear_2
adaln_modulation_mlp.1 = norm3.linear_1
adaln_modulation_mlp.2 = norm3.linear_2
[]
x_embedder.proj.1 = patch_embed.proj
t_embedder.1.linear_1 = time_embed.t_embedder.linear_1
t_embedder.1.linear_2 = time_embed.t_embedder.linear_2
t_embedding_norm = time_embed.norm
final_layer.adaln_modulation.1 = norm_out.linear_1
final_layer.adaln_modulation.2 = norm_out.linear_2
final_layer.linear = proj_out
"""
TABLES = {
    **{"flux1": _STREAMS + _FLUX1, "chroma": _STREAMS + _CHROMA, "z_image": _Z_IMAGE, "sd3": _SD3},
    **{"flux2": _FLUX2, "krea2": _KREA2, "anima": _ANIMA},
    "qwen_image": "",  # diffusers has the original's names
}
_LAST = "transformer_blocks"  # whose last block `$` is


class _Place(NamedTuple):
    """Where a layer of diffusers lies: the original layer, those above it in there, whether it is swapped."""

    original: str
    above: tuple[str, ...]
    swapped: bool


def transformer_origins(table: str, shapes: Shapes, wanted: Shapes, prefix: str) -> dict[str, TensorOrigin]:
    """The diffusers name of every tensor of `wanted` -> where it lies in a file with `shapes` and `prefix`.

    A name that the file lacks leads to one that is not in `shapes`.
    """
    places, found = _places(table), {}
    last = max((int(n) for key in wanted for n in re.findall(rf"^{_LAST}\.(\d+)\.", key)), default=0)
    for key in wanted:
        layer, _, end = key.rpartition(".")
        number = next(iter(re.findall(r"\.(\d+)(?=\.)", f".{layer}.")), "")
        place, ending = _look_up(places, key, number, last), ""
        if place is None and (of_layer := _look_up(places, layer, number, last)) is not None:
            place, ending = of_layer, f".{end}"
        place = place or _Place(key, (), swapped=False)
        original = _spelled(place.original + ending, shapes)
        above = [wanted.get(f"{one}{ending}", (0,)) for one in place.above]
        start = sum(shape[0] for shape in above)
        given, own = shapes.get(original, wanted[key]), wanted[key]
        in_line = own if len(given) == 1 < len(own) else None
        whole = given[:1] == own[:1] or in_line is not None
        rows = None if whole or not own else (start, start + own[0])
        found[key] = TensorOrigin(prefix + original, rows=rows, swapped=place.swapped, sides=in_line)
    return found


def _look_up(places: Mapping[str, _Place], name: str, number: str, last: int) -> _Place | None:
    """Of a layer by its name, in the last block or in any."""
    marks = ("$", "#") if number and int(number) == last else ("#",)
    for mark in marks if number else ("",):
        found = places.get(re.sub(rf"\.{number}(?=\.|$)", f".{mark}", name, count=1) if mark else name)
        if found is not None:
            original = found.original.replace(mark, number) if mark else found.original
            above = tuple(one.replace(mark, number) if mark else one for one in found.above)
            return _Place(original, above, found.swapped)
    return places.get(name)


def _spelled(name: str, shapes: Shapes) -> str:
    """A norm's numbers are called `scale`, and `weight` where ComfyUI saved them."""
    scale = re.sub(r"\.weight$", ".scale", name)
    return scale if name not in shapes and scale in shapes else name


@cache
def _places(table: str) -> dict[str, _Place]:
    own = facts_of(table)
    return dict(_read(TABLES[table] if own is None else own.layers))


def _read(text: str) -> Iterator[tuple[str, _Place]]:
    before, after = "", ""
    for line in filter(None, text.split("\n")):
        if line.startswith("["):
            before, _, after = (f"{one}." if one else "" for one in line[1:-1].partition(" = "))
            continue
        original, mark, layers = line.partition(" ~ " if " ~ " in line else " = ")
        names = [after + one for one in layers.split()]
        for place, name in enumerate(names):
            yield name, _Place(before + original, tuple(names[:place]), mark == " ~ ")
