"""From the name of a base model to its family: the pocket base, a diffusers folder, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.errors import BaseModelError
from lora_studio.families import FAMILIES
from lora_studio.families.base import ModelFamily
from lora_studio.families.folder import INDEX, BaseFolder
from lora_studio.families.hub import hub_folder, is_hub_id
from lora_studio.families.noise import with_prediction
from lora_studio.families.refusals import refusal
from lora_studio.families.vae import load_vae

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POCKET = "pocket"
POCKET_FOLDER = Path(__file__).resolve().parent.parent / "pocket" / "weights"


def load_base(model: str, *, vae: str = "", prediction: str = "auto", weights: bool = True) -> ModelFamily:
    """The base called `model`, in float32 on the CPU, frozen; `vae` names another VAE than its own.

    `prediction` is what it predicts where it says nothing of that itself. Without `weights` its networks have
    shapes only: quick, for whoever asks for facts and tokenizers. Raises BaseModelError when the base is
    missing, incomplete, contradicts itself, or is of a family that is not supported.
    """
    folder = _folder(model, weights=weights)
    family = _recognise(folder)
    folder.check_complete(family.needs)
    scheduler = with_prediction(folder.configurations["scheduler"], prediction)
    tokenizers = {name: folder.tokenizer(name) for name in family.needs if name.startswith("tokenizer")}
    networks = [name for name in family.needs if name not in (*tokenizers, "scheduler")]
    parts = {name: folder.network(name, weights=weights) for name in networks}
    if vae and weights:
        parts["vae"] = load_vae(vae, parts["vae"])
    return family(parts, tokenizers, source=model if model == POCKET else "", scheduler=scheduler)


def load_tokenizers(model: str) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers of the base called `model`, without its networks. Raises BaseModelError as load_base."""
    folder = _folder(model, weights=False)
    return {name: folder.tokenizer(name) for name in folder.present if name.startswith("tokenizer")}


def _folder(model: str, *, weights: bool) -> BaseFolder:
    path = POCKET_FOLDER if model == POCKET else Path(model).expanduser()
    if model != POCKET and is_hub_id(model):
        path = hub_folder(model, weights=weights)
    if not (path / INDEX).is_file():
        raise BaseModelError(
            f'there is no base model at {model!r}: give "pocket", a diffusers folder (one that holds '
            f"{INDEX}), or the id of one on the hub."
        )
    return BaseFolder(path, model)


def _recognise(folder: BaseFolder) -> type[ModelFamily]:
    reason = refusal(folder.configurations)
    if reason:
        raise BaseModelError(f"the base model {folder.model} cannot be trained: {reason}.")
    for name in FAMILIES.names():
        if FAMILIES[name].recognises(folder.configurations):
            return FAMILIES[name]
    raise BaseModelError(
        f"the base model {folder.model} is of a kind that is not supported yet; "
        f"supported: {', '.join(FAMILIES.names())}."
    )
