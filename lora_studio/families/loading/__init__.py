"""From the name of a base model to its family: the pocket base, a diffusers folder, a file, or a hub id.

A base of the Hugging Face hub comes from its local cache, else it is downloaded into that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.families import FAMILIES
from lora_studio.families.base import ModelFamily
from lora_studio.families.fingerprints import PartSource, glance_at, stamps_of
from lora_studio.families.loading.folder import (
    INDEX,
    BaseFolder,
    config_name,
    listed_parts,
    load_vae,
    vae_files,
    weight_files,
)
from lora_studio.families.loading.single_file import SingleFileOptions, open_single_file
from lora_studio.families.noise_schedule import with_prediction
from lora_studio.quiet import bitsandbytes_on_demand, paused_collector
from lora_studio.recipe.data import FILE_ENDINGS, POCKET

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

POCKET_FOLDER = Path(__file__).resolve().parents[2] / "pocket" / "weights"


@paused_collector()
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
    bitsandbytes_on_demand()
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
    bitsandbytes_on_demand()
    stamps = {name: stamps_of(weight_files(folder.path / name)) for name in networks}
    parts = {name: folder.network(name, weights=weights) for name in networks}
    base = family(parts, tokenizers, source=model if model == POCKET else "", scheduler=scheduler)
    base.sources = {name: PartSource(stamps[name], glance_at(part)) for name, part in parts.items()}
    return base


def _is_file(model: str) -> bool:
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


_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(\.fp16)?(?:-\d{5}-of-\d{5})?\.safetensors")
_SMALL = (".json", ".txt", ".model")  # configurations and tokenizers


def is_hub_id(model: str) -> bool:
    """Whether a base's name has the form of a hub id and is no path to something that exists."""
    return bool(_ID.fullmatch(model)) and not Path(model).expanduser().exists()


def hub_folder(model: str, *, weights: bool = True) -> Path:
    """The folder in the hub's cache, downloaded if it lacks what is needed; raises BaseModelError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(hf_hub_download(model, INDEX, local_files_only=True)).parent
    except LocalEntryNotFoundError:
        return _download(model, weights=weights)
    return folder if _is_whole(folder, weights=weights) else _download(model, weights=weights)


def _download(model: str, *, weights: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        files = HfApi().list_repo_files(model)
        return Path(snapshot_download(model, allow_patterns=wanted_files(files, weights=weights)))
    except GatedRepoError:
        advice = "accept its licence on its page there and log in with `hf auth login`"
        raise BaseModelError(f"the base model {model} is gated on the hub: {advice}.") from None
    except RepositoryNotFoundError:
        raise BaseModelError(
            f"there is no folder {model}, and the hub has no model of that name, or it is private; "
            "check the name, or log in with `hf auth login`."
        ) from None
    except Exception as error:  # of which HTTP library it is depends on the version of the hub's own one
        raise BaseModelError(
            f"there is no folder {model}, the hub's cache ({HF_HUB_CACHE}) does not hold all of a model of "
            f"that name, and the hub cannot be reached ({reason_of(error)}); connect to the network once, or "
            "give a diffusers folder."
        ) from None


def wanted_files(files: Iterable[str], *, weights: bool = True) -> list[str]:
    """A diffusers folder's files: of each part the plain weights, else fp16 ones; no pickles, no ONNX."""
    wanted = [INDEX]
    by_part: dict[str, list[str]] = {}
    for file in files:
        part, slash, name = file.partition("/")
        if slash and "/" not in name:
            by_part.setdefault(part, []).append(name)
    for part, names in by_part.items():
        if config_name(part) not in names:
            continue
        found = [(name, match[1]) for name in names if (match := _WEIGHTS.fullmatch(name))]
        plain = [name for name, variant in found if not variant]
        heavy = (plain or [name for name, _ in found]) if weights else []
        wanted += [f"{part}/{name}" for name in names if name.endswith(_SMALL)]
        wanted += [f"{part}/{name}" for name in heavy]
    return wanted


def _is_whole(folder: Path, *, weights: bool) -> bool:
    """Whether every listed part is there, with its weights if it has any: a download may have stopped."""
    for part in listed_parts(folder):
        if not (folder / part / config_name(part)).is_file():
            return False
        is_network = part != "scheduler" and not part.startswith("tokenizer")
        if weights and is_network and not any((folder / part).glob("*.safetensors")):
            return False
    return True
