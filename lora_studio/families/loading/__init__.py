"""From the name of a base model to its family: the pocket base, a diffusers folder, a file, or a hub id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lora_studio.errors import BaseModelError
from lora_studio.families import FAMILIES
from lora_studio.families.base import ModelFamily
from lora_studio.families.fingerprints import source_of, stamps_of
from lora_studio.families.loading.folder import INDEX, BaseFolder, weight_files
from lora_studio.families.loading.hub import hub_folder, is_hub_id
from lora_studio.families.loading.single_file import SingleFileOptions, open_single_file
from lora_studio.families.loading.transformer_file import open_transformer_file
from lora_studio.families.loading.vae import load_vae
from lora_studio.families.noise_schedule import with_prediction
from lora_studio.files import expanded
from lora_studio.pocket import WEIGHTS, pocket_note
from lora_studio.quiet import bitsandbytes_on_demand, paused_collector
from lora_studio.recipe.data import FILE_ENDINGS, POCKET

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

POCKET_FOLDER = WEIGHTS


@paused_collector()
def load_base(
    model: str,
    *,
    vae: str = "",
    prediction: str = "auto",
    weights: bool = True,
    single_file: SingleFileOptions | None = None,
    dtype: torch.dtype | None = None,
) -> ModelFamily:
    """The base called `model`, on the CPU, frozen; `vae` names another VAE than its own.

    In `dtype`, float32 by default, to which each tensor is cast as it is read; the VAE is float32 always.
    `prediction` is what it predicts where it says nothing of that itself; `single_file` says more of a base
    that is one file. Without `weights` its networks have shapes only: quick, for whoever asks for facts and
    tokenizers. Raises BaseModelError when the base is missing, incomplete, contradicts itself, or is of a
    family that is not supported.
    """
    if _is_file(model):
        options = replace(single_file or SingleFileOptions(), vae=vae)
        base = load_file(expanded(model), options, weights=weights, dtype=dtype)
    elif single_file is not None and single_file.tokenizer is not None:
        raise BaseModelError(
            f"base.tokenizer is for a base in a single file, but {model} has a tokenizer of its own; "
            "leave base.tokenizer out."
        )
    elif single_file is not None and single_file.text_encoders:
        raise BaseModelError(
            f"base.text_encoder is for a base in a single file, but {model} has text encoders of its own; "
            "leave base.text_encoder out."
        )
    else:
        base = _load_folder(model, prediction, weights=weights, dtype=dtype)
    if vae and weights:
        allow_pickle = single_file is not None and single_file.allow_pickle
        loaded = load_vae(vae, base.parts["vae"], allow_pickle=allow_pickle)
        base.parts["vae"] = loaded.part.requires_grad_(False).eval()
        base.sources["vae"] = source_of(loaded.part, loaded.stored, loaded.stamps)
    return base


def load_file(
    path: Path,
    options: SingleFileOptions | None = None,
    *,
    weights: bool = True,
    dtype: torch.dtype | None = None,
) -> ModelFamily:
    """The base in a single file, in `dtype` (float32 by default). Raises BaseModelError as load_base."""
    file = open_transformer_file(path, options) or open_single_file(path, options)
    family = _recognise(file.configurations, path.name)
    stamps = stamps_of([path])
    bitsandbytes_on_demand()
    loaded = file.load(weights=weights, dtype=dtype)
    scheduler = loaded.configurations["scheduler"]
    base = family(loaded.parts, loaded.tokenizers, source="", scheduler=scheduler)
    base.notes = loaded.notes
    base.sources = {
        name: source_of(base.parts[name], one, loaded.stamps.get(name, stamps))
        for name, one in loaded.stored.items()
    }
    return base


def load_tokenizers(
    model: str, single_file: SingleFileOptions | None = None
) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers of the base called `model`, without its networks. Raises BaseModelError as load_base."""
    if _is_file(model):
        path = expanded(model)
        return (open_transformer_file(path, single_file) or open_single_file(path, single_file)).tokenizers()
    folder = _folder(model, weights=False)
    return {name: folder.tokenizer(name) for name in folder.present if name.startswith("tokenizer")}


