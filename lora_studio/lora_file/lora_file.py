"""A LoRA file, opened: its layers, its metadata and whatever else is in it. No tensor is read yet.

Keys may be kohya's and LyCORIS' (`lora_te_..._q_proj.lora_down.weight`, `hada_w1_a`, `lokr_w1`, `dora_scale`,
`diff`, `oft_blocks`), PEFT's (`<part>....to_q.lora_A.weight`) or diffusers' older ones
(`processor.to_q_lora.down`, `lora_linear_layer.up`), with and without wrappers and alphas.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.errors import StudioError
from lora_studio.families.layer_names import PART_PATTERN, path_name
from lora_studio.lora_file.kinds import kind_of
from lora_studio.lora_file.kinds.base import BESIDE, MAGNITUDE
from lora_studio.lora_file.kinds.lora import DOWN, UP
from lora_studio.lora_file.layer import KOHYA, LETTERED, PEFT, LoraLayer, Stored
from lora_studio.tensor_file.header import Header, read_header
from lora_studio.text import same_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lora_studio.adapters.layer import Factors
    from lora_studio.families.base import ModelFamily

ENDINGS = (DOWN, UP, "alpha")  # of a layer of plain LoRA in the kohya format

_LETTERS = {"lora_A.weight": DOWN, "lora_B.weight": UP}
_PEFT_KEY = re.compile(
    rf"(?:base_model\.model\.)?(?P<part>{PART_PATTERN})\.(?P<path>.+?)"
    r"[._](?:(?P<down>lora_A|lora\.down|lora_linear_layer\.down)|(?P<up>lora_B|lora\.up|lora_linear_layer\.up))"
    rf"(?:\.default(?:_0)?)?\.weight|(?P<part_>{PART_PATTERN})\.(?P<path_>.+)\.(?P<beside>alpha|dora_scale)"
)
_ENDINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern + "$"), name)
    for pattern, name in (
        (r"\.lora_(down|up|mid)(?:\.weight)?", r"lora_\1.weight"),
        (r"\.lora_A(?:\.[^.]+)?(?:\.weight)", DOWN),
        (r"\.lora_B(?:\.[^.]+)?(?:\.weight)", UP),
        (r"(?:\.|_)lora(?:_linear_layer)?\.(down|up)(?:\.weight)", r"lora_\1.weight"),
        (r"\.(?:lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?|dora_scale)", MAGNITUDE),
        (r"\.((?:hada|lokr)_(?:w[12](?:_[ab])?|t[12]))(?:\.weight)?", r"\1"),
        (r"\.(alpha|rescale)", r"\1"),
    )
)


@dataclass(frozen=True)
class LoraFile:
    path: Path
    layers: Mapping[str, LoraLayer]  # by the names that kohya gives them
    metadata: Mapping[str, str]
    header: Header | None = None  # none of a file that was put into other words
    bundled: list[str] = field(default_factory=list)  # keys of embeddings beside the layers
    extras: list[str] = field(default_factory=list)  # keys of anything else

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def trigger(self) -> str:
        return same_text(self.metadata.get("modelspec.trigger_phrase", "").strip())

    @property
    def version(self) -> str:
        return self.metadata.get("ss_base_model_version", "")

    @cached_property
    def stray(self) -> list[str]:
        """Keys that are no part of plain LoRA in the kohya format."""
        keys = self.header.entries if self.header else ()
        return [key for key in keys if key.partition(".")[2] not in ENDINGS]

    @property
    def ranks(self) -> dict[str, int]:
        return {name: one.rank for name, one in self.layers.items() if one.rank is not None}

    @cached_property
    def alphas(self) -> dict[str, float]:
        return {name: one.alpha for name, one in self.layers.items() if one.alpha is not None}

    @cached_property
    def not_finite(self) -> list[str]:
        return [name for name, one in self.layers.items() if one.state == "not finite"]

    @cached_property
    def zero(self) -> list[str]:
        return [name for name, one in self.layers.items() if one.state == "zero"]

    @property
    def notes(self) -> tuple[str, ...]:
        lacking = sum(one.alpha is None for one in self.layers.values())
        said = f"{self.name}: {lacking} of {len(self.layers)} layers have no alpha"
        return (f"{said}; taken as a scale of 1, as UIs do",) if lacking else ()

    def delta(self, name: str) -> Tensor:
        """A layer's weight change in float32, in the shape of its weight. Raises KeyError if it has none."""
        return self.layers[name].delta()

    def factors(self, name: str, strength: float = 1.0) -> Factors:
        """A layer's change in float64: `up @ down`, with alpha / rank and the strength in `up`.

        Raises StudioError if it holds a number that is not finite.
        """
        from lora_studio.adapters.layer import Factors

        layer = self.layers[name]
        down, up = (layer.tensors[end].double().flatten(1) for end in ENDINGS[:2])
        if not (down.isfinite().all() and up.isfinite().all()):
            raise StudioError(
                f"{self.name}: {name} holds numbers that are not finite; the file is damaged or its training "
                "diverged. Take another checkpoint of it."
            )
        return Factors(down, up * (layer.scale * strength))

    @property
    def metadata_bytes(self) -> int:
        return sum(len(key.encode()) + len(value.encode()) for key, value in self.metadata.items())


