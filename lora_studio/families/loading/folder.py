"""A diffusers folder: what it lists, what its parts' configurations and weights say, and its parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import BaseModelError, reason_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import nn
    from transformers import PreTrainedTokenizerBase

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")  # classes are taken from these two alone, never from the folder
UNUSED = ("feature_extractor", "safety_checker", "image_encoder", "watermarker")


@dataclass(frozen=True)
class BaseFolder:
    """A diffusers folder, which the user calls `model`; every method raises BaseModelError for its faults."""

    path: Path
    model: str

    @cached_property
    def parts(self) -> dict[str, tuple[str, str]]:
        return listed_parts(self.path)

    @property
    def present(self) -> list[str]:
        return [name for name in self.parts if (self.path / name).is_dir()]

    @cached_property
    def configurations(self) -> dict[str, dict[str, Any]]:
        """By part, also the scheduler's; the UNet's is completed and checked by the shapes of its weights."""
        found = {
            name: _read_json(self.path / name / config_name(name))
            for name in self.present
            if not name.startswith("tokenizer")
        }
        if "unet" in found:
            found["unet"] = self._with_shapes(found["unet"])
        return found

    def check_complete(self, needs: tuple[str, ...]) -> None:
        """Raise BaseModelError that names every part that is not there."""
        lacking = [name for name in needs if name not in self.present]
        if lacking:
            raise BaseModelError(
                f"the base model {self.model} lacks the part(s) {', '.join(lacking)}, which are folders "
                f"beside {INDEX} that it lists; download the model again."
            )

    def network(self, name: str, *, weights: bool = True) -> nn.Module:
        """A part in float32 on the CPU, from safetensors; without `weights` it has shapes only."""
        return self._read(name, load_network if weights else _empty)

    def tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        return self._read(name, lambda loader, folder: loader.from_pretrained(folder, local_files_only=True))

    def _read(self, name: str, read: Callable[[Any, Path], Any]) -> Any:
        library, class_name = self.parts[name]
        try:
            return read(getattr(import_module(library), class_name), self.path / name)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unreadable(name, error) from None

    def _unreadable(self, name: str, error: Exception) -> BaseModelError:
        what = f"the part {name} of the base model {self.model}"
        return BaseModelError(f"{what} cannot be loaded: {reason_of(error)}.")

    def _with_shapes(self, config: dict[str, Any]) -> dict[str, Any]:
        """The UNet's configuration with what its weights' shapes say; raises if it says otherwise."""
        try:
            seen = facts_of_shapes(dict(_shapes(self.path / "unet")))
        except Exception as error:  # safetensors' own error has no public base class
            raise self._unreadable("unet", error) from None
        for key, value in seen.items():
            if config.get(key, value) != value and not isinstance(config[key], list):
                raise BaseModelError(
                    f"unet/config.json of the base model {self.model} says {key} = {config[key]}, but the "
                    f"weights beside it have {value}; they belong to different models."
                )
        return seen | config


def listed_parts(folder: Path) -> dict[str, tuple[str, str]]:
    """Part -> (library, class) from model_index.json, without the parts that training has no use for."""
    return {
        name: (str(entry[0]), str(entry[1]))
        for name, entry in _read_json(folder / INDEX).items()
        if isinstance(entry, list) and len(entry) == 2 and entry[0] in LIBRARIES and name not in UNUSED
    }


def config_name(part: str) -> str:
    if part == "scheduler":
        return "scheduler_config.json"
    return "tokenizer_config.json" if part.startswith("tokenizer") else "config.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a part's folder that are read."""
    variant = variant_of(folder)
    return [path for path in sorted(folder.glob("*.safetensors")) if variant or ".fp16" not in path.name]


