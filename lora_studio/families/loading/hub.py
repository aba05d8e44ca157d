"""Base models by their name on the Hugging Face hub: from its local cache, else downloaded into it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.families.loading.folder import INDEX, config_name, listed_parts

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(\.fp16)?(?:-\d{5}-of-\d{5})?\.safetensors")
_SMALL = (".json", ".txt", ".model")  # configurations and tokenizers


def is_hub_id(model: str) -> bool:
    """Whether a base's name has the form of a hub id and is no path to something that exists."""
    return bool(_ID.fullmatch(model)) and not Path(model).expanduser().exists()


def hub_folder(model: str, *, weights: bool = True) -> Path:
    """The folder in the hub's cache with all that is needed of `model`; the network only for what it lacks.

    Raises BaseModelError if that is neither in the cache nor can be downloaded.
    """
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
    """Of a repository's files those of a diffusers folder: of each part the plain weights, else fp16 ones.

    Other weights (single files, pickles, ONNX, other variants) are not taken.
    """
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