def open_lora(path: Path) -> LoraFile:
    """Open a file; raises StudioError if it does not exist or is no valid safetensors file."""
    return lora_file(read_header(path))


def lora_file(header: Header) -> LoraFile:
    """Sort a file's keys, in the spellings that UIs were tried with; those of others are extras."""
    keys: dict[str, dict[str, str]] = {}
    spellings: dict[str, str] = {}
    bundled, extras = [], []
    two_encoders = any(key.startswith(("text_encoder_2.", "lora_te2_")) for key in header.entries)
    for key in header.entries:
        found = known_key(key, two_encoders=two_encoders)
        if key.startswith("bundle_emb."):
            bundled.append(key)
        elif found is None:
            extras.append(key)
        else:
            name, end, spelling = found
            keys.setdefault(name, {})[end] = key
            if spelling != KOHYA:
                spellings[name] = spelling
    for name in [name for name, ends in keys.items() if kind_of(ends) is None]:
        extras += keys.pop(name).values()
    layers = {n: LoraLayer(n, Stored(header, ends), spellings.get(n, KOHYA)) for n, ends in keys.items()}
    return LoraFile(header.path, layers, header.metadata, header, bundled, extras)


def known_key(key: str, *, two_encoders: bool) -> tuple[str, str, str] | None:
    """Layer as kohya spells it, ending and spelling of a key, in those spellings that UIs were tried with.

    None if it is none of a layer's.
    """
    name, _, end = key.partition(".")
    if end in BESIDE or kind_of((end,)):
        return name, end, KOHYA
    if end in _LETTERS:
        return name, _LETTERS[end], LETTERED
    found = _PEFT_KEY.fullmatch(key)
    if not found:
        return None
    part, path = found["part"] or found["part_"], found["path"] or found["path_"]
    path = re.sub(r"(^|\.)processor\.", r"\1", path)
    end = found["beside"] or (DOWN if found["down"] else UP)
    return path_name(part, path, two_encoders=two_encoders), end, PEFT


def any_key(key: str) -> tuple[str, str] | None:
    """A key of any tool without its ending, and what that means; None if it means nothing."""
    for pattern, name in _ENDINGS:
        match = pattern.search(key)
        if match:
            return key[: match.start()], match.expand(name)
    stem, _, end = key.rpartition(".")
    return (stem, end) if kind_of((end,)) else None


def base_layers(family: ModelFamily) -> dict[str, nn.Linear | nn.Conv2d]:
    """UI name -> layer, for every linear layer and convolution of the base that a LoRA file can name."""
    from torch import nn

    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for part in family.targets:
        for path, module in family.parts[part].named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                found[family.ui_name(part, family.canonical_path(part, path))] = module
    return found
