"""A LoRA file's tensors by layer, whatever its spelling, from the header alone."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from lora_studio.families.layer_names import PART_PATTERN, path_name
from lora_studio.lora_file.header import Header, TensorEntry

KOHYA, LETTERED, PEFT = "kohya", "lettered", "peft"
"""Spellings: `lora_te_x.lora_down.weight`; `lora_te_x.lora_A.weight`; `text_encoder.x.lora_A.weight`."""

_FACTORS = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
_ROLES = {
    "lora": ("lora_down.weight", "lora_up.weight", "lora_mid.weight"),
    "loha": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "lokr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "oft": ("oft_blocks", "oft_diag"),
    "full": ("diff", "diff_b"),
    "norm": ("w_norm", "b_norm"),
}
_KIND_OF = {role: kind for kind, roles in _ROLES.items() for role in roles}
_BESIDE = ("alpha", "dora_scale", "rescale")
_PEFT_KEY = re.compile(
    rf"(?:base_model\.model\.)?(?P<part>{PART_PATTERN})\.(?P<path>.+?)"
    r"[._](?:(?P<down>lora_A|lora\.down|lora_linear_layer\.down)|(?P<up>lora_B|lora\.up|lora_linear_layer\.up))"
    rf"(?:\.default(?:_0)?)?\.weight|(?P<part_>{PART_PATTERN})\.(?P<path_>.+)\.(?P<beside>alpha|dora_scale)"
)
_BUNDLED = "bundle_emb."


@dataclass
class StoredLayer:
    """A layer's tensors by kohya's and LyCORIS's endings, and their keys."""

    name: str  # as kohya spells it
    spelling: str = KOHYA
    keys: dict[str, str] = field(default_factory=dict)  # ending -> key in the file
    entries: dict[str, TensorEntry] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """lora, loha, lokr, oft, full or norm; empty if nothing but an alpha or the like is there."""
        return next((_KIND_OF[role] for role in self.entries if role in _KIND_OF), "")

    @property
    def missing(self) -> list[str]:
        """Endings without which nothing can be made of the others."""
        if self.kind == "lora":
            wanted = _ROLES["lora"][:2]
        elif self.kind == "loha":
            wanted = _ROLES["loha"][:4]
        elif self.kind == "lokr":
            pairs = [(w,) if w in self.entries else (f"{w}_a", f"{w}_b") for w in ("lokr_w1", "lokr_w2")]
            wanted = tuple(end for pair in pairs for end in pair)
        else:
            return []
        return [end for end in wanted if end not in self.entries]

    @property
    def rank(self) -> int | None:
        """How many columns its factors have; None if it has none, or does not say."""
        for end in ("lora_down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
            if end in self.entries and self.entries[end].shape:
                return self.entries[end].shape[0]
        return None

    def shape(self, end: str) -> tuple[int, ...]:
        """Of a tensor that is there."""
        return self.entries[end].shape

    @property
    def changes(self) -> tuple[int, int] | None:
        """[out, in * k * k] of the weight that it changes, or None where tensors do not fit or do not say."""
        if self.missing or self.kind in ("", "oft", "norm"):
            return None
        try:
            return _MAKES[self.kind](self)
        except (IndexError, ValueError, KeyError):
            return None


def _of_lora(layer: StoredLayer) -> tuple[int, int] | None:
    down, up = layer.shape("lora_down.weight"), layer.shape("lora_up.weight")
    inner = layer.entries.get("lora_mid.weight")
    if down[0] != up[1] or math.prod(up[2:]) != 1 or (inner and inner.shape[:2] != (down[0], down[0])):
        return None
    return up[0], math.prod(down[1:]) * (math.prod(inner.shape[2:]) if inner else 1)


def _of_loha(layer: StoredLayer) -> tuple[int, int] | None:
    sides = []
    for number in (1, 2):
        a, b = layer.shape(f"hada_w{number}_a"), layer.shape(f"hada_w{number}_b")
        inner = layer.entries.get(f"hada_t{number}")
        if len(a) != 2 or len(b) != 2:
            return None
        if inner:
            fits, side = inner.shape[:2] == (a[0], b[0]), (a[1], b[1] * math.prod(inner.shape[2:]))
        else:
            fits, side = a[1] == b[0], (a[0], b[1])
        if not fits:
            return None
        sides.append(side)
    return sides[0] if sides[0] == sides[1] else None


def _of_lokr(layer: StoredLayer) -> tuple[int, int] | None:
    out = inputs = 1
    for name in ("lokr_w1", "lokr_w2"):
        if name in layer.entries:
            whole = layer.shape(name)
            side = (whole[0], math.prod(whole[1:]))
        else:
            a, b, inner = layer.shape(f"{name}_a"), layer.shape(f"{name}_b"), layer.entries.get("lokr_t2")
            if inner and name == "lokr_w2":
                side = (a[1], b[1] * math.prod(inner.shape[2:]))
            elif a[1] != b[0]:
                return None
            else:
                side = (a[0], math.prod(b[1:]))
        out, inputs = out * side[0], inputs * side[1]
    return out, inputs


def _of_full(layer: StoredLayer) -> tuple[int, int] | None:
    shape = layer.shape("diff")
    return shape[0], math.prod(shape[1:])


_MAKES = {"lora": _of_lora, "loha": _of_loha, "lokr": _of_lokr, "full": _of_full}


@dataclass(frozen=True)
class Contents:
    """The layers of a file, and what belongs to none."""

    layers: dict[str, StoredLayer]
    bundled: list[str]  # keys of embeddings beside the layers
    extras: list[str]  # keys of anything else


def contents_of(header: Header) -> Contents:
    """Sort a file's keys."""
    layers: dict[str, StoredLayer] = {}
    bundled, extras = [], []
    two_encoders = any(key.startswith(("text_encoder_2.", "lora_te2_")) for key in header.entries)
    for key, entry in header.entries.items():
        found = _place(key, two_encoders=two_encoders)
        if key.startswith(_BUNDLED):
            bundled.append(key)
        elif found is None:
            extras.append(key)
        else:
            name, end, spelling = found
            layer = layers.setdefault(name, StoredLayer(name))
            if spelling != KOHYA:
                layer.spelling = spelling
            layer.keys[end], layer.entries[end] = key, entry
    for name in [name for name, layer in layers.items() if not layer.kind]:
        extras += layers.pop(name).keys.values()
    return Contents(layers, bundled, extras)


def _place(key: str, *, two_encoders: bool) -> tuple[str, str, str] | None:
    """Layer, ending and spelling of a key, or None if it is none of a layer's."""
    name, _, end = key.partition(".")
    if end in _KIND_OF or end in _BESIDE:
        return name, end, KOHYA
    if end in _FACTORS:
        return name, _FACTORS[end], LETTERED
    found = _PEFT_KEY.fullmatch(key)
    if not found:
        return None
    part, path = found["part"] or found["part_"], found["path"] or found["path_"]
    factor = "lora_down.weight" if found["down"] else "lora_up.weight"
    path = re.sub(r"(^|\.)processor\.", r"\1", path)
    return path_name(part, path, two_encoders=two_encoders), found["beside"] or factor, PEFT
