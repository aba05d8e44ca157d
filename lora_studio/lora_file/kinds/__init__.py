"""The kinds of layers that LoRA files have, one class each."""

from __future__ import annotations

from collections.abc import Collection

from lora_studio.lora_file.kinds.base import LayerKind
from lora_studio.lora_file.kinds.lora import LORA
from lora_studio.lora_file.kinds.lycoris import LOHA, LOKR
from lora_studio.lora_file.kinds.whole import FULL, GLORA, NORM, OFT, SET

KINDS: list[LayerKind] = [LORA, LOHA, LOKR, OFT, GLORA, SET, FULL, NORM]


def kind_of(endings: Collection[str]) -> LayerKind | None:
    """Of a layer that has tensors of these endings; None: nothing tells."""
    return next((kind for kind in KINDS if any(one in endings for one in kind.endings)), None)


def kind_written_by(adapter: str) -> LayerKind | None:
    """What a file of this kind of adapters has, if there is such a file."""
    return next((kind for kind in KINDS if adapter in kind.written_by), None)
