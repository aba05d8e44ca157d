"""From the name of a base model to its family: in the package, a diffusers folder, a file, or a hub id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import BaseModelError
from lora_studio.families import FAMILIES
from lora_studio.families.base import PIPELINE, ModelFamily
from lora_studio.families.configuration import index_of
from lora_studio.families.fingerprints import source_of, stamps_of
from lora_studio.families.loading.folder import INDEX, BaseFolder, is_tokenizer, weight_files
from lora_studio.families.loading.hub import hub_folder, is_hub_id
from lora_studio.families.loading.single_file import SingleFileOptions, named_distilled, open_single_file
from lora_studio.families.loading.transformer_file import open_transformer_file
from lora_studio.families.loading.vae import load_vae
from lora_studio.families.noise_schedule import with_prediction
from lora_studio.files import expanded
from lora_studio.pocket import EMBEDDED, WEIGHTS, pocket_note
from lora_studio.quiet import bitsandbytes_on_demand, paused_collector
from lora_studio.tensor_file import FILE_ENDINGS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

POCKET_FOLDER = WEIGHTS
_QUOTED = " or ".join(f'"{name}"' for name in EMBEDDED)


@paused_collector()
def load_base(
    model: str,
    *,
    vae: str = "",
    prediction: str = "auto",
    weights: bool = True,
    single_file: SingleFileOptions | None = None,
    dtype: torch.dtype | None = None,
    staged: bool = False,
) -> ModelFamily:
    """The base called `model`, on the CPU, frozen; `vae` names another VAE than its own.

    In `dtype`, float32 by default, to which each tensor is cast as it is read; the VAE is float32 always.
    `prediction` is what it predicts where it says nothing of that itself; `single_file` says more of a base
    that is one file. Without `weights` its networks have shapes only: quick, for whoever asks for facts and
    tokenizers. `staged`: of a family whose bases are large the parts have shapes only until they are placed.
    Raises BaseModelError when the base is missing, incomplete, contradicts itself, or is of a
    family that is not supported.
    """
    if _is_file(model):
        options = replace(single_file or SingleFileOptions(), vae=vae)
        base = load_file(expanded(model), options, weights=weights, dtype=dtype, staged=staged)
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
        base = _load_folder(model, prediction, weights=weights, dtype=dtype, staged=staged)
    _tell_distilled(base, model, None if single_file is None else single_file.distilled)
    if vae and weights:
        allow_pickle = single_file is not None and single_file.allow_pickle
        loaded = load_vae(vae, base.parts["vae"], allow_pickle=allow_pickle)
        base.parts["vae"] = loaded.part.requires_grad_(False).eval()
        base.sources["vae"] = source_of(loaded.part, loaded.stored, loaded.stamps)
    return base


def _tell_distilled(base: ModelFamily, model: str, said: bool | None) -> None:
    """What its user says counts, then its configuration, then its name; what was assumed is noted."""
    if not base.has_distilled:
        if said is not None:
            raise BaseModelError(
                f"base.distilled is {str(said).lower()}, but for this kind of base it makes no difference; "
                "leave it out."
            )
        return
    known = base.seems_distilled if said is None else said
    if known is None and model in EMBEDDED:
        known = False
    base.distilled = named_distilled(expanded(model).name) if known is None else known
    if known is None:
        name, isnt = ("its name says", "is not") if base.distilled else ("its name says nothing else", "is")
        what = "distilled to a few steps" if base.distilled else "not distilled to a few steps"
        setting = "false" if base.distilled else "true"
        base.notes += (f"taken for {what}, as {name}; if it {isnt}, set base.distilled = {setting}",)


def load_file(
    path: Path,
    options: SingleFileOptions | None = None,
    *,
    weights: bool = True,
    dtype: torch.dtype | None = None,
    staged: bool = False,
) -> ModelFamily:
    """The base in a single file, in `dtype` (float32 by default). Raises BaseModelError as load_base."""
    import torch

    file = open_transformer_file(path, options) or open_single_file(path, options)
    family = _recognise(file.configurations, path.name)
    stamps = stamps_of([path])
    bitsandbytes_on_demand()
    waits = staged and family.staged
    loaded = file.load(weights=weights, dtype=dtype, fill=not waits)
    scheduler = loaded.configurations["scheduler"]
    base = family(loaded.parts, loaded.tokenizers, source="", scheduler=scheduler)
    base.notes = loaded.notes
    base.sources = {
        name: source_of(base.parts[name], one, loaded.stamps.get(name, stamps), by_files=family.staged)
        for name, one in loaded.stored.items()
    }
    if waits and weights:
        base.await_weights(dtype or torch.float32)
    return base


def load_tokenizers(
    model: str, single_file: SingleFileOptions | None = None
) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers of the base called `model`, without its networks. Raises BaseModelError as load_base."""
    if _is_file(model):
        path = expanded(model)
        return (open_transformer_file(path, single_file) or open_single_file(path, single_file)).tokenizers()
    folder = _folder(model, weights=False)
    return {name: folder.tokenizer(name) for name in folder.present if is_tokenizer(name)}


