"""The keys of LoRA files, of whatever tool: the layer that a tensor is of, what of it, and whose spelling.

Kohya's and LyCORIS' are `lora_te_..._q_proj.lora_down.weight`, `hada_w1_a`, `lokr_w1`, `dora_scale`, `diff`,
`oft_blocks`; PEFT's `<part>....to_q.lora_A.weight`; diffusers' older ones `processor.to_q_lora.down` and
`lora_linear_layer.up`; ComfyUI's `diffusion_model.<original path>.lora_up.weight`; each with and without
wrappers and alphas.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from lora_studio.families.layer_names import DENOISER
from lora_studio.families.layer_names.spellings import LayerPlace, place_of
from lora_studio.families.layer_names.transformers import TRANSFORMER, FileForm, TransformerLayout
from lora_studio.families.layer_names.writers import Spelling, kohyas_name, spelling_of
from lora_studio.lora_file.kinds import kind_of
from lora_studio.lora_file.kinds.base import BESIDE, MAGNITUDE
from lora_studio.lora_file.kinds.lora import DOWN, UP


class Key(NamedTuple):
    name: str  # of its layer, as kohya would write what stands there: not always what UIs call it
    end: str  # by kohya's and LyCORIS' endings
    spelling: Spelling
    place: LayerPlace | None  # None: of no layer that a known base has
    rows: tuple[LayerPlace, ...] = ()  # of a layer that is several in one
    form: FileForm | None = None  # of a layer of a transformer family


_LYCORIS = "lycoris_"  # how names of spelling LYCORIS begin
_LETTERS = {"lora_A.weight": DOWN, "lora_B.weight": UP}
_ENDINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern + "$"), name)
    for pattern, name in (
        (r"\.lora_(down|up|mid)(?:\.weight)?", r"lora_\1.weight"),
        (r"\.lora_A(?:\.[^.]+)?(?:\.weight)", DOWN),
        (r"\.lora_B(?:\.[^.]+)?(?:\.weight)", UP),
        (r"(?:\.|_)lora(?:_linear_layer)?\.(down|up)(?:\.weight)", r"lora_\1.weight"),
        (r"\.(?:lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?|dora_scale)", MAGNITUDE),
        (r"\.((?:hada|lokr)_(?:w[12](?:_[ab])?|t[12]))(?:\.weight)?", r"\1"),
        (r"\.([ab][12m]\.weight)", r"\1"),
        (r"\.(alpha|rescale)", r"\1"),
    )
)


def read_key(key: str, *, two_encoders: bool) -> Key | None:
    """What a key means, or None if it is none of a layer's.

    A key like kohya's is a layer's whatever its name; of any other the layer must be one that bases have.
    """
    name, _, end = key.partition(".")
    is_ending = end in BESIDE or kind_of((end,)) is not None
    if (is_ending or end in _LETTERS) and not name.startswith(_LYCORIS):
        spelling = Spelling.KOHYA if is_ending else Spelling.LETTERED
        return Key(name, _LETTERS.get(end, end), spelling, _place_of(name))
    stem, end = any_key(key) or (key, "")
    place = _place_of(stem) if end else None
    if place is None:
        return None
    return Key(kohyas_name(stem, place, two_encoders=two_encoders), end, spelling_of(key), place)


def read_transformer_key(key: str, layout: TransformerLayout) -> Key | None:
    """As `read_key`, of a file for a transformer family; its layers have the names that stand there."""
    stem, end = any_key(key) or (key, "")
    if not end:
        return None
    written = layout.read(stem)
    if written is None:
        place = _place_of(stem)
        if place is None or place.part == DENOISER:
            is_named = "." not in stem and stem.startswith("lora_")  # as kohya's, whatever it is of
            return Key(stem, end, Spelling.KOHYA, None) if is_named else None
        return Key(stem, end, _spelling(stem, key, end), place)
    fused = written.rows if len(written.rows) > 1 else ()
    place = LayerPlace(TRANSFORMER, written.path) if fused else written.rows[0]
    return Key(stem, end, _spelling(stem, key, end), place, fused, written.form)


def _spelling(stem: str, key: str, end: str) -> Spelling:
    """Whose tensors the layer has, whatever its name is."""
    written = key.removeprefix(f"{stem}.")
    is_kohya = "." not in stem
    if written in _LETTERS:
        return Spelling.LETTERED if is_kohya else Spelling.PEFT
    if written == end:
        return Spelling.KOHYA if is_kohya else Spelling.COMFY
    return Spelling.OTHER


_place_of = lru_cache(maxsize=8192)(place_of)  # of each layer's keys all have one stem


def any_key(key: str) -> tuple[str, str] | None:
    """A key of any tool without its ending, and what that means; None if it means nothing."""
    for pattern, name in _ENDINGS:
        match = pattern.search(key)
        if match:
            return key[: match.start()], name.replace(r"\1", match[match.lastindex or 0])
    stem, _, end = key.rpartition(".")
    return (stem, end) if kind_of((end,)) else None
