"""Arithmetic on finished LoRA files, always on the changes of weight and never on the two factors apart."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lora_studio.registry import Registry

if TYPE_CHECKING:
    from lora_studio.adapters.layer import Factors
    from lora_studio.tools.methods import MergeOptions

METHODS: Registry[Callable[[Mapping[int, "Factors"], "MergeOptions", str], "Factors"]] = Registry(
    "method",
    {
        "concat": "lora_studio.tools.methods:concat",
        "svd": "lora_studio.tools.methods:concat",  # and cut afterwards
        "ties": "lora_studio.tools.methods:ties",
        "dare": "lora_studio.tools.methods:dare",
        "project": "lora_studio.tools.methods:project",
    },
)


@dataclass(frozen=True)
class Report:
    """What a tool found or made."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
