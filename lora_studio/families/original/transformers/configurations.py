"""The configurations, in diffusers' words, of a transformer and its VAE: read off their tensors' shapes.

What no shape shows is as in the published ones. A transformer as wide as the published has as many blocks, so
that missing ones are found; one of another width, such as a miniature, has those that its names show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lora_studio.errors import BaseModelError
from lora_studio.families.configuration import facts_of_shapes
from lora_studio.families.original import Shapes
from lora_studio.families.original.transformers import (
    ADAPTER,
    GUIDANCE,
    Found,
    TransformerKind,
    block_counts,
)

Configuration = dict[str, Any]
# Family -> width -> how many blocks its published ones have. FLUX.1 also as Flex and Lite, and as Mini.
_DEPTHS: Mapping[str, Mapping[int, tuple[Mapping[str, int], ...]]] = {
    "z_image": {3840: ({"layers": 30, "noise_refiner": 2, "context_refiner": 2},)},
    "flux1": {3072: tuple({"double_blocks": d, "single_blocks": s} for d, s in ((19, 38), (8, 38), (5, 10)))},
    "chroma": {3072: ({"double_blocks": 19, "single_blocks": 38, "norms": 5},)},
    "flux2": {
        width: ({"double_blocks": double, "single_blocks": single},)
        for width, double, single in ((3072, 5, 20), (4096, 8, 24), (6144, 8, 48))
    },
    "sd3": {1536: ({"joint_blocks": 24},), 2432: ({"joint_blocks": 38},)},
    "krea2": {6144: ({"blocks": 28, "layerwise_blocks": 2, "refiner_blocks": 2},)},
    "qwen_image": {3072: ({"transformer_blocks": 60},)},
    "anima": {2048: ({"blocks": 28},)},
}
_AXES = {  # sixteenths of a head's numbers
    **dict.fromkeys(("z_image", "krea2"), (4, 6, 6)),
    **dict.fromkeys(("flux1", "chroma", "qwen_image"), (2, 7, 7)),
    "flux2": (4, 4, 4, 4),
}
_SD3_HEAD = 64
ANIMA_PLACES: Configuration = {"rope_scale": [1.0, 4.0, 4.0], "extra_pos_embed_type": None}
_VAE_CHANNELS, _VAE_BLOCKS, _MOST_BLOCKS = (128, 256, 512, 512), 2, 16


def transformer_configuration(name: str, found: Found) -> Configuration:
    """Of the transformer in the file called `name`. Raises BaseModelError for one that is not whole."""
    read, kind = Sizes(name, found.shapes), found.kind
    counts = block_counts(found.shapes)
    own = kind.facts
    values = own.configure(read, counts) if own else _READERS[kind.names](read, counts)
    _check_depth(name, kind, read(own.first[0]) if own else _WIDTH[kind.names](read), counts)
    return {"_class_name": kind.class_name, **values}


class Sizes:
    """Sizes read from shapes, with a sentence for what is missing."""

    def __init__(self, name: str, shapes: Shapes) -> None:
        self.name, self.shapes = name, shapes

    def __call__(self, *names: str, axis: int = 0) -> int:
        """Of the first of these tensors that is there."""
        for one in names:
            if len(shape := self.shapes.get(one, ())) > axis and shape[axis]:
                return shape[axis]
        raise BaseModelError(
            f"{self.name} lacks the tensor {names[0]}, or it has no size; download the file again."
        )


def _check_depth(name: str, kind: TransformerKind, width: int, counts: Mapping[str, int]) -> None:
    if kind.facts is None:
        known = _DEPTHS[kind.names].get(width, ())
    else:
        known = (kind.facts.depths[width],) if width in kind.facts.depths else ()
    if known and not any(all(counts.get(key) == count for key, count in one.items()) for one in known):
        has = ", ".join(f"{counts.get(key, 0)} of {count} {key}" for key, count in known[0].items())
        raise BaseModelError(f"{name} is no whole {kind.title}: it has {has}; download the file again.")


_HEAD_OF_STREAM = tuple(f"double_blocks.0.img_attn.norm.key_norm.{end}" for end in ("scale", "weight"))
_WIDTH = {
    "z_image": lambda read: read("x_embedder.weight"),
    "flux1": lambda read: read("img_in.weight"),
    "chroma": lambda read: read("img_in.weight"),
    "flux2": lambda read: read("img_in.weight"),
    "sd3": lambda read: read("x_embedder.proj.weight"),
    "krea2": lambda read: read("first.weight"),
    "qwen_image": lambda read: read("img_in.weight"),
    "anima": lambda read: read("x_embedder.proj.1.weight"),
}


def _axes(table: str, head: int) -> list[int]:
    return [share * head // 16 for share in _AXES[table]]


def _z_image(read: Sizes, counts: Mapping[str, int]) -> Configuration:
    width, head = read("x_embedder.weight"), read("layers.0.attention.k_norm.weight")
    heads = width // head
    return {
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": read("x_embedder.weight", axis=1) // 4,
        "dim": width,
        "n_layers": counts.get("layers", 0),
        "n_refiner_layers": counts.get("noise_refiner", 0),
        "n_heads": heads,
        "n_kv_heads": heads,
        "cap_feat_dim": read("cap_embedder.1.weight", axis=1),
        "axes_dims": _axes("z_image", head),
        "axes_lens": [1536, 512, 512],
    }


def _streams(read: Sizes, counts: Mapping[str, int], table: str) -> Configuration:
    width, head = read("img_in.weight"), read(*_HEAD_OF_STREAM)
    return {
        "patch_size": 1,
        "in_channels": read("img_in.weight", axis=1),
        "num_layers": counts.get("double_blocks", 0),
        "num_single_layers": counts.get("single_blocks", 0),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": read("txt_in.weight", axis=1),
        "axes_dims_rope": _axes(table, head),
    }


def _flux1(read: Sizes, counts: Mapping[str, int]) -> Configuration:
    return _streams(read, counts, "flux1") | {
        "pooled_projection_dim": read("vector_in.in_layer.weight", axis=1),
        "guidance_embeds": GUIDANCE in read.shapes,
    }


def _flux2(read: Sizes, counts: Mapping[str, int]) -> Configuration:
    return _streams(read, counts, "flux2") | {"guidance_embeds": GUIDANCE in read.shapes}


def _chroma(read: Sizes, counts: Mapping[str, int]) -> Configuration:
    return _streams(read, counts, "chroma") | {
        "approximator_num_channels": read("distilled_guidance_layer.in_proj.weight", axis=1),
        "approximator_hidden_dim": read("distilled_guidance_layer.in_proj.weight"),
        "approximator_layers": counts.get("norms", 0),
    }


def _sd3(read: Sizes, counts: Mapping[str, int]) -> Configuration:
    width, depth = read("x_embedder.proj.weight"), counts.get("joint_blocks", 0)
    normed = "joint_blocks.0.x_block.attn.ln_q.weight" in read.shapes
    head = read("joint_blocks.0.x_block.attn.ln_q.weight") if normed else _SD3_HEAD
    dual = [n for n in range(depth) if f"joint_blocks.{n}.x_block.attn2.qkv.weight" in read.shapes]
    return {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": read("x_embedder.proj.weight", axis=1),
        "num_layers": depth,
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": read("context_embedder.weight", axis=1),
        "caption_projection_dim": width,
        "pooled_projection_dim": read("y_embedder.mlp.0.weight", axis=1),
        "out_channels": read("final_layer.linear.weight") // 4,
        "pos_embed_max_size": round(read("pos_embed", axis=1) ** 0.5),
        "dual_attention_layers": dual,
        "qk_norm": "rms_norm" if normed else None,
    }


def _krea2(read: Sizes, counts: Mapping[str, int]) -> Configuration:
    width, head = read("first.weight"), read(*_norms("blocks.0."))
    text = "txtfusion.layerwise_blocks.0."
    wide, of_text = read(f"{text}attn.wq.weight", axis=1), read(*_norms(text))
    return {
        "in_channels": read("first.weight", axis=1),
        "num_layers": counts.get("blocks", 0),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "num_key_value_heads": read("blocks.0.attn.wk.weight") // head,
        "intermediate_size": read("blocks.0.mlp.up.weight"),
        "timestep_embed_dim": read("tmlp.0.weight", axis=1),
        "text_hidden_dim": wide,
        "num_text_layers": read("txtfusion.projector.weight", axis=1),
        "text_num_attention_heads": wide // of_text,
        "text_num_key_value_heads": read(f"{text}attn.wk.weight") // of_text,
        "text_intermediate_size": read(f"{text}mlp.up.weight"),
        "num_layerwise_text_blocks": counts.get("layerwise_blocks", 0),
        "num_refiner_text_blocks": counts.get("refiner_blocks", 0),
        "axes_dims_rope": _axes("krea2", head),
    }


def _norms(block: str) -> tuple[str, ...]:
    return tuple(f"{block}attn.qknorm.knorm.{end}" for end in ("scale", "weight"))


def _qwen_image(read: Sizes, counts: Mapping[str, int]) -> Configuration:
    width, head = read("img_in.weight"), read("transformer_blocks.0.attn.norm_k.weight")
    return {
        "patch_size": 2,
        "in_channels": read("img_in.weight", axis=1),
        "out_channels": read("proj_out.weight") // 4,
        "num_layers": counts.get("transformer_blocks", 0),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": read("txt_in.weight", axis=1),
        "axes_dims_rope": _axes("qwen_image", head),
    }


def _anima(read: Sizes, counts: Mapping[str, int]) -> Configuration:
    """Beside the latents' channels it reads one of a mask."""
    width, head = read("x_embedder.proj.1.weight"), read("blocks.0.self_attn.k_norm.weight")
    return {
        "in_channels": read("x_embedder.proj.1.weight", axis=1) // 4 - 1,
        "out_channels": read("final_layer.linear.weight") // 4,
        "num_layers": counts.get("blocks", 0),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "mlp_ratio": read("blocks.0.mlp.layer1.weight") / width,
        "text_embed_dim": read("blocks.0.cross_attn.k_proj.weight", axis=1),
        "adaln_lora_dim": read("blocks.0.adaln_modulation_self_attn.1.weight"),
        **ANIMA_PLACES,
    }


