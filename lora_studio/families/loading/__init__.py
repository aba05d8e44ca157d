"""From the name of a base model to its family: the pocket base, a diffusers folder, a file, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import BaseModelError
from lora_studio.families import FAMILIES
from lora_studio.families.base import ModelFamily
from lora_studio.families.fingerprints import PartSource, glance_at, stamps_of
from lora_studio.families.loading.folder import INDEX, BaseFolder, weight_files
from lora_studio.families.loading.hub import hub_folder, is_hub_id
from lora_studio.families.loading.refusals import refusal
from lora_studio.families.loading.single_file import SingleFileOptions, open_single_file
from lora_studio.families.loading.vae import load_vae, vae_files
from lora_studio.families.noise_schedule import with_prediction
from lora_studio.recipe.base import FILE_ENDINGS, POCKET

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

POCKET_FOLDER = Path(__file__).resolve().parents[2] / "pocket" / "weights"


def load_base(
    model: str,
    *,
    vae: str = "",
    prediction: str = "auto",
    weights: bool = True,
    single_file: SingleFileOptions | None = None,
) -> ModelFamily:
    """The base called `model`, in float32 on the CPU, frozen; `vae` names another VAE than its own.

    `prediction` is what it predicts where it says nothing of that itself; `single_file` says more of a base
    that is one file. Without `weights` its networks have shapes only: quick, for whoever asks for facts and
    tokenizers. Raises BaseModelError when the base is missing, incomplete, contradicts itself, or is of a
    family that is not supported.
    """
    if _is_file(model):
        base = load_file(Path(model).expanduser(), single_file, weights=weights)
    elif single_file is not None and single_file.tokenizer is not None:
        raise BaseModelError(
            f"base.tokenizer is for a base in a single file, but {model} has a tokenizer of its own; "
            "leave base.tokenizer out."
        )
    else:
        base = _load_folder(model, prediction, weights=weights)
    if vae and weights:
        stamps = stamps_of(vae_files(vae))
        base.parts["vae"] = load_vae(vae, base.parts["vae"]).requires_grad_(False).eval()
        base.sources["vae"] = PartSource(stamps, glance_at(base.parts["vae"]))
    return base


def load_file(
    path: Path,
    options: SingleFileOptions | None = None,
    *,
    weights: bool = True,
    dtype: torch.dtype | None = None,
) -> ModelFamily:
    """The base in a single file, in `dtype` (float32 by default). Raises BaseModelError as load_base."""
    file = open_single_file(path, options)
    family = _recognise(file.configurations, path.name)
    stamps = stamps_of([path])
    loaded = file.load(weights=weights, dtype=dtype)
    scheduler = loaded.configurations["scheduler"]
    base = family(loaded.parts, loaded.tokenizers, source="", scheduler=scheduler)
    base.notes = loaded.notes
    base.sources = {name: PartSource(stamps, glance_at(part)) for name, part in base.parts.items()}
    return base


def load_tokenizers(model: str) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers of the base called `model`, without its networks. Raises BaseModelError as load_base."""
    if _is_file(model):
        return open_single_file(Path(model).expanduser()).tokenizers()
    folder = _folder(model, weights=False)
    return {name: folder.tokenizer(name) for name in folder.present if name.startswith("tokenizer")}


def _load_folder(model: str, prediction: str, *, weights: bool) -> ModelFamily:
    folder = _folder(model, weights=weights)
    family = _recognise(folder.configurations, model)
    folder.check_complete(family.needs)
    scheduler = with_prediction(folder.configurations["scheduler"], prediction)
    tokenizers = {name: folder.tokenizer(name) for name in family.needs if name.startswith("tokenizer")}
    networks = [name for name in family.needs if name not in (*tokenizers, "scheduler")]
    stamps = {name: stamps_of(weight_files(folder.path / name)) for name in networks}
    parts = {name: folder.network(name, weights=weights) for name in networks}
    base = family(parts, tokenizers, source=model if model == POCKET else "", scheduler=scheduler)
    base.sources = {name: PartSource(stamps[name], glance_at(part)) for name, part in parts.items()}
    return base


def _is_file(model: str) -> bool:
    """Whether `model` is a file, or is spelled like one that is not there."""
    path = Path(model).expanduser()
    return path.is_file() or (path.suffix in FILE_ENDINGS and not path.exists())


def _folder(model: str, *, weights: bool) -> BaseFolder:
    path = POCKET_FOLDER if model == POCKET else Path(model).expanduser()
    if model != POCKET and is_hub_id(model):
        path = hub_folder(model, weights=weights)
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
