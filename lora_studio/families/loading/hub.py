"""Bases and VAEs of the Hugging Face hub: from its local cache, else what is needed is downloaded into that.

Weights that are there already are taken, whichever precision they have: what a run began with is what it goes
on with. Only a download chooses: fp16 files for what computes in a half precision, else the plain ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.families import FAMILIES
from lora_studio.families.configuration import INDEXES
from lora_studio.families.loading.folder import (
    INDEX,
    config_name,
    heavy_files,
    is_tokenizer,
    listed_parts,
    weight_files,
)
from lora_studio.files import expanded

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL = (".json", ".txt", ".model", ".jinja")  # configurations and tokenizers
_PIECES = ".safetensors.index.json"
_VAE, _TOP = "vae", ""
_TEXT = ("text_encoder", "tokenizer", "t5_tokenizer")


def is_hub_id(model: str) -> bool:
    """Whether a base's name has the form of a hub id and is no path to something that exists."""
    return bool(_ID.fullmatch(model)) and not expanded(model).exists()


def hub_folder(model: str, *, weights: bool = True, half: bool = False) -> Path:
    """The folder of a base in the hub's cache, downloaded if it lacks what is needed.

    `half`: its networks, but for the VAE, are going to compute in a half precision. Raises BaseModelError.
    """
    found = _cached_folder(model)
    if found is not None and _is_whole(found, weights=weights):
        return found

    def wanted(hub: HfApi) -> list[str]:
        files = _files_of_folder(hub, model, "base")
        return wanted_files(files, _fetched_parts(model, files), weights=weights, half=half)

    return _download(f"the base model {model}", model, wanted)


def hub_text_encoders(model: str) -> Path:
    """The folder of a base in the hub's cache, with its text encoders and tokenizers at least.

    Raises BaseModelError.
    """
    found = _cached_folder(model)
    if found is not None and _is_whole(found, weights=True, only=_TEXT):
        return found

    def wanted(hub: HfApi) -> list[str]:
        files = _files_of_folder(hub, model, "text encoder")
        parts = [part for part in _fetched_parts(model, files) if part.startswith(_TEXT)]
        return wanted_files(files, parts, networks=parts)

    return _download(f"the text encoder {model}", model, wanted)


def _files_of_folder(hub: HfApi, model: str, what: str) -> list[str]:
    """The names of what the hub has of a diffusers folder; BaseModelError if it is none."""
    files = hub.list_repo_files(model)
    if not any(index in files for index in INDEXES):
        raise BaseModelError(
            f"the hub's {model} has no {INDEX}, so it is no diffusers folder; give another id, or "
            f"download the .safetensors file of a {what} there and give its path."
        )
    return files


def hub_vae(model: str) -> Path:
    """The folder of a VAE in the hub's cache: a repository's top, or its `vae`. Raises BaseModelError."""
    for place in (_TOP, _VAE):
        found = _cached(model, "/".join(filter(None, (place, config_name(_VAE)))))
        if found is not None and _has_weights(found.parent):
            return found.parent

    def wanted(hub: HfApi) -> list[str]:
        files = _by_folder(hub.list_repo_files(model))
        for place in (_TOP, _VAE):
            names = files.get(place, [])
            if config_name(_VAE) in names and (heavy := heavy_files(names, half=False)):
                return ["/".join(filter(None, (place, name))) for name in (config_name(_VAE), *heavy)]
        raise BaseModelError(
            f"the hub's {model} has no VAE of diffusers, neither at its top nor in the folder {_VAE}; give "
            "another id, or download its .safetensors file and give the path."
        )

    folder = _download(f"the VAE {model}", model, wanted)
    return folder if (folder / config_name(_VAE)).is_file() else folder / _VAE


def _cached_folder(model: str) -> Path | None:
    return next((found.parent for index in INDEXES if (found := _cached(model, index))), None)


def _cached(model: str, file: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, file, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _fetched_parts(model: str, files: Collection[str]) -> Collection[str]:
    from huggingface_hub import hf_hub_download

    index = next(one for one in INDEXES if one in files)
    return listed_parts(Path(hf_hub_download(model, index)).parent)


def _download(what: str, model: str, wanted: Callable[[HfApi], list[str]]) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=wanted(HfApi())))
    except BaseModelError:
        raise
    except GatedRepoError:
        advice = "accept its licence on its page there and log in with `hf auth login`"
        raise BaseModelError(f"{what} is gated on the hub: {advice}.") from None
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


def wanted_files(
    files: Iterable[str],
    parts: Collection[str],
    *,
    weights: bool = True,
    half: bool = False,
    networks: Collection[str] = (),
) -> list[str]:
    """Of a diffusers folder that lists these parts what training needs, and each part's weights once.

    `networks`: whose weights are wanted, by default those that any family needs.
    """
    networks = networks or {name for family in FAMILIES.names() for name in FAMILIES[family].needs}
    files = list(files)
    wanted = [next((index for index in INDEXES if index in files), INDEX)]
    for part, names in _by_folder(files).items():
        if part not in parts or config_name(part) not in names:
            continue
        heavy = heavy_files(names, half=half and part != _VAE) if weights and part in networks else []
        pieces = [f"{name.partition('-')[0]}{_PIECES}" for name in heavy]
        small = [name for name in names if name.endswith(_SMALL) and not name.endswith(_PIECES)]
        wanted += [f"{part}/{name}" for name in (*small, *heavy, *(one for one in names if one in pieces))]
    return wanted


def _by_folder(files: Iterable[str]) -> dict[str, list[str]]:
    """Folder -> names in it, none of folders within folders; "" is the top."""
    found: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        if "/" not in folder:
            found.setdefault(folder, []).append(name)
    return found


def _is_whole(folder: Path, *, weights: bool, only: tuple[str, ...] = ("",)) -> bool:
    """Whether every listed part is there, with its weights if it has any: a download may have stopped.

    `only`: of the parts whose names begin so.
    """
    for part in (one for one in listed_parts(folder) if one.startswith(only)):
        if not (folder / part / config_name(part)).is_file():
            return False
        is_network = part != "scheduler" and not is_tokenizer(part)
        if weights and is_network and not _has_weights(folder / part):
            return False
    return True


def _has_weights(folder: Path) -> bool:
    """All pieces of them, if there are several."""
    files = weight_files(folder)
    pieces = folder / f"{files[0].name.partition('-')[0]}{_PIECES}" if files else folder
    if not pieces.is_file():
        return bool(files)
    try:
        named = set(json.loads(pieces.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    return named <= {file.name for file in files}
