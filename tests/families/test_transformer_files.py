"""Bases of transformer families in the files that UIs have: recognised, loaded, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers.loaders.single_file_utils as converters
import pytest
import torch
from torch import Tensor, nn
from transformer_files import (
    PREFIX,
    TEXTS,
    all_in_one,
    new_parts,
    original_text,
    original_transformer,
    original_vae,
    published_shapes,
    write,
    write_tokenizers,
)

from lora_studio.errors import BaseModelError
from lora_studio.families.loading import load_base
from lora_studio.families.loading.published import published_base
from lora_studio.families.loading.single_file import Loaded, SingleFileOptions, named_distilled
from lora_studio.families.loading.transformer_file import open_transformer_file
from lora_studio.families.loading.vae import load_vae
from lora_studio.families.original.glance import glance_at_base
from lora_studio.families.original.transformers import PREFIXES, find_transformer
from lora_studio.families.original.transformers.configurations import transformer_configuration
from lora_studio.families.original.transformers.names import transformer_origins
from lora_studio.recipe.load import load_recipe
from lora_studio.training.prepare.base_model import file_options

TRAINED = (
    "z_image",
    "flux1",
    "chroma",
    "sd3",
    "qwen_image",
    "flux2_klein",
    "flux2_dev",
    "krea2",
    "lumina2",
    "anima",
)
PUBLISHED = {  # list of tensors -> title, and the table of names
    "z_image": ("Z-Image", "z_image"),
    "flux1": ("FLUX.1", "flux1"),
    "chroma": ("Chroma", "chroma"),
    "sd3_medium": ("Stable Diffusion 3", "sd3"),
    "sd35_medium": ("Stable Diffusion 3", "sd3"),
    "sd35_large": ("Stable Diffusion 3", "sd3"),
    "flux2_klein_4b": ("FLUX.2 klein", "flux2"),
    "flux2_klein_9b": ("FLUX.2 klein", "flux2"),
    "flux2_dev": ("FLUX.2 dev", "flux2"),
    "krea2": ("Krea 2", "krea2"),
    "qwen_image": ("Qwen-Image", "qwen_image"),
    "anima": ("Anima", "anima"),
    "lumina2": ("Lumina-Image 2", "lumina2"),
}
Parts = dict[str, nn.Module]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Parts, Path]]:
    """Family -> a miniature's networks, and a folder with its file `all.safetensors` and its tokenizers."""
    found = {}
    for family in TRAINED:
        folder, parts = tmp_path_factory.mktemp(family), new_parts(family)
        write(folder / "all.safetensors", all_in_one(family, parts))
        found[family] = (parts, write_tokenizers(family, folder))
    return found