def _load_folder(model: str, prediction: str, *, weights: bool, dtype: torch.dtype | None) -> ModelFamily:
    import torch

    from lora_studio.families.loading.trial import check_computes

    dtype = dtype or torch.float32
    folder = _folder(model, weights=weights, half=dtype.itemsize < torch.float32.itemsize)
    family = _recognise(folder.configurations, model)
    folder.check_complete(family.needs)
    folder.check_configurations(family.needs)
    scheduler = with_prediction(folder.configurations["scheduler"], prediction)
    tokenizers = {name: folder.tokenizer(name) for name in family.needs if name.startswith("tokenizer")}
    networks = [name for name in family.needs if name not in (*tokenizers, "scheduler")]
    bitsandbytes_on_demand()
    stamps = {name: stamps_of(weight_files(folder.path / name)) for name in networks}
    parts = {name: folder.network(name) for name in networks}
    folder.check_tokenizers(tokenizers, parts)
    base = family(parts, tokenizers, source=model if model == POCKET else "", scheduler=scheduler)
    base.notes = (pocket_note(),) if model == POCKET else ()
    if model != POCKET:
        check_computes(base, model, folder.configurations)
    for name, part in parts.items() if weights else ():
        stored = folder.fill(name, part, torch.float32 if name == "vae" else dtype)
        base.sources[name] = source_of(part, stored, stamps[name])
    return base


def _is_file(model: str) -> bool:
    path = expanded(model)
    return path.is_file() or (path.suffix in FILE_ENDINGS and not path.exists())


def _folder(model: str, *, weights: bool, half: bool = False) -> BaseFolder:
    path = POCKET_FOLDER if model == POCKET else expanded(model)
    if model != POCKET and is_hub_id(model):
        path = hub_folder(model, weights=weights, half=half)
    if not (path / INDEX).is_file():
        raise BaseModelError(
            f'there is no base model at {model!r}: give "pocket", a diffusers folder (one that holds '
            f"{INDEX}), a .safetensors file, or the id of one on the hub."
        )
    return BaseFolder(path, model)


def _recognise(configurations: dict[str, dict[str, Any]], model: str) -> type[ModelFamily]:
    if reason := refusal(configurations):
        raise BaseModelError(f"the base model {model} cannot be trained: {reason}.")
    for name in FAMILIES.names():
        if FAMILIES[name].recognises(configurations):
            return FAMILIES[name]
    raise BaseModelError(
        f"the base model {model} is of a kind that is not supported yet; "
        f"supported: {', '.join(FAMILIES.names())}."
    )


Configuration = Mapping[str, object]
CHANNELS = 4
INPAINTING_CHANNELS = 9  # latents, masked latents and a mask


def refusal(configurations: Mapping[str, Configuration]) -> str:
    """Why the parts with these configurations cannot be trained; empty if nothing speaks against them."""
    unet = configurations.get("unet")
    if unet is None:
        if "transformer" not in configurations:
            return "it has no UNet"
        return (
            "it has a transformer instead of a UNet, as SD3, Flux and the like, which are not supported yet"
        )
    channels = unet.get("in_channels")
    if channels == INPAINTING_CHANNELS:
        return (
            "it is an inpainting model: its UNet takes 9 channels instead of 4; train on the model that it "
            "was made from, a LoRA for that works in both"
        )
    if channels != CHANNELS:
        return f"its UNet takes {channels} channels; those of Stable Diffusion 1, 2 and XL take {CHANNELS}"
    if _is_refiner(unet, configurations):
        return "it is the refiner of SDXL, for which no UI loads a LoRA; train on the SDXL base"
    other = [name for name in ("class_embed_type", "encoder_hid_dim_type") if unet.get(name)]
    if other or unet.get("addition_embed_type") not in (None, "text_time"):
        kind = f"{other[0]} = {unet[other[0]]!r}" if other else f"{unet.get('addition_embed_type')!r} added"
        return f"its UNet is of another kind ({kind})"
    return _text_refusal(unet, configurations)


def _is_refiner(unet: Configuration, configurations: Mapping[str, Configuration]) -> bool:
    """The refiner has no first text encoder, and five numbers of geometry instead of six."""
    if unet.get("addition_embed_type") != "text_time":
        return False
    second = configurations.get("text_encoder_2", {})
    added = cast(int, unet.get("projection_class_embeddings_input_dim") or 0)
    pooled, per_number = second.get("projection_dim"), unet.get("addition_time_embed_dim")
    return isinstance(pooled, int) and isinstance(per_number, int) and added == pooled + 5 * per_number


def _text_refusal(unet: Configuration, configurations: Mapping[str, Configuration]) -> str:
    encoders = {name: c for name, c in configurations.items() if name.startswith("text_encoder")}
    foreign = [c.get("model_type") for c in encoders.values() if "clip" not in str(c.get("model_type"))]
    if foreign:
        return f"its text encoder is of the kind {foreign[0]!r}, not CLIP"
    expected = 2 if unet.get("addition_embed_type") else 1
    given = sum(cast(int, c.get("hidden_size", 0)) for c in encoders.values())
    taken = unet.get("cross_attention_dim")
    if len(encoders) == expected and isinstance(taken, int) and given != taken:
        return (
            f"its text encoders give {given} numbers a token, but its UNet takes {taken}: they are parts of "
            "different models"
        )
    return ""
