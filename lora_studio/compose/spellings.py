"""A file in any spelling as plain LoRA in the names that UIs know: what every tool begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lora_studio.compose.file_layers import FileLayers, read_layers
from lora_studio.errors import StudioError
from lora_studio.export.plain import Plain
from lora_studio.export.verify import LoraFile, base_layers
from lora_studio.families.base import ModelFamily
from lora_studio.families.layer_names import Place, kernel_of


@dataclass(frozen=True)
class PlainLayers:
    """A file's layers as plain LoRA."""

    layers: dict[Place, Plain]
    names: dict[Place, str]  # that UIs know them by
    file: FileLayers  # as it was read


def read_any(path: Path, *, base: ModelFamily | None = None) -> LoraFile:
    """A file in any spelling and of any kind as plain LoRA with the names that UIs know.

    `alpha` is float32 without dimensions. `base` is needed for kinds whose change depends on its weights.
    Raises StudioError for what is no LoRA, names unknown keys, and says which layers are not whole.
    """
    found = read_plain_layers(path, base=base)
    layers = {
        found.names[place]: {
            "lora_down.weight": one.down,
            "lora_up.weight": one.up,
            "alpha": torch.tensor(one.scale * len(one.down)),
        }
        for place, one in found.layers.items()
    }
    return LoraFile(path, layers, [], found.file.metadata)


def read_plain_layers(path: Path, *, base: ModelFamily | None = None) -> PlainLayers:
    """Every layer as plain LoRA. Raises as `read_any`."""
    file = read_layers(path)
    known = {} if base is None else base_layers(base)
    names = {place: _name(place, file, base) for place in file.layers}
    if unknown := [name for name in names.values() if base is not None and name not in known]:
        raise StudioError(
            f"{path.name}: {len(unknown)} of its {len(names)} layers are not in this base, "
            f"first {unknown[0]}; it is for another kind of base."
        )
    linear = _projects_linearly(file)
    plain = {}
    for place, layer in file.layers.items():
        name = names[place]
        weight = known[name].weight if name in known else None
        if layer.needs_base and weight is None:
            raise StudioError(
                f"{path.name} holds {layer.key}, whose change depends on the base's weights; make plain LoRA "
                f"of it with `lora-studio convert {path.name} --to kohya --base BASE`, which is told them."
            )
        try:
            one = layer.plain(weight)
            plain[place] = _with_sides(one, place, None if weight is None else weight.shape, linear=linear)
        except (RuntimeError, ArithmeticError, LookupError, ValueError):  # torch's, of shapes and numbers
            raise StudioError(
                f"{path.name}: the tensors of {layer.key} do not fit together; get the file again from where "
                "it came."
            ) from None
    return PlainLayers(plain, names, file)


def _name(place: Place, file: FileLayers, base: ModelFamily | None) -> str:
    """What UIs call it; as the base says it, if there is one: a miniature may count its blocks otherwise."""
    try:
        return file.layout.name(place) if base is None else base.ui_name(*place)
    except (KeyError, ValueError):
        raise StudioError(
            f"{file.path.name}: {file.layers[place].key} is a layer of a part that this kind of base has not."
        ) from None


def _projects_linearly(file: FileLayers) -> bool | None:
    """Whether the base's projections are linear layers and not convolutions; None if nothing tells."""
    widths = {
        len(layer.tensors["down"][0])
        for place, layer in file.layers.items()
        if place.path.endswith("attn2.to_k") and "down" in layer.tensors
    }
    if file.layout.original or 1024 in widths:
        return True
    return False if 768 in widths else None


def _with_sides(plain: Plain, place: Place, shape: torch.Size | None, *, linear: bool | None) -> Plain:
    """With as many sides as the layer's weight has: some tools write linear layers as convolutions."""
    down, up = plain.down, plain.up
    if shape is None:
        last, kernel = place.path.rpartition(".")[2], kernel_of(place.path)
        is_projection = last in ("proj_in", "proj_out")
        if kernel == 1 and is_projection and linear is None:
            return plain
        convolved = kernel > 1 or last == "conv_shortcut" or (is_projection and linear is False)
        inputs = down[0].numel() // kernel**2
        sides: tuple[int, ...] = (kernel, kernel) if convolved else ()
    else:
        inputs, sides = int(shape[1]), tuple(shape[2:])
    up = up.reshape(up.shape[0], -1, *(1 for _ in sides))
    return plain._replace(down=down.reshape(len(down), inputs, *sides), up=up)