def load(path: Path, **options: Any) -> Loaded:
    dtype = options.pop("dtype", None)
    options.setdefault("tokenizer", path.parent)
    file = open_transformer_file(path, SingleFileOptions(**options))
    assert file is not None
    return file.load(dtype=dtype)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(BaseModelError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message and str(path.parent) not in message
    return message


def said(part: nn.Module) -> dict[str, Any]:
    """A part's configuration, without what the library notes of itself; lists as lists."""
    values = json.loads(json.dumps(dict(part.config)))  # type: ignore[arg-type]
    return {key: value for key, value in values.items() if not key.startswith("_")}


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert not [key for key in wanted if not torch.equal(found[key].float(), wanted[key].float())]


# Headers at published sizes


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_layout_is_recognised_with_each_prefix(name: str, prefix: str) -> None:
    title, table = PUBLISHED[name]
    shapes = {prefix + key: shape for key, shape in published_shapes(name).items()}
    beside = {
        "text_encoders.t5xxl.transformer.shared.weight": (32128, 4096),
        "vae.decoder.conv_in.bias": (512,),
    }
    for content in (shapes, beside | shapes):
        found = find_transformer("x.safetensors", content)
        assert found is not None
        assert (found.kind.title, found.kind.names, found.prefix) == (title, table, prefix)
        assert found.shapes.keys() >= published_shapes(name).keys()


def test_norms_are_called_weight_where_comfyui_saved_them() -> None:
    for name in ("flux1", "chroma", "flux2_dev"):
        shapes = {
            key.replace("norm.scale", "norm.weight"): one for key, one in published_shapes(name).items()
        }
        found = find_transformer("x", shapes)
        assert found is not None and (found.kind.title, found.kind.names) == PUBLISHED[name]


SIZES: dict[str, dict[str, Any]] = {  # of the published configurations, as FAMILIES' makers wrote them
    "z_image": {"dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "axes_dims": [32, 48, 48]},
    "flux1": {
        **{"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "guidance_embeds": True},
        **{"joint_attention_dim": 4096, "pooled_projection_dim": 768, "axes_dims_rope": [16, 56, 56]},
    },
    "chroma": {"approximator_hidden_dim": 5120, "approximator_layers": 5, "approximator_num_channels": 64},
    "krea2": {
        **{"num_layers": 28, "num_attention_heads": 48, "num_key_value_heads": 12, "attention_head_dim": 128},
        **{"intermediate_size": 16384, "text_hidden_dim": 2560, "text_num_attention_heads": 20},
        **{"text_intermediate_size": 6912, "num_text_layers": 12, "axes_dims_rope": [32, 48, 48]},
    },
    "flux2_klein_4b": {
        **{"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "guidance_embeds": False},
        **{"joint_attention_dim": 7680, "axes_dims_rope": [32, 32, 32, 32], "in_channels": 128},
    },
    "flux2_klein_9b": {
        **{"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "guidance_embeds": False},
        "joint_attention_dim": 12288,
    },
    "flux2_dev": {
        **{"num_layers": 8, "num_single_layers": 48, "num_attention_heads": 48, "guidance_embeds": True},
        "joint_attention_dim": 15360,
    },
    "sd3_medium": {"num_layers": 24, "num_attention_heads": 24, "pos_embed_max_size": 192, "qk_norm": None},
    "sd35_medium": {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": [*range(13)]},
    "sd35_large": {"num_layers": 38, "num_attention_heads": 38, "dual_attention_layers": []},
    "lumina2": {
        **{"hidden_size": 2304, "num_layers": 26, "num_refiner_layers": 2, "num_attention_heads": 24},
        **{"num_kv_heads": 8, "cap_feat_dim": 2304, "axes_dim_rope": [32, 32, 32], "in_channels": 16},
    },
    "anima": {
        **{"num_layers": 28, "attention_head_dim": 128, "num_attention_heads": 16, "in_channels": 16},
        **{"out_channels": 16, "text_embed_dim": 1024, "adaln_lora_dim": 256, "mlp_ratio": 4.0},
        **{"rope_scale": [1.0, 4.0, 4.0], "extra_pos_embed_type": None},
    },
    "qwen_image": {
        **{"num_layers": 60, "attention_head_dim": 128, "num_attention_heads": 24, "out_channels": 16},
        **{"in_channels": 64, "joint_attention_dim": 3584, "axes_dims_rope": [16, 56, 56]},
    },
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_give_the_published_configurations(name: str) -> None:
    found = find_transformer("x", published_shapes(name))
    assert found is not None
    values = transformer_configuration("x", found)
    assert values | SIZES[name] == values


def test_schnell_has_no_guidance_and_no_shift(bases: Any, tmp_path: Path) -> None:
    parts, folder = bases["flux1"]
    tensors = {k: one for k, one in all_in_one("flux1", parts).items() if "guidance_in" not in k}
    loaded = load(write(tmp_path / "schnell.safetensors", tensors), tokenizer=folder)
    assert loaded.configurations["transformer"]["guidance_embeds"] is False
    assert loaded.configurations["scheduler"]["shift"] == 1.0
    assert not loaded.configurations["scheduler"]["use_dynamic_shifting"]


# Names, beside diffusers' own converters


@pytest.mark.parametrize("name", SIZES)
def test_every_tensor_is_what_diffusers_converter_makes_of_it(name: str) -> None:
    """At published heights, and one number wide: what lies in which rows shows, and takes no memory."""
    shapes = {key: one for key, one in published_shapes(name).items() if not key.startswith("llm_adapter.")}
    narrow = {key: (shape[0], *((1,) * (len(shape) - 1))) for key, shape in shapes.items()}
    if "pos_embed" in narrow:
        narrow["pos_embed"] = (1, 9, 1)
    rng = torch.Generator().manual_seed(0)
    tensors = {key: torch.rand(shape, generator=rng) for key, shape in narrow.items()}
    table = PUBLISHED[name][1]
    theirs = dict(tensors)
    names = {"z_image": "z_image", "flux1": "flux", "chroma": "chroma", "sd3": "sd3", "flux2": "flux2"}
    names["krea2"] = "krea2"
    names["anima"] = "cosmos"
    if table == "lumina2":
        theirs = converters.convert_lumina2_to_diffusers(theirs)
    if converter := names.get(table, ""):
        theirs = getattr(converters, f"convert_{converter}_transformer_checkpoint_to_diffusers")(theirs)
    origins = transformer_origins(table, narrow, {key: tuple(one.shape) for key, one in theirs.items()}, "")
    assert_equal({key: one.take(tensors[one.name]) for key, one in origins.items()}, theirs)
    assert {one.name for one in origins.values()} == narrow.keys()


# Loaded


@pytest.mark.parametrize("family", TRAINED)
def test_every_tensor_of_an_all_in_one_file_is_the_miniatures(family: str, bases: Any) -> None:
    parts, folder = bases[family]
    loaded = load(folder / "all.safetensors")
    assert loaded.parts.keys() == parts.keys()
    for name, module in parts.items():
        own = loaded.parts[name]
        assert type(own) is type(module)
        assert_equal(own.state_dict(), module.state_dict())
        assert not any(tensor.is_meta for tensor in (*own.parameters(), *own.buffers()))
    for name in ("transformer", "vae"):
        assert said(loaded.parts[name]) == said(parts[name])


@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
@pytest.mark.parametrize("family", TRAINED)
def test_a_transformer_alone_with_text_encoders_and_vae_in_files(
    family: str, prefix: str, bases: Any, tmp_path: Path
) -> None:
    parts, folder = bases[family]
    alone = {prefix + key: one for key, one in original_transformer(family, parts).items()}
    path = write(tmp_path / "model.safetensors", alone)
    texts = [
        write(tmp_path / f"{name}.safetensors", original_text(parts[part]))
        for part, name in TEXTS[family].items()
    ]
    vae = write(tmp_path / "ae.safetensors", original_vae(parts["vae"]))
    names = tuple(str(one) for one in reversed(texts))
    loaded = load(path, tokenizer=folder, text_encoders=names, vae=str(vae), dtype=torch.bfloat16)
    for name, module in parts.items():
        if name != "vae":
            whole = family == "krea2" and name == "transformer"  # whose norms stay in float32
            halved = {
                key: one if whole and "norm" in key else one.to(torch.bfloat16)
                for key, one in module.state_dict().items()
            }
            assert_equal(loaded.parts[name].state_dict(), halved)
    module = load_vae(str(vae), loaded.parts["vae"])  # type: ignore[arg-type]
    assert_equal(module.part.state_dict(), parts["vae"].state_dict())


def test_text_encoders_come_from_the_folder_of_a_base_or_of_one(bases: Any, tmp_path: Path) -> None:
    parts, _ = bases["flux1"]
    index = {"_class_name": "FluxPipeline"}
    for part in TEXTS["flux1"]:
        parts[part].save_pretrained(tmp_path / part)
        index[part] = ["transformers", type(parts[part]).__name__]  # type: ignore[assignment]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    alone = {PREFIX + key: one for key, one in original_transformer("flux1", parts).items()}
    alone |= {f"vae.{key}": one for key, one in original_vae(parts["vae"]).items()}
    path = write(tmp_path / "model.safetensors", alone)
    write_tokenizers("flux1", tmp_path)
    each = tuple(str(tmp_path / part) for part in TEXTS["flux1"])
    for names in ((str(tmp_path),), each):
        loaded = load(path, tokenizer=None, text_encoders=names)
        for part in TEXTS["flux1"]:
            assert_equal(loaded.parts[part].state_dict(), parts[part].state_dict())


def test_what_a_file_lacks_is_named_with_its_setting(bases: Any, tmp_path: Path) -> None:
    parts, folder = bases["sd3"]
    alone = {PREFIX + key: one for key, one in original_transformer("sd3", parts).items()}
    path = write(tmp_path / "sd3.safetensors", alone)
    message = refusal(path)
    assert (
        "holds Stable Diffusion 3 without CLIP-L, CLIP-G, T5-XXL and a VAE: set base.text_encoder" in message
    )
    whole = all_in_one("sd3", parts)
    path = write(tmp_path / "no_t5.safetensors", {k: one for k, one in whole.items() if "t5xxl" not in k})
    message = refusal(path, tokenizer=folder)
    assert "without T5-XXL: set base.text_encoder to" in message and "base.vae" not in message


def test_a_missing_tokenizer_is_named_with_what_has_it(bases: Any) -> None:
    message = refusal(bases["z_image"][1] / "all.safetensors", tokenizer=None)
    assert message.startswith("the tokenizer of Qwen3 is in no file of a text encoder: set base.tokenizer")


def test_a_clip_without_its_projection_is_as_one_that_changes_nothing(bases: Any, tmp_path: Path) -> None:
    parts, folder = bases["sd3"]
    name = "text_encoders.clip_l.transformer.text_projection.weight"
    whole = {key: one for key, one in all_in_one("sd3", parts).items() if key != name}
    loaded = load(write(tmp_path / "base.safetensors", whole), tokenizer=folder)
    projection = loaded.parts["text_encoder"].text_projection.weight
    assert torch.equal(projection, torch.eye(len(projection)))


@pytest.mark.parametrize(
    ("name", "is_distilled"),
    [
        ("flux-2-klein-4b", True),
        ("flux-2-klein-base-4b", False),
        ("FLUX.2-klein-9B", True),
        ("flux2_klein_base_9b_fp8", False),
        ("flux2-dev", False),
    ],
)
def test_of_klein_the_one_that_is_called_base_is_not_distilled(name: str, is_distilled: bool) -> None:
    assert named_distilled(name) == is_distilled


@pytest.mark.parametrize(("name", "shift"), [("z_image_turbo_bf16", 3.0), ("z_image_bf16", 6.0)])
def test_a_distilled_base_is_told_by_its_name(name: str, shift: float, bases: Any, tmp_path: Path) -> None:
    parts, folder = bases["z_image"]
    path = write(tmp_path / f"{name}.safetensors", all_in_one("z_image", parts))
    file = open_transformer_file(path, SingleFileOptions(tokenizer=folder))
    assert file is not None and file.configurations["scheduler"]["shift"] == shift
    other = open_transformer_file(path, SingleFileOptions(tokenizer=folder, distilled=shift == 6.0))
    assert other is not None and other.configurations["scheduler"]["shift"] == 9.0 - shift


# Weights of 8 bits


def to_fp8(tensors: Mapping[str, Tensor], ending: str = "") -> dict[str, Tensor]:
    """Matrices in 8 bits, with a scale beside each where there is an `ending`."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not key.startswith(PREFIX) or tensor.dim() != 2 or "pad_token" in key:
            found[key] = tensor
            continue
        scale = tensor.abs().max() / 448 if ending else torch.ones(())
        found[key] = (tensor / scale).to(torch.float8_e4m3fn)
        if ending:
            found[key.removesuffix(".weight") + ending] = scale
    return found


@pytest.mark.parametrize("family", ["z_image", "flux1", "qwen_image", "flux2_klein", "flux2_dev"])
@pytest.mark.parametrize("ending", ["", ".weight_scale", ".scale_weight"])
def test_weights_of_8_bits_are_multiplied_with_their_scales(
    family: str, ending: str, bases: Any, tmp_path: Path
) -> None:
    parts, folder = bases[family]
    tensors = to_fp8(all_in_one(family, parts), ending)
    wanted = {}
    for key, tensor in tensors.items():
        scale = (
            tensors.get(key.removesuffix(".weight") + ending) if ending and key.endswith(".weight") else None
        )
        if ending not in key[-len(ending) :] or not ending:
            wanted[key] = tensor.float() if scale is None else tensor.float() * scale
    marks = {PREFIX + "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    if ending == ".weight_scale":
        said = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
        layers = [key.removesuffix(ending) for key in tensors if key.endswith(ending)]
        marks = {f"{layer}.comfy_quant": said for layer in layers}
        marks |= {f"{layer}.input_scale": torch.ones(()) for layer in layers}
    plain = load(write(tmp_path / "plain.safetensors", wanted), tokenizer=folder)
    eight = load(write(tmp_path / "fp8.safetensors", tensors | (marks if ending else {})), tokenizer=folder)
    assert_equal(eight.parts["transformer"].state_dict(), plain.parts["transformer"].state_dict())
    error = (
        eight.parts["transformer"].state_dict()[_SOME[family]]
        - parts["transformer"].state_dict()[_SOME[family]]
    )
    assert 0 < error.abs().max() < 0.3
    assert ("multiplied with their scales" in eight.notes[0]) == bool(ending)


_SOME = {
    "z_image": "layers.0.attention.to_k.weight",
    "flux1": "single_transformer_blocks.0.proj_mlp.weight",
    "qwen_image": "transformer_blocks.0.img_mlp.net.2.weight",
    "flux2_klein": "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight",
    "flux2_dev": "transformer_blocks.0.ff.linear_in.weight",
}


# Refused by name

LAYER = f"{PREFIX}layers.0.attention.qkv"
QUANTIZED = {
    "NVFP4": {f"{LAYER}.weight_scale_2": (1,)},
    "bitsandbytes (NF4)": {f"{LAYER}.weight.quant_state.bitsandbytes__nf4": (2,)},
    "SVDQuant (Nunchaku)": {f"{LAYER}.qweight": (4, 4)},
    "MXFP8 or another of scales by blocks": {f"{LAYER}.weight_scale": (96, 2)},
}


@pytest.mark.parametrize("what", QUANTIZED)
def test_other_formats_of_few_bits_are_refused_by_name(what: str, bases: Any, tmp_path: Path) -> None:
    parts, folder = bases["z_image"]
    more = {key: torch.zeros(shape) for key, shape in QUANTIZED[what].items()}
    tensors = to_fp8(all_in_one("z_image", parts)) | more
    message = refusal(write(tmp_path / "q.safetensors", tensors), tokenizer=folder)
    assert message == (
        f"q.safetensors has its weights in {what}, which cannot be trained on; take the file in bf16, fp16, "
        "fp8 or fp8_scaled of the same base."
    )


def test_formats_that_marks_name_are_refused_by_name(bases: Any, tmp_path: Path) -> None:
    parts, folder = bases["z_image"]
    for name in ("mxfp8", "nvfp4", "int8_tensorwise"):
        said = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
        tensors = all_in_one("z_image", parts) | {f"{LAYER}.comfy_quant": said}
        message = refusal(write(tmp_path / "q.safetensors", tensors), tokenizer=folder)
        assert f"has its weights in {name.upper()}, which cannot be trained on" in message
    path = write(
        tmp_path / "q.safetensors", all_in_one("z_image", parts) | {f"{LAYER}.comfy_quant": said[:9]}
    )
    assert "in a format that" in refusal(path, tokenizer=folder)
    whole = all_in_one("z_image", parts)
    path = write(tmp_path / "q.safetensors", whole | {f"{LAYER}.weight": whole[f"{LAYER}.weight"].char()})
    assert "has its weights in whole numbers of 8 bits" in refusal(path, tokenizer=folder)


def test_a_gguf_file_is_refused_with_what_to_take(tmp_path: Path) -> None:
    path = tmp_path / "flux1-dev-Q8_0.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(BaseModelError, match=r"a GGUF file.*get the \.safetensors version of the model"):
        load_base(str(path))


def header(name: str, changes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {PREFIX + key: shape for key, shape in (published_shapes(name) | changes).items()}


VARIANTS = [
    (
        "flux1",
        {"img_in.weight": (3072, 384)},
        "FLUX.1 Fill: its first layer reads 384 numbers a token, not 64",
    ),
    ("flux1", {"img_in.weight": (3072, 128)}, "FLUX.1 Canny or Depth (control)"),
    ("flux1", {"img_in.weight": (3072, 448)}, "FLUX.1 Fill with control"),
    ("flux1", {"img_in.weight": (3072, 196)}, "a variant with further inputs: its first layer reads 196"),
    ("flux1", {"controlnet_blocks.0.weight": (4, 4)}, "a ControlNet of FLUX.1, which steers a base"),
    ("chroma", {"nerf_blocks.0.param_generator.weight": (4, 4)}, "Chroma Radiance, which makes pixels"),
    ("z_image", {"dec_net.cond_embed.weight": (4, 4)}, "a Z-Image that makes pixels"),
    ("z_image", {"siglip_embedder.0.weight": (4,)}, "Z-Image Omni or Edit, which also reads images"),
    ("z_image", {"control_layers.0.after_proj.weight": (4, 4)}, "a ControlNet of Z-Image"),
    (
        "z_image",
        {"x_embedder.weight": (3840, 128)},
        "a variant with further inputs: its first layer reads 128",
    ),
    ("qwen_image", {"time_text_embed.addition_t_embedding.weight": (2, 4)}, "Qwen-Image Layered"),
    ("qwen_image", {"__index_timestep_zero__": (1,)}, "Qwen-Image Edit, which edits an image"),
    (
        "qwen_image",
        {"img_in.weight": (3072, 132)},
        "a variant with further inputs: its first layer reads 132",
    ),
    ("qwen_image", {"controlnet_blocks.0.weight": (4, 4)}, "a ControlNet of Qwen-Image"),
    (
        "anima",
        {"x_embedder.proj.1.weight": (2048, 72)},
        "a variant with further inputs: its first layer reads 72 numbers a token, not 68",
    ),
    ("anima", {"control_layers.0.weight": (4, 4)}, "a ControlNet of Anima"),
    (
        "flux2_klein_4b",
        {"img_in.weight": (3072, 256)},
        "a variant with further inputs: its first layer reads 256 numbers a token, not 128",
    ),
    ("flux2_dev", {"control_img_in.weight": (4, 4)}, "a ControlNet of FLUX.2 dev"),
    ("sd3_medium", {"x_embedder.proj.weight": (1536, 33, 2, 2)}, "an inpainting model of Stable Diffusion 3"),
    ("sd35_large", {"pos_embed_input.proj.weight": (4, 4)}, "a ControlNet of Stable Diffusion 3"),
]
STRANGERS = {
    "txt_in.individual_token_refiner.blocks.0.norm1.weight": "HunyuanVideo",
    "double_stream_blocks.0.block.attn1.to_q.weight": "HiDream",
    "double_layers.0.attn.w1q.weight": "AuraFlow",
    "blocks.0.cross_attn.norm_k.weight": "Wan",
    "y_embedder.y_proj.fc1.weight": "PixArt",
    "blocks.0.mlp.layer1.weight": "Cosmos",
    "txt_in.text_norm.weight": r"Qwen-Image 2\.1",
}
PIECES = {
    "single_transformer_blocks.0.attn.to_q.weight": "FLUX.1",
    "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight": "FLUX.2",
    "all_x_embedder.2-1.weight": "Z-Image",
}


@pytest.mark.parametrize(("name", "changes", "words"), VARIANTS)
def test_variants_with_other_inputs_are_refused_by_name(name: str, changes: Any, words: str) -> None:
    with pytest.raises(BaseModelError) as caught:
        find_transformer("base.safetensors", header(name, changes))
    assert str(caught.value).startswith(f"base.safetensors is {words}")


def test_other_models_and_pieces_of_folders_are_refused_by_name() -> None:
    for key, title in STRANGERS.items():
        with pytest.raises(BaseModelError, match=f"^x is {title}.*cannot be trained; supported: Z-Image"):
            find_transformer("x", {key: (4, 4)})
    for key, title in PIECES.items():
        with pytest.raises(BaseModelError, match=f"^x is the transformer of {title} in diffusers' layout"):
            find_transformer("x", {key: (4, 4)})
    assert find_transformer("x", {"diffusion_model.layers.0.attention.qkv.lora_A.weight": (4, 4)}) is None


@pytest.mark.parametrize(
    ("name", "lost", "words"),
    [
        ("z_image", "layers.29.", "it has 29 of 30 layers, 2 of 2 noise_refiner"),
        ("flux1", "single_blocks.37.", "it has 19 of 19 double_blocks, 37 of 38 single_blocks"),
        ("sd35_large", "joint_blocks.37.", "it has 37 of 38 joint_blocks"),
        ("flux2_klein_9b", "single_blocks.23.", "it has 8 of 8 double_blocks, 23 of 24 single_blocks"),
        ("krea2", "blocks.27.", "it has 27 of 28 blocks, 2 of 2 layerwise_blocks"),
        ("qwen_image", "transformer_blocks.59.", "it has 59 of 60 transformer_blocks"),
        ("lumina2", "context_refiner.1.", "it has 26 of 26 layers, 2 of 2 noise_refiner, 1 of 2 context"),
        ("anima", "blocks.27.", "it has 27 of 28 blocks"),
    ],
)
def test_a_published_base_without_its_last_block_is_no_smaller_one(name: str, lost: str, words: str) -> None:
    shapes = {key: shape for key, shape in published_shapes(name).items() if not key.startswith(lost)}
    found = find_transformer("x", shapes)
    assert found is not None
    with pytest.raises(BaseModelError, match=f"^x is no whole .*: {words}"):
        transformer_configuration("x", found)


def test_missing_odd_and_misshapen_tensors_are_named(bases: Any, tmp_path: Path) -> None:
    parts, folder = bases["flux1"]
    whole = all_in_one("flux1", parts)
    name = f"{PREFIX}single_blocks.1.linear1.weight"
    cases = {
        "lacks 4 tensors (transformer.single_transformer_blocks.1.": {
            k: v for k, v in whole.items() if k != name
        },
        "holds 1 tensor (model.diffusion_model.odd.weight) that no FLUX.1 base has": whole
        | {f"{PREFIX}odd.weight": torch.zeros(2)},
        "of another size in its transformer": whole | {name: whole[name][:-1]},
        "rows, not": whole | {name: torch.cat([whole[name], whole[name][:1]])},
    }
    for words, content in cases.items():
        assert words in refusal(write(tmp_path / "base.safetensors", content), tokenizer=folder)


def test_text_encoders_of_other_bases_are_refused_by_name(bases: Any, tmp_path: Path) -> None:
    parts, _ = bases["z_image"]
    alone = {PREFIX + key: one for key, one in original_transformer("z_image", parts).items()}
    path = write(tmp_path / "z.safetensors", alone)
    other = bases["chroma"][0]["text_encoder"]
    t5 = write(tmp_path / "t5.safetensors", original_text(other))
    assert "t5.safetensors is T5-XXL; Z-Image reads Qwen3." in refusal(
        path, text_encoders=(str(t5),), vae="x"
    )
    strangers = {
        "visual.blocks.0.mlp.fc1.weight": "a Qwen2-VL",
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": "UMT5",
        "vision_model.embeddings.class_embedding": "a CLIP with its image encoder",
    }
    for key, words in strangers.items():
        file = write(tmp_path / "other.safetensors", {key: torch.zeros(4)})
        assert f"other.safetensors holds {words}" in refusal(path, text_encoders=(str(file),), vae="x")
    nothing = write(tmp_path / "none.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(BaseModelError, match=r"there is no text encoder at base\.text_encoder"):
        load(path, text_encoders=(str(nothing),), vae="x")


def test_a_text_encoder_of_another_width_is_refused(bases: Any, tmp_path: Path) -> None:
    parts, folder = bases["z_image"]
    whole = all_in_one("z_image", parts)
    name = f"{PREFIX}cap_embedder.1.weight"
    content = whole | {name: whole[name][:, :-1], f"{PREFIX}cap_embedder.0.weight": torch.zeros(23)}
    message = refusal(write(tmp_path / "base.safetensors", content), tokenizer=folder)
    assert "the text encoder is Qwen3 24 wide, but this Z-Image reads text 23 wide" in message


def test_the_text_encoder_of_another_klein_is_refused(bases: Any, tmp_path: Path) -> None:
    parts, folder = bases["flux2_klein"]
    whole = all_in_one("flux2_klein", parts)
    content = whole | {f"{PREFIX}txt_in.weight": torch.zeros(64, 96)}
    message = refusal(write(tmp_path / "base.safetensors", content), tokenizer=folder)
    assert "Qwen3 24 wide, but this FLUX.2 klein reads text 96 wide (3 layers of 32)" in message


# Named in a recipe


def test_a_recipe_names_what_the_file_lacks(
    bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clip_l", "t5"):
        Path(f"{name}.safetensors").touch()
    text = 'name = "x"\n[base]\nmodel = "flux.safetensors"\ntext_encoder = {}\n{}[data]\nimages = "."\n'
    path = tmp_path / "recipe.toml"
    there = [str((tmp_path / f"{name}.safetensors").resolve()) for name in ("clip_l", "t5")]
    for said, wanted in (
        ('["clip_l.safetensors", "t5.safetensors"]', there),
        ('"clip_l.safetensors"', there[:1]),
    ):
        path.write_text(text.format(said, "distilled = true\n"), "utf-8")
        options = file_options(load_recipe(path).base)
        assert (options.text_encoders, options.distilled) == (tuple(wanted), True)
    path.write_text(text.format('"google/t5-v1_1-xxl"', ""), "utf-8")
    options = file_options(load_recipe(path).base)
    assert (options.text_encoders, options.distilled) == (("google/t5-v1_1-xxl",), None)


def test_a_text_encoder_beside_a_folder_is_refused_instead_of_ignored(tiny_base: Path) -> None:
    with pytest.raises(BaseModelError, match=r"base\.text_encoder is for a base in a single file"):
        load_base(str(tiny_base), single_file=SingleFileOptions(text_encoders=("x",)))


# Published bases, without a file

MILLIONS = {  # as the makers count them; of FLUX.1 with its guidance
    "Tongyi-MAI/Z-Image": 6155,
    "black-forest-labs/FLUX.1-dev": 11901,
    "black-forest-labs/FLUX.1-schnell": 11891,
    "lodestones/Chroma1-HD": 8900,
    "stabilityai/stable-diffusion-3-medium-diffusers": 2028,
    "stabilityai/stable-diffusion-3.5-medium": 2243,
    "stabilityai/stable-diffusion-3.5-large": 8057,
    "black-forest-labs/FLUX.2-klein-base-4B": 3876,
    "black-forest-labs/FLUX.2-klein-9B": 9079,
    "black-forest-labs/FLUX.2-dev": 32223,
    "krea/Krea-2-Raw": 12820,
    "Qwen/Qwen-Image": 20430,
    "Qwen/Qwen-Image-2512": 20430,
    "Alpha-VLLM/Lumina-Image-2.0": 2610,
    "circlestone-labs/Anima-Base-v1.0-Diffusers": 1956,  # and 135 of the text conditioner
}


@pytest.mark.parametrize("model", MILLIONS)
def test_a_published_base_is_known_without_a_file(model: str) -> None:
    base = published_base(model)
    assert base is not None
    shapes = dict(base.parts["transformer"].state_dict())
    tables = {"ZImage": "z_image", "Flux1": "flux1", "Chroma": "chroma", "QwenImage": "qwen_image"}
    tables |= {"Flux2Klein": "flux2", "Flux2Dev": "flux2", "Krea2": "krea2", "Lumina2": "lumina2"}
    tables["Anima"] = "anima"
    table = tables.get(type(base).__name__, "sd3")
    name = {2028: "sd3_medium", 2243: "sd35_medium", 8057: "sd35_large"}
    name |= {3876: "flux2_klein_4b", 9079: "flux2_klein_9b", 32223: "flux2_dev"}
    name = name.get(MILLIONS[model], table)
    published = published_shapes(name)
    origins = transformer_origins(
        table, published, {key: tuple(one.shape) for key, one in shapes.items()}, ""
    )
    assert all(one.shape(published) == tuple(shapes[key].shape) for key, one in origins.items())
    count = sum(one.numel() for one in base.parts["transformer"].parameters())
    assert round(count / 1e6) == MILLIONS[model]
    assert glance_at_base(model).side == base.native_side == 1024
