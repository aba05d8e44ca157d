"""A finished file from anywhere in another spelling, and as plain LoRA if it is of another kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lora_studio.adapters.layer import Factors
from lora_studio.errors import RecipeError, StudioError
from lora_studio.export import EXPORTERS, kohya, target_named
from lora_studio.families.layer_names import transformers
from lora_studio.families.layer_names.spellings import TEXT_PROJECTIONS
from lora_studio.families.layer_names.transformers import TRANSFORMER, FileForm, TransformerLayout
from lora_studio.families.loading import load_base
from lora_studio.files import say_unwritable
from lora_studio.lora_file.convertible import PlainLayers, read_plain_layers
from lora_studio.lora_file.factors import PlainLora, energy
from lora_studio.lora_file.forms import LayerSizes, spell_form
from lora_studio.lora_file.kinds.lora import DOWN, UP
from lora_studio.lora_file.lora_file import open_lora, refuse_part
from lora_studio.lora_file.rounding import Rounding
from lora_studio.lora_file.write import DTYPES, write_lora
from lora_studio.metadata.write import hashes
from lora_studio.registry import Registry
from lora_studio.tools import Report
from lora_studio.tools.result import check_output

_STALE = ("sshs_", "modelspec.hash_sha256", "lora_adapter_metadata", "format")  # of the bytes as they were


@dataclass(frozen=True)
class Converted(Report):
    path: str
    layers: int
    cast_error: float  # the largest that the dtype caused in a tensor, relative to its largest number
    cut: bool  # whether a layer was no plain LoRA
    left_out: float  # the largest share of such a layer's change that is not in the file
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def convert(
    path: Path,
    target: str,
    *,
    out: Path | None = None,
    base: str | None = None,
    dtype: str = "float16",
    force: bool = False,
    skip_unknown: bool = False,
) -> Converted:
    """Write a file's layers for `target`, beside it unless `out` says where.

    Raises StudioError for what cannot be read, names what is unknown unless that is skipped, and replaces
    nothing unless `force`.
    """
    target = target_named(target)
    if target not in SPELLINGS.entries and target in EXPORTERS.entries:
        names = ", ".join(SPELLINGS.names())
        raise RecipeError(f"--to {target} is for what a run has trained; a file can be converted to {names}.")
    spell = SPELLINGS[target]
    if dtype not in DTYPES:
        raise RecipeError(f"--dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    refuse_part(open_lora(path))
    out = out or path.with_name(f"{path.stem}_{target}.safetensors")
    check_output(out, force=force, inputs=[path])
    family = None if base is None else load_base(base)
    found = read_plain_layers(path, base=family, skip_unknown=skip_unknown)
    said = list(found.file.file.said)
    kept = {key: value for key, value in found.file.file.metadata.items() if not key.startswith(_STALE)}
    kept |= {"ss_output_name": out.stem, "ss_network_module": "networks.lora", "ss_network_args": "{}"}
    tensors = spell(found)
    rounding = _rounding(tensors, dtype)
    with say_unwritable(out):
        error = write_lora(out, tensors, dtype=dtype, describe=lambda block: kept | hashes([block]))
    cut = any(layer.kind.name != "lora" or layer.needs_base for layer in found.file.layers.values())
    left_out = max(one.left_out for one in found.layers.values())
    return Converted(str(out), len(found.layers), error, cut, left_out, rounding.warnings, said)


def _rounding(tensors: dict[str, Tensor], dtype: str) -> Rounding:
    """Of plain LoRA in either spelling. Raises StudioError if the dtype would leave nothing of it."""
    rounding = Rounding(dtype)
    for first, second in ((DOWN, UP), (kohya.DOWN, kohya.UP)):
        for key in tensors:
            name = key.removesuffix(f".{first}")
            if name != key:
                down, up = (tensors[f"{name}.{end}"].flatten(1) for end in (first, second))
                exact, rank = Factors(down.double(), up.double()), len(down)
                cast = Factors(down.to(DTYPES[dtype]), up.to(DTYPES[dtype]))
                scale = float(tensors.get(f"{name}.alpha", torch.tensor(rank))) / rank
                rounding.add_factors(exact, cast, scale, energy(exact) * scale**2)
    rounding.check_something()
    return rounding


def to_kohya(found: PlainLayers) -> dict[str, Tensor]:
    """As every UI loads it; with all projections of a text encoder's attention, which A1111 wants."""
    if (layout := found.file.file.transformer) is not None:
        return _in_form(found, layout, layout.best)
    named = {found.names[place]: one for place, one in found.layers.items()}
    for place, one in found.layers.items():
        _, attention, last = place.path.rpartition("self_attn.")
        for other in TEXT_PROJECTIONS if attention else ():
            name = found.names[place].removesuffix(last) + other
            if name not in named:
                named[name] = PlainLora(torch.zeros_like(one.down[:1]), torch.zeros_like(one.up[:, :1]), 1.0)
    return kohya.spell(named)


def to_diffusers(found: PlainLayers) -> dict[str, Tensor]:
    """By PEFT's names."""
    if (layout := found.file.file.transformer) is not None:
        return _in_form(found, layout, transformers.DIFFUSERS)
    return kohya.spell_diffusers({f"{place.part}.{place.path}": one for place, one in found.layers.items()})


def to_sd_scripts(found: PlainLayers) -> dict[str, Tensor]:
    """As kohya's own trainers continue from it."""
    layout = found.file.file.transformer
    return to_kohya(found) if layout is None else _in_form(found, layout, layout.trainer)


def to_comfy(found: PlainLayers) -> dict[str, Tensor]:
    """By ComfyUI's own names. Raises StudioError for a file whose base it knows by kohya's."""
    layout = found.file.file.transformer
    if layout is None:
        raise StudioError(
            "--to comfy is for transformer bases; ComfyUI reads this one's files of --to kohya."
        )
    return _in_form(found, layout, transformers.COMFY)


def _in_form(found: PlainLayers, layout: TransformerLayout, form: FileForm) -> dict[str, Tensor]:
    sizes = {
        place.path: (len(one.up), one.down[0].numel())
        for place, one in found.layers.items()
        if place.part == TRANSFORMER
    }
    version = found.file.file.version
    return spell_form(found.layers, layout, form, LayerSizes(layout, sizes, found.base, version))


SPELLINGS: Registry[Callable[[PlainLayers], dict[str, Tensor]]] = Registry(
    "conversion",
    {name: f"lora_studio.tools.convert:to_{name}" for name in ("kohya", "diffusers", "comfy", "sd_scripts")},
)
