"""What the keys of LoRA files mean, in every spelling there is.

kohya's and LyCORIS' (`lora_te_..._q_proj.lora_down.weight`, `hada_w1_a`, `lokr_w1`, `dora_scale`, `diff`,
`oft_blocks`), PEFT's (`<part>....to_q.lora_A.weight`) and diffusers' older ones (`processor.to_q_lora.down`,
`lora_linear_layer.up`), with and without wrappers and alphas.
"""

from __future__ import annotations

import re

from lora_studio.families.layer_names import PART_PATTERN, path_name
from lora_studio.lora_file.kinds import kind_of
from lora_studio.lora_file.kinds.base import BESIDE, MAGNITUDE
from lora_studio.lora_file.kinds.lora import DOWN, UP
from lora_studio.lora_file.layer import KOHYA, LETTERED, PEFT

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
    return (
        path_name(part, path, two_encoders=two_encoders),
        found["beside"] or (DOWN if found["down"] else UP),
        PEFT,
    )


def any_key(key: str) -> tuple[str, str] | None:
    """A key of any tool without its ending, and what that means; None if it means nothing."""
    for pattern, name in _ENDINGS:
        match = pattern.search(key)
        if match:
            return key[: match.start()], match.expand(name)
    stem, _, end = key.rpartition(".")
    return (stem, end) if kind_of((end,)) else None