def conditioner_configuration(name: str, found: Found) -> Configuration:
    """Of the text conditioner in the file called `name`. Raises BaseModelError for one that is not whole."""
    own = {key.removeprefix(ADAPTER): one for key, one in found.shapes.items() if key.startswith(ADAPTER)}
    read = Sizes(name, own)
    width = read("blocks.0.cross_attn.q_proj.weight")
    return {
        "_class_name": found.kind.conditioner,
        "source_dim": read("blocks.0.cross_attn.k_proj.weight", axis=1),
        "target_dim": read("embed.weight", axis=1),
        "target_vocab_size": read("embed.weight"),
        "model_dim": width,
        "num_layers": block_counts(own).get("blocks", 0),
        "num_attention_heads": width // read("blocks.0.cross_attn.q_norm.weight"),
        "mlp_ratio": read("blocks.0.mlp.0.weight") / width,
    }


_READERS: Mapping[str, Callable[[Sizes, Mapping[str, int]], Configuration]] = {
    "z_image": _z_image,
    "flux1": _flux1,
    "chroma": _chroma,
    "flux2": _flux2,
    "sd3": _sd3,
    "krea2": _krea2,
    "qwen_image": _qwen_image,
    "anima": _anima,
}


def vae_configuration(kind: TransformerKind, shapes: Shapes | None) -> Configuration:
    """Of the VAE in a file's `shapes` (without a prefix) of a base of that kind; None: of the published."""
    if kind.vae != "AutoencoderKL":  # all else is as its class has it by itself
        return {"_class_name": kind.vae, **(vae_sizes(shapes) if shapes is not None else {})}
    scale, shift = kind.latents
    return {
        **{"_class_name": kind.vae, "in_channels": 3, "out_channels": 3, "latent_channels": 16},
        **_levels(_VAE_CHANNELS, _VAE_BLOCKS),
        **(vae_sizes(shapes) if shapes is not None else {}),
        "sample_size": kind.side,
        "scaling_factor": scale,
        "shift_factor": shift,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def vae_sizes(shapes: Shapes) -> Configuration:
    """Those that a VAE's tensors show, in the original or in diffusers' layout."""
    for name in ("encoder.conv1.weight", "encoder.conv_in.weight"):
        if len(shape := shapes.get(name, ())) == 5:  # of a video's
            return {"base_dim": shape[0]}
    facts, level = facts_of_shapes("vae", shapes), 0
    if facts.get("block_out_channels"):
        sizes = _levels(facts["block_out_channels"], facts["layers_per_block"][0])
    else:
        channels = []
        while first := shapes.get(f"encoder.down.{level}.block.0.conv1.weight"):
            channels.append(first[0])
            level += 1
        blocks = sum(
            f"encoder.down.0.block.{number}.conv1.weight" in shapes for number in range(_MOST_BLOCKS)
        )
        sizes = _levels(channels, blocks)
    latents = {"latent_channels": facts["latent_channels"]} if "latent_channels" in facts else {}
    return sizes | latents


def _levels(channels: Sequence[int], blocks: int) -> Configuration:
    return {
        "block_out_channels": list(channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": blocks,
    }


def scheduler_configuration(found: Found, *, distilled: bool) -> Configuration:
    """That of the published base, for sampling and for the shift that it is trained with."""
    values: Configuration = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    dynamic = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    if found.kind.facts is not None:
        return values | dict(found.kind.facts.scheduler)
    table = found.kind.names
    if table == "flux1" and GUIDANCE not in found.shapes:
        return values | {"shift": 1.0, "use_dynamic_shifting": False}
    if table == "krea2":
        line = dynamic | {"max_image_seq_len": 6400}
        return values | {"shift": 1.0, "use_dynamic_shifting": True, **line}
    if table == "qwen_image":
        line = dynamic | {"max_shift": 0.9, "max_image_seq_len": 8192}
        return values | {"shift": 1.0, "use_dynamic_shifting": True, "shift_terminal": 0.02, **line}
    if table in ("flux1", "chroma", "flux2"):
        return values | {"shift": 3.0, "use_dynamic_shifting": True, **dynamic}
    static = 6.0 if table == "z_image" and not distilled else 3.0
    return values | {"shift": static, "use_dynamic_shifting": False}
