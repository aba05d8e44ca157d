"""From trained adapters to a file that every UI loads, and the proof that it does."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lora_studio.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from lora_studio.adapters.base import AdapterSet
    from lora_studio.families.base import ModelFamily

EXPORTERS: Registry[Callable[["ModelFamily", "AdapterSet"], dict[str, "Tensor"]]] = Registry(
    "export target", {"kohya": "lora_studio.export.kohya:tensors"}
)
