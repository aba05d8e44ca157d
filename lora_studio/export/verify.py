"""Open a finished LoRA file as a stranger would and say whether it is whole.

Three levels: the file alone (layers complete, finite, not all zero, metadata), the file against its base
(every key maps to a layer, shapes fit), and a probe batch through diffusers' own loader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lora_studio.errors import StudioError
from lora_studio.export.metadata import MAX_BYTES
from lora_studio.families.base import ModelFamily

ENDINGS = ("lora_down.weight", "lora_up.weight", "alpha")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_RANK = 4096


@dataclass(frozen=True)
class LoraFile:
    """An opened file: its tensors by layer and ending, and what it says about itself."""

    path: Path
    layers: dict[str, dict[str, Tensor]]
    stray: list[str]  # keys that are no part of a kohya-format layer
    metadata: dict[str, str]

    def delta(self, name: str) -> Tensor:
        """A layer's weight change in float32: alpha / rank * up @ down, in the shape of its weight."""
        tensors = self.layers[name]
        down, up = tensors["lora_down.weight"].float(), tensors["lora_up.weight"].float()
        change = up.flatten(1) @ down.flatten(1)
        return tensors["alpha"].item() / down.shape[0] * change.view(up.shape[0], *down.shape[1:])


@dataclass
class Report:
    """What verify found. `faults` empty means: whole, as far as `checks` says it was looked at."""

    file: str
    faults: list[str] = field(default_factory=list)
    checks: dict[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """For verify.json."""
        return asdict(self) | {"whole": self.whole}


def open_lora(path: Path) -> LoraFile:
    """Read a file; raises StudioError if it does not exist or is not a safetensors file."""
    if not path.is_file():
        raise StudioError(f"there is no file at {path}; give the path of a .safetensors file.")
    layers: dict[str, dict[str, Tensor]] = {}
    stray: list[str] = []
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - a safetensors handle, not a dict
                name, _, ending = key.partition(".")
                if ending in ENDINGS:
                    layers.setdefault(name, {})[ending] = file.get_tensor(key)
                else:
                    stray.append(key)
    except (SafetensorError, OSError, ValueError) as error:
        raise StudioError(f"{path} is not a whole safetensors file ({error}); it may be cut short.") from None
    return LoraFile(path, layers, stray, metadata)


def check_file(file: LoraFile) -> Report:
    """What the file shows by itself."""
    report = Report(file.path.name)
    if not file.layers:
        report.faults.append("it holds no layer in the kohya format, so no UI would load anything from it")
    if file.stray:
        report.faults.append(
            f"{len(file.stray)} keys belong to no layer, first {file.stray[0]}; some UIs refuse such files"
        )
    for name, tensors in file.layers.items():
        report.faults += [f"{name}: {fault}" for fault in _layer_faults(tensors)]
    zero = [n for n, t in file.layers.items() if "lora_up.weight" in t and not t["lora_up.weight"].any()]
    if file.layers and len(zero) == len(file.layers):
        report.faults.append("every layer is zero, so the file does nothing")
    size = sum(len(key) + len(value.encode()) for key, value in file.metadata.items())
    if size > MAX_BYTES:
        report.faults.append(f"its metadata has {size} bytes; UIs expect less than {MAX_BYTES}")
    report.checks |= {
        "layers": len(file.layers),
        "layers_that_are_zero": len(zero),
        "dtypes": sorted(
            {str(t.dtype).removeprefix("torch.") for ts in file.layers.values() for t in ts.values()}
        ),
        "metadata_bytes": size,
        "base_model_version": file.metadata.get("ss_base_model_version", ""),
    }
    return report


def _layer_faults(tensors: Mapping[str, Tensor]) -> list[str]:
    missing = [ending for ending in ENDINGS if ending not in tensors]
    if missing:
        return [f"{', '.join(missing)} is missing"]
    down, up, alpha = (tensors[ending] for ending in ENDINGS)
    faults = [f"{end} has dtype {t.dtype}" for end, t in tensors.items() if t.dtype not in DTYPES]
    faults += [f"{end} is not finite" for end, t in tensors.items() if not t.isfinite().all()]
    if down.ndim not in (2, 4) or up.ndim != down.ndim:
        return [
            *faults,
            f"shapes {tuple(down.shape)} and {tuple(up.shape)} are not those of a linear layer "
            "or convolution",
        ]
    if up.shape[1] != down.shape[0] or not 1 <= down.shape[0] <= MAX_RANK:
        faults.append(f"ranks {down.shape[0]} and {up.shape[1]} do not fit")
    if alpha.ndim != 0 or alpha.item() == 0:
        faults.append(f"alpha is {alpha.tolist()}; it must be one number other than 0")
    return faults


def base_layers(family: ModelFamily) -> dict[str, nn.Linear | nn.Conv2d]:
    """UI name -> layer, for every linear layer and convolution of the base that a LoRA file can name."""
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for part in family.targets:
        for path, module in family.parts[part].named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                found[family.ui_name(part, family.canonical_path(part, path))] = module
    return found


def check_against_base(file: LoraFile, family: ModelFamily, report: Report) -> None:
    """Every key maps to a layer of the (unadapted) base, and shapes fit."""
    layers = base_layers(family)
    unknown = [name for name in file.layers if name not in layers]
    if unknown:
        report.faults.append(
            f"{len(unknown)} of {len(file.layers)} layers are not in the base, first {unknown[0]}"
        )
    for name in file.layers.keys() - set(unknown):
        tensors = file.layers[name]
        if any(ending not in tensors for ending in ENDINGS):
            continue
        wanted = tuple(layers[name].weight.shape)
        shape = (tensors["lora_up.weight"].shape[0], *tensors["lora_down.weight"].shape[1:])
        if shape != wanted:
            report.faults.append(f"{name}: changes a weight of shape {shape}, but the base's is {wanted}")
    if report.whole and not any(name.endswith(("attn2_to_k", "attn2_to_v")) for name in file.layers):
        report.faults.append("it has no cross-attention to_k or to_v, by which InvokeAI recognises the base")
    report.checks["keys_mapped"] = f"{len(file.layers) - len(unknown)} of {len(file.layers)}"
