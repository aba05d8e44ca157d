"""A LoRA file of any tool, kind and spelling put into plain LoRA; a key that no LoRA has is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lora_studio.errors import StudioError, preview_names, reason_of
from lora_studio.families.base import ModelFamily
from lora_studio.families.layer_names import DENOISER
from lora_studio.families.layer_names.spellings import LayerPlace, kernel_of, place_of
from lora_studio.families.layer_names.transformers import TRANSFORMER
from lora_studio.lora_file.factors import PlainLora
from lora_studio.lora_file.kinds.base import BESIDE, BIAS
from lora_studio.lora_file.kinds.whole import SET
from lora_studio.lora_file.layer import Held, LoraLayer
from lora_studio.lora_file.lora_file import ENDINGS, LoraFile, base_layers, open_lora
from lora_studio.text import be, plural

_ADAPTER_METADATA, _PEFT_CONFIG = "lora_adapter_metadata", "adapter_config.json"


@dataclass(frozen=True)
class PlacedLayers:
    file: LoraFile  # with the names that UIs know
    layers: dict[LayerPlace, LoraLayer]


class DeclaredAlphas(NamedTuple):
    """What a file, or the configuration beside it, says of scales apart from its tensors."""

    alphas: Mapping[LayerPlace | str, float]  # of single layers, and of whole parts
    by_square_root: frozenset[str]  # parts whose alphas count against the root of the rank


def read_places(path: Path, *, skip_unknown: bool = False, has_base: bool = False) -> PlacedLayers:
    """Every layer as the file has it. Raises StudioError as `read_any`."""
    file = convertible_part(open_lora(path), skip_unknown=skip_unknown, has_base=has_base).in_one_spelling()
    said = _said_alphas(path, file)
    return PlacedLayers(
        file, {one.place: _checked(file, one, one.place, said) for one in file.layers.values() if one.place}
    )


def convertible_part(file: LoraFile, *, skip_unknown: bool, has_base: bool = False) -> LoraFile:
    """What plain LoRA can hold of it; what it is without is said.

    Raises StudioError for tensors that no LoRA has, unless they are skipped, and if nothing is left. With
    them go the weights that replace those of a base that is not there.
    """
    replaces = skip_unknown and not has_base
    no_lora = [n for n, one in file.layers.items() if one.place is None or (replaces and one.kind is SET)]
    unknown = [key for name in no_lora for key in file.layers[name].keys] + file.extras
    count = len(file.header.entries) if file.header else 0
    what = f"{len(unknown)} of {plural(count, 'tensor')} that no LoRA has: {preview_names(unknown)}"
    if unknown and not skip_unknown:
        skip = "" if len(unknown) == count else "; --skip-unknown leaves them out"
        raise StudioError(f"{file.name} holds {what}; it is not converted{skip}.")
    beside = [name for name, one in file.layers.items() if one.is_beside]
    biases = [name for name, one in file.layers.items() if BIAS in one.entries and name not in beside]
    counts = {
        ("change", "of norms, embeddings, or biases alone, which plain LoRA cannot hold"): len(beside),
        ("change", "of biases beside their weights, which plain LoRA cannot hold"): len(biases),
        ("tensor", "of embeddings, which UIs take from files of their own"): len(file.bundled),
        ("scalar", "which LyCORIS and UIs do not read"): len(file.scalars),
    }
    left_out = [what] if unknown else []
    left_out += [f"{plural(number, one)} {rest}" for (one, rest), number in counts.items() if number]
    gone = {*no_lora, *beside}
    layers = {name: one for name, one in file.layers.items() if name not in gone}
    if not layers:
        why = "; ".join(left_out) or "nothing"
        raise StudioError(
            f"{file.name} holds {why}; it is not converted, as plain LoRA can hold none of that."
        )
    said = [f"{file.name} is taken without {one}" for one in left_out]
    return replace(file, layers=layers, said=(*file.said, *said))


def _checked(file: LoraFile, layer: LoraLayer, place: LayerPlace, said: DeclaredAlphas) -> LoraLayer:
    """Raises StudioError if it is not complete."""
    kind, shapes = layer.kind, layer.shapes
    foreign = [end for end in layer.entries if end not in (*kind.endings, *kind.beside)]
    odd = [
        end
        for end, one in shapes.items()
        if (len(one) < 2 and end not in (*BESIDE, BIAS)) or (0 in one and end != "alpha")
    ]
    if kind.name == "oft" and len(shapes.get("oft_blocks", ())) != 3:
        what = "is of a kind that is not known"
    elif foreign:
        what = f"is {kind.name} and has {foreign[0]} beside that"
    elif layer.missing:
        what = f"lacks its {', '.join(layer.missing)}"
    elif odd:
        what = f"has {odd[0]} in the shape {list(shapes[odd[0]])}"
    elif layer.size is None and kind.tells_size:
        shapes_said = " and ".join(str(list(one)) for end, one in shapes.items() if end not in BESIDE)
        what = f"has tensors that do not fit together, of the shapes {shapes_said}"
    elif faults := layer.faults():
        what = f"is not complete ({faults[0]})"
    elif layer.state == "not finite":
        what = "is not finite"
    elif layer.rank and layer.alpha == 0:
        what = "has an alpha of 0, which most UIs take for switched off and kohya for the rank"
    else:
        return replace(layer, said_alpha=_alpha(layer, place, said))
    raise StudioError(f"{file.name}: {layer.written} {what}; it is not converted.")


def _alpha(layer: LoraLayer, place: LayerPlace, said: DeclaredAlphas) -> float | None:
    alpha = said.alphas.get(place, said.alphas.get(place.part)) if layer.kind.name == "lora" else None
    if alpha is None or place.part not in said.by_square_root:
        return alpha
    return alpha * float(layer.rank or 1) ** 0.5


def _said_alphas(path: Path, file: LoraFile) -> DeclaredAlphas:
    """Alphas that PEFT and diffusers keep apart from the tensors, of single layers and of whole parts."""
    beside, metadata = path.with_name(_PEFT_CONFIG), file.metadata
    denoiser = DENOISER if file.transformer is None else TRANSFORMER
    try:
        if _ADAPTER_METADATA in metadata:
            values: dict[str, Any] = json.loads(metadata[_ADAPTER_METADATA])
        elif path.stem == "adapter_model" and beside.is_file():
            values = json.loads(beside.read_text("utf-8"))
        else:
            return DeclaredAlphas({}, frozenset())
        found: dict[LayerPlace | str, float] = {}
        roots = set()
        for key, value in values.items():
            part, _, option = key.rpartition(".")
            if option == "use_rslora" and value:
                roots.add(part or denoiser)
            if option == "lora_alpha":
                found[part or denoiser] = float(value)
            for layer, alpha in (value or {}).items() if option == "alpha_pattern" else ():
                if place := _place(f"{part}.{layer.strip('^$')}".lstrip("."), file):
                    found[place] = float(alpha)
    except (ValueError, TypeError, AttributeError) as error:
        said = f"{path.name} says its alphas in a form that cannot be read ({reason_of(error)})."
        raise StudioError(said) from None
    return DeclaredAlphas(found, frozenset(roots))


def _place(stem: str, file: LoraFile) -> LayerPlace | None:
    written = None if file.transformer is None else file.transformer.read(stem)
    return place_of(stem) if written is None else written.rows[0]


@dataclass(frozen=True)
class PlainLayers:
    layers: dict[LayerPlace, PlainLora]
    names: dict[LayerPlace, str]  # that UIs know them by
    file: PlacedLayers  # as it was read
    base: ModelFamily | None  # that was given


def read_any(path: Path, *, base: ModelFamily | None = None, skip_unknown: bool = False) -> LoraFile:
    """A file in any spelling and of any kind as plain LoRA with the names that UIs know.

    `alpha` is float32 without dimensions. `base` is needed for kinds whose change depends on its weights.
    Raises StudioError for what is no LoRA, names unknown keys unless they are skipped, and says which layers
    are not complete.
    """
    found, layers = read_plain_layers(path, base=base, skip_unknown=skip_unknown), {}
    for place, one in found.layers.items():
        values = (one.down, one.up, torch.tensor(one.scale * len(one.down)))
        name = found.names[place]
        layers[name] = LoraLayer(name, Held(zip(ENDINGS, values, strict=True)), place=place)
    file = found.file.file
    return LoraFile(path, layers, file.metadata, said=file.said, transformer=file.transformer)


def read_plain_layers(
    path: Path, *, base: ModelFamily | None = None, skip_unknown: bool = False
) -> PlainLayers:
    """Every layer as plain LoRA. Raises as `read_any`."""
    found = read_places(path, skip_unknown=skip_unknown, has_base=base is not None)
    known = {} if base is None else base_layers(base)
    names = {
        place: one.name if base is None else _name(place, one, base) for place, one in found.layers.items()
    }
    if unknown := [name for name in names.values() if base is not None and name not in known]:
        count = f"{len(unknown)} of its {plural(len(names), 'layer')} {be(len(unknown))}"
        raise StudioError(
            f"{path.name}: {count} not in this base, first {unknown[0]}; it is for another kind of base."
        )
    plain = {}
    for place, layer in found.layers.items():
        name = names[place]
        weight = known[name].weight if name in known else None
        if layer.needs_base and weight is None:
            raise StudioError(
                f"{path.name} holds {layer.written}, whose change depends on the base's weights; make plain "
                f"LoRA of it with `lora-studio convert {path.name} --to kohya --base BASE`, which knows them"
                f"{', or leave it out with --skip-unknown' if layer.kind is SET else ''}."
            )
        try:
            one = layer.plain(weight)
            shape = None if weight is None else weight.shape
            plain[place] = _with_sides(one, place, shape, linear=found.file.has_linear_projections)
        except (RuntimeError, ArithmeticError, LookupError, ValueError):  # torch's, of shapes and numbers
            raise StudioError(
                f"{path.name}: the tensors of {layer.written} do not fit together; get the file again from "
                "where it came."
            ) from None
    return PlainLayers(plain, names, found, base)


def _name(place: LayerPlace, layer: LoraLayer, base: ModelFamily) -> str:
    """What UIs call it, as the base says it: a miniature may count its blocks otherwise."""
    try:
        return base.ui_name(*place)
    except (KeyError, ValueError):
        raise StudioError(f"{layer.written} is of a part that this kind of base does not have.") from None


def _with_sides(
    plain: PlainLora, place: LayerPlace, shape: torch.Size | None, *, linear: bool | None
) -> PlainLora:
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