def variant_of(folder: Path) -> str | None:
    """ "fp16" if a part's folder holds weights of that name alone; None for the plain ones."""
    names = [path.name for path in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def load_network(loader: Any, folder: Path) -> nn.Module:
    """A network in float32; raises ValueError for missing weights, which the libraries draw at random."""
    import torch

    how = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    network, seen = loader.from_pretrained(folder, dtype=torch.float32, variant=variant_of(folder), **how)
    missing = sorted(seen["missing_keys"])
    if missing:
        raise ValueError(f"its file lacks {len(missing)} tensors, first {missing[0]}")
    return network


def facts_of_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, int | bool]:
    """Entries of a UNet's configuration, as far as the shapes of its weights tell (by diffusers' names)."""
    facts: dict[str, int | bool] = {}
    if "conv_in.weight" in shapes:
        facts["in_channels"] = shapes["conv_in.weight"][1]
    for name, shape in shapes.items():
        if name.endswith("attn2.to_k.weight"):
            facts["cross_attention_dim"] = shape[1]
        elif name.endswith("attentions.0.proj_in.weight"):
            facts["use_linear_projection"] = len(shape) == 2
    return facts


def _shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of every tensor in a folder's safetensors files; only their headers are read."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle, not a dict
                yield name, tuple(file.get_slice(name).get_shape())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        name = f"{path.parent.name}/{path.name}"
        raise BaseModelError(f"the base model lacks {name}; download it again.") from None
    except (OSError, ValueError) as error:
        fault = f"{path} is not readable JSON ({error})"
        raise BaseModelError(f"{fault}; download the base model again.") from None
    if not isinstance(values, dict):
        raise BaseModelError(f"{path} does not hold a JSON object; download the base model again.")
    return values


def _empty(loader: Any, folder: Path) -> nn.Module:
    """A network of shapes, as its configuration says; diffusers and transformers spell that differently."""
    import torch

    with torch.device("meta"):
        if hasattr(loader, "load_config"):
            return loader.from_config(loader.load_config(folder, local_files_only=True))
        return loader(loader.config_class.from_pretrained(folder, local_files_only=True))


def load_vae(name: str, own: AutoencoderKL) -> AutoencoderKL:
    """The VAE at the path `name`, in float32, to take the place of the base's `own`.

    A single file has no configuration and gets that of `own`. Raises BaseModelError if it cannot be read, or
    makes other latents than those the base was trained on.
    """
    from diffusers import AutoencoderKL

    path = Path(name).expanduser()
    try:
        if path.is_dir():
            vae = load_network(AutoencoderKL, path)
        elif path.suffix == ".safetensors" and path.is_file():
            vae = _of_file(path, own)
        else:
            raise BaseModelError(
                f"there is no VAE at base.vae = {name!r}; give a folder of a diffusers VAE (one that holds "
                "config.json and safetensors), or its .safetensors file."
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseModelError(f"the VAE {name} cannot be loaded: {reason_of(error)}.") from None
    _check_latents(name, vae, own)
    return vae


def vae_files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    return weight_files(path) if path.is_dir() else [path] if path.is_file() else []


def _of_file(path: Path, own: AutoencoderKL) -> AutoencoderKL:
    """Raises ValueError if its tensors are not named as those of `own`."""
    from diffusers import AutoencoderKL
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    vae = AutoencoderKL.from_config(own.config)
    unlike = sorted(tensors.keys() ^ vae.state_dict().keys())
    if unlike:
        fault = f"{len(unlike)} of its tensors are not those of a diffusers VAE"
        raise ValueError(f"{fault} as the base's, first {unlike[0]}")
    vae.load_state_dict(tensors)
    return vae.float()


def _check_latents(name: str, vae: AutoencoderKL, own: AutoencoderKL) -> None:
    """A VAE of another family would train without complaint on latents that the UNet cannot read."""
    fault = ""
    for key, called in (("latent_channels", "channels"), ("scaling_factor", "scale")):
        other, wanted = vae.config[key], own.config[key]
        if other != wanted and not fault:
            fault = f"of another kind: their {called} is {other}, the base's {wanted}"
    if not fault and len(vae.config.block_out_channels) != len(own.config.block_out_channels):
        fault = "of another size than the base's"
    if fault:
        advice = "take one that was made for this family of bases"
        raise BaseModelError(f"the VAE {name} makes latents {fault}; {advice}.")