def _load_folder(
    model: str, prediction: str, *, weights: bool, dtype: torch.dtype | None, staged: bool
) -> ModelFamily:
    import torch

    from lora_studio.families.loading.trial import check_computes

    dtype = dtype or torch.float32
    folder = _folder(model, weights=weights, half=dtype.itemsize < torch.float32.itemsize)
    family = _recognise(folder.configurations | {PIPELINE: folder.index}, model)
    folder.check_complete(family.needs)
    folder.check_configurations(family.needs)
    scheduler = with_prediction(folder.configurations["scheduler"], prediction)
    tokenizers = {name: folder.tokenizer(name) for name in family.needs if is_tokenizer(name)}
    networks = [name for name in family.needs if name not in (*tokenizers, "scheduler")]
    bitsandbytes_on_demand()
    stamps = {name: stamps_of(weight_files(folder.path / name)) for name in networks}
    parts = {name: folder.network(name) for name in networks}
    folder.check_tokenizers(tokenizers, parts)
    base = family(parts, tokenizers, source=model if model in EMBEDDED else "", scheduler=scheduler)
    base.notes = (pocket_note(model),) if model in EMBEDDED else ()
    base.told_distilled = folder.is_distilled
    if model not in EMBEDDED:
        check_computes(base, model, folder.configurations)
    waits = staged and family.staged
    for name, part in parts.items() if weights else ():
        wanted = torch.float32 if name == "vae" else dtype
        stored = folder.fill(name, part, None if waits else wanted)
        base.sources[name] = source_of(part, stored, stamps[name], by_files=family.staged)
    if waits and weights:
        base.await_weights(dtype)
    return base


def _is_file(model: str) -> bool:
    path = expanded(model)
    return path.is_file() or (path.suffix in FILE_ENDINGS and not path.exists())


def _folder(model: str, *, weights: bool, half: bool = False) -> BaseFolder:
    path = EMBEDDED[model] if model in EMBEDDED else expanded(model)
    if model not in EMBEDDED and is_hub_id(model):
        path = hub_folder(model, weights=weights, half=half)
    if not index_of(path).is_file():
        raise BaseModelError(
            f"there is no base model at {model!r}: give {_QUOTED}, a diffusers folder (one that holds "
            f"{INDEX}), a .safetensors file, or the id of one on the hub."
        )
    return BaseFolder(path, model)


def _recognise(configurations: dict[str, dict[str, Any]], model: str) -> type[ModelFamily]:
    """Each family looks at the denoiser's class first, so that their order says nothing.

    What one refuses another may train.
    """
    families = [FAMILIES[name] for name in FAMILIES.names()]
    for family in families:
        if family.recognises(configurations) and not family.refusal(configurations):
            return family
    if reason := next(filter(None, (family.refusal(configurations) for family in families)), ""):
        raise BaseModelError(f"the base model {model} cannot be trained: {reason}.")
    raise BaseModelError(f"the base model {model} {_kind(configurations)}; supported: {_supported()}.")


def _kind(configurations: Mapping[str, Mapping[str, object]]) -> str:
    """What it is that no family knows."""
    network = next((configurations[name] for name in ("unet", "transformer") if name in configurations), None)
    if network is None:
        return "cannot be trained: it has neither a UNet nor a transformer"
    return f"is of a kind that is not supported yet ({network.get('_class_name', 'without a class')!s:.60})"


def _supported() -> str:
    return ", ".join(FAMILIES.names())
