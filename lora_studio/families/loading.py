"""From the name of a base model to its family: the pocket base, a diffusers folder, or a single file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.families import FAMILIES
from lora_studio.families.base import ModelFamily
from lora_studio.families.single_file import SingleFileOptions, open_single_file

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

POCKET = "pocket"
FILE_ENDINGS = (".safetensors", ".ckpt")
POCKET_FOLDER = Path(__file__).resolve().parent.parent / "pocket" / "weights"
TRUSTED_LIBRARIES = (
    "diffusers",
    "transformers",
)  # classes are taken from these two alone, never from the folder


def load_base(
    model: str, *, weights: bool = True, single_file: SingleFileOptions | None = None
) -> ModelFamily:
    """The base called `model`, in float32 on the CPU, frozen; `single_file` says more of one that is a file.

    Without `weights` its networks have shapes only: quick, for whoever asks for facts and tokenizers.
    Raises BaseModelError when the base is missing, incomplete, or of a family that is not supported.
    """
    if _is_file(model):
        return load_file(Path(model).expanduser(), single_file, weights=weights)
    if single_file is not None and single_file.tokenizer is not None:
        raise BaseModelError(
            f"base.tokenizer is for a base in a single file, but {model} has a tokenizer of its own; "
            "leave base.tokenizer out."
        )
    folder = POCKET_FOLDER if model == POCKET else Path(model).expanduser()
    index = _read_index(folder, model)
    configurations = {name: _read_json(folder / name / _config_name(name)) for name in index}
    family = _recognise(configurations, model)
    parts, tokenizers = _load_parts(folder, index, model, weights=weights)
    return family(parts, tokenizers, source=model if model == POCKET else "")


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
    loaded = file.load(weights=weights, dtype=dtype)
    base = family(loaded.parts, loaded.tokenizers, source="")
    base.notes = loaded.notes
    return base


def load_tokenizers(model: str) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers of the base called `model`, without its networks. Raises BaseModelError as load_base."""
    if _is_file(model):
        return open_single_file(Path(model).expanduser()).tokenizers()
    folder = POCKET_FOLDER if model == POCKET else Path(model).expanduser()
    index = _read_index(folder, model)
    only = {name: entry for name, entry in index.items() if name.startswith("tokenizer")}
    return _load_parts(folder, only, model)[1]


def _is_file(model: str) -> bool:
    """Whether `model` is a file, or is spelled like one that is not there."""
    path = Path(model).expanduser()
    return path.is_file() or (path.suffix in FILE_ENDINGS and not path.exists())


def _recognise(configurations: dict[str, dict[str, Any]], model: str) -> type[ModelFamily]:
    for name in FAMILIES.names():
        if FAMILIES[name].recognises(configurations):
            return FAMILIES[name]
    raise BaseModelError(
        f"the base model {model} is of a kind that is not supported yet; "
        f"supported: {', '.join(FAMILIES.names())}."
    )


def _config_name(part: str) -> str:
    if part == "scheduler":
        return "scheduler_config.json"
    return "tokenizer_config.json" if part.startswith("tokenizer") else "config.json"


def _read_index(folder: Path, model: str) -> dict[str, tuple[str, str]]:
    """Part -> (library, class) from model_index.json, without the parts that are switched off."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise BaseModelError(
            f'there is no base model at {model!r}: give "pocket", a diffusers folder (one that holds '
            "model_index.json), or a .safetensors file."
        )
    index = {
        name: (str(entry[0]), str(entry[1]))
        for name, entry in _read_json(path).items()
        if isinstance(entry, list) and len(entry) == 2 and entry[0] in TRUSTED_LIBRARIES
    }
    return {name: entry for name, entry in index.items() if (folder / name).is_dir()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BaseModelError(
            f"the base model lacks {path.parent.name}/{path.name}; download it again."
        ) from None
    except (OSError, ValueError) as error:
        raise BaseModelError(
            f"{path} is not readable JSON ({error}); download the base model again."
        ) from None
    if not isinstance(values, dict):
        raise BaseModelError(f"{path} does not hold a JSON object; download the base model again.")
    return values


def _load_parts(
    folder: Path, index: dict[str, tuple[str, str]], model: str, *, weights: bool = True
) -> tuple[dict[str, nn.Module], dict[str, PreTrainedTokenizerBase]]:
    """Every network and tokenizer of the folder; safetensors only, nothing from the network."""
    from importlib import import_module

    import torch

    parts: dict[str, nn.Module] = {}
    tokenizers: dict[str, PreTrainedTokenizerBase] = {}
    for name, (library, class_name) in index.items():
        if name in ("scheduler", "feature_extractor", "safety_checker", "image_encoder"):
            continue
        loader = getattr(import_module(library), class_name)
        try:
            if name.startswith("tokenizer"):
                tokenizers[name] = loader.from_pretrained(folder / name, local_files_only=True)
            elif weights:
                parts[name] = loader.from_pretrained(
                    folder / name, dtype=torch.float32, use_safetensors=True, local_files_only=True
                )
            else:
                with torch.device("meta"):
                    parts[name] = _empty(loader, folder / name)
        except (OSError, ValueError, RuntimeError) as error:
            raise BaseModelError(
                f"the part {name} of the base model {model} cannot be loaded: {reason_of(error)}."
            ) from None
    return parts, tokenizers


def _empty(loader: Any, folder: Path) -> nn.Module:
    """A network as its configuration says; diffusers and transformers spell that differently."""
    if hasattr(loader, "load_config"):
        return loader.from_config(loader.load_config(folder, local_files_only=True))
    return loader(loader.config_class.from_pretrained(folder, local_files_only=True))
