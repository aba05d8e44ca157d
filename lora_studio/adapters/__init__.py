"""Low-rank adapters over PEFT."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lora_studio.registry import Registry

if TYPE_CHECKING:
    from peft import PeftConfig

ADAPTERS: Registry[Callable[[int, float, list[str]], "PeftConfig"]] = Registry(
    "adapter kind", {"lora": "lora_studio.adapters.lora:configuration"}
)
