"""An opened file of tensors: names and shapes at once, values one by one when they are asked for."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.errors import BaseModelError, StudioError, reason_of
from lora_studio.families.original import SD2, UNET_PREFIX, BaseKind
from lora_studio.tensor_file.header import read_header
from lora_studio.tensor_file.instead import START_BYTES, is_torch_file

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MOST_WRAPPED = 5  # tables around that of the tensors


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. Nothing but names, shapes and metadata has been read of a safetensors file."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    _load: Callable[[], Mapping[str, Tensor]] | None = field(default=None, repr=False)  # a pickle file
    is_mapped: bool = True  # and so quickly opened anew
    dtypes: dict[str, str] = field(default_factory=dict)  # torch's names; nothing of a pickle file
    scales: dict[str, str] = field(default_factory=dict)  # tensor -> the one that it is multiplied with

    @contextmanager
    def values(self) -> Iterator[Callable[[str], Tensor]]:
        """What gives a tensor by its name; it is mapped from the file, so copy what is to be kept."""
        if self._load is not None:
            yield self._load().__getitem__
            return
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                yield self._multiplied(file.get_tensor) if self.scales else file.get_tensor
        except (SafetensorError, OSError) as error:
            raise _damage(self.path, "is damaged", error) from None

    def _multiplied(self, value: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
        """In float32, where there is a scale: one of all of a tensor's numbers, or of each row's."""

        def product(name: str) -> Tensor:
            tensor = value(name)
            if name not in self.scales:
                return tensor
            scale = value(self.scales[name]).float()
            return tensor.float() * scale.reshape(-1, *(1,) * (tensor.dim() - 1))

        return product


def open_checkpoint(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Look at a file. Raises BaseModelError if it is missing, cut short or nothing that may be read."""
    if _is_torch_file(path):
        return _open_pickle(path, allowed=allow_pickle)
    try:
        header = read_header(path, limit=MAX_HEADER_BYTES)
    except StudioError as error:
        raise BaseModelError(str(error)) from None
    shapes = {name: one.shape for name, one in header.entries.items()}
    dtypes = {name: one.dtype for name, one in header.entries.items()}
    return Checkpoint(path, shapes, header.metadata, dtypes=dtypes)


def _is_torch_file(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_torch_file(file.read(START_BYTES))
    except OSError:  # the header's reader says why
        return False


def _damage(path: Path, fault: str, error: Exception) -> BaseModelError:
    return BaseModelError(f"{path.name} {fault} ({reason_of(error)}); download it again.")


def _open_pickle(path: Path, *, allowed: bool) -> Checkpoint:
    """Tensors only, with torch's restricted reader; there is no way around it."""
    if not allowed:
        raise BaseModelError(
            f"{path.name} is a pickle file, which can hold code; give a .safetensors file, or set "
            "base.allow_pickle = true to have nothing but tensors read from it."
        )
    is_mapped = zipfile.is_zipfile(path) and path.suffix != ".safetensors"  # by which torch itself goes
    tensors, metadata = _read_pickle(path, is_mapped=is_mapped)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Checkpoint(path, shapes, metadata, lambda: _read_pickle(path, is_mapped=is_mapped)[0], is_mapped)


def _read_pickle(path: Path, *, is_mapped: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; raises BaseModelError."""
    from pickle import UnpicklingError

    import torch

    try:
        with path.open("rb") as file:
            whole = path if is_mapped else file
            values = torch.load(whole, map_location="cpu", weights_only=True, mmap=is_mapped)
    except UnpicklingError:
        raise BaseModelError(
            f"{path.name} holds more than tensors, which is not read because it could be code; "
            "give a .safetensors file of the same base."
        ) from None
    except Exception as error:  # instructions that somebody made up end in any error
        raise _damage(path, "is cut short or damaged", error) from None
    metadata: dict[str, str] = {}
    for _ in range(_MOST_WRAPPED):  # one may hold itself
        if not isinstance(values, dict) or "state_dict" not in values:
            break
        if isinstance(values.get("global_step"), int):
            metadata["global_step"] = str(values["global_step"])
        values = values["state_dict"]
    if not isinstance(values, dict):
        raise BaseModelError(f"{path.name} holds no tensors by name; give a .safetensors file.")
    tensors = {str(name): value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return tensors, metadata


SPELLINGS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}  # -> diffusers'
_EPSILON_STEPS = ("875000", "110000")  # the step counts of 512-base, as diffusers' converter knows them
# ComfyUI's hint for SD2: in the published v models this bias is spread wider than in the epsilon models.
_TELLING_BIAS = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias"
_TELLING_SPREAD = 0.09


@dataclass(frozen=True)
class Prediction:
    """The prediction in diffusers' words, whether noise goes up to zero SNR, and who said so."""

    type: str
    zero_snr: bool
    source: str


def find_prediction(kind: BaseKind, checkpoint: Checkpoint, wanted: str = "auto") -> Prediction:
    """What the user says counts, then what the file says, then SD2's telling weight, then epsilon."""
    zero_snr = "ztsnr" in checkpoint.shapes
    if wanted != "auto":
        if wanted not in SPELLINGS:
            allowed = '"auto", "epsilon" or "v_prediction"'
            raise BaseModelError(f"base.prediction_type is {wanted!r}; it must be {allowed}.")
        return Prediction(SPELLINGS[wanted], zero_snr, "the recipe says so")
    if "v_pred" in checkpoint.shapes:
        return Prediction("v_prediction", zero_snr, "the file's mark v_pred says so")
    said = _said(checkpoint.metadata)
    if said:
        return Prediction(*said[:1], zero_snr, f"the file's {said[1]} says so")
    if kind is SD2:
        return _told_by_weight(checkpoint, zero_snr=zero_snr)
    return Prediction("epsilon", zero_snr, f"{kind.title} usually does")


def _said(metadata: dict[str, str]) -> tuple[str, str] | None:
    """Prediction and the metadata that says it."""
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):  # the standard's, and ComfyUI's
        if metadata.get(key) in SPELLINGS:
            return SPELLINGS[metadata[key]], key
    architecture = metadata.get("modelspec.architecture", "")
    for start, prediction in (("768-v", "v_prediction"), ("512", "epsilon")):
        if architecture.startswith(f"stable-diffusion-v2-{start}"):
            return prediction, "modelspec.architecture"
    if metadata.get("global_step") in _EPSILON_STEPS:
        return "epsilon", "global_step"
    return None


def _told_by_weight(checkpoint: Checkpoint, *, zero_snr: bool) -> Prediction:
    unsure = "set base.prediction_type if you know better"
    if _TELLING_BIAS not in checkpoint.shapes:
        return Prediction("v_prediction", zero_snr, f"as most of its kind: {unsure}")
    with checkpoint.values() as value:
        spread = float(value(_TELLING_BIAS).double().std(unbiased=False))
    prediction = "v_prediction" if spread > _TELLING_SPREAD else "epsilon"
    return Prediction(prediction, zero_snr, f"guessed from a weight that spreads by {spread:.3f}: {unsure}")
