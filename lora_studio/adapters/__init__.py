"""Small changes to a frozen base's layers: LoRA and its relatives."""

from typing import TYPE_CHECKING

from lora_studio.registry import Registry

if TYPE_CHECKING:
    from lora_studio.adapters.layer import AdapterKind

ADAPTERS: Registry["AdapterKind"] = Registry(
    "adapter kind",
    {
        "lora": "lora_studio.adapters.lora:LORA",
        "locon": "lora_studio.adapters.lora:LOCON",
        "dora": "lora_studio.adapters.lora:DORA",
        "loha": "lora_studio.adapters.lycoris:LOHA",
        "lokr": "lora_studio.adapters.lycoris:LOKR",
        "oft": "lora_studio.adapters.lycoris:OFT",
        "full": "lora_studio.adapters.full:FULL",
    },
)
