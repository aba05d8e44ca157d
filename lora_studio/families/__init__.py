"""The families of base models: everything in which one base differs from another lives in here."""

from typing import TYPE_CHECKING

from lora_studio.registry import Registry

if TYPE_CHECKING:
    from lora_studio.families.base import ModelFamily
    from lora_studio.families.original.transformers import TransformerKind

FAMILIES: Registry["type[ModelFamily]"] = Registry(
    "model family",
    {
        "sd15": "lora_studio.families.unet:StableDiffusion15",
        "sd2": "lora_studio.families.unet:StableDiffusion2",
        "sdxl": "lora_studio.families.unet.sdxl:StableDiffusionXL",
        "z_image": "lora_studio.families.transformers.z_image:ZImage",
        "flux1": "lora_studio.families.transformers.flux1:Flux1",
        "chroma": "lora_studio.families.transformers.chroma:Chroma",
        "flux2_klein": "lora_studio.families.transformers.flux2:Flux2Klein",
        "flux2_dev": "lora_studio.families.transformers.flux2:Flux2Dev",
        "krea2": "lora_studio.families.transformers.krea2:Krea2",
        "sd3": "lora_studio.families.transformers.sd3:StableDiffusion3",
        "qwen_image": "lora_studio.families.transformers.qwen_image:QwenImage",
        "lumina2": "lora_studio.families.transformers.lumina2:Lumina2",
        "anima": "lora_studio.families.transformers.anima:Anima",
    },
)
SINGLE_FILES: Registry["TransformerKind"] = Registry(
    "kind of single file", {"lumina2": "lora_studio.families.original.transformers.lumina2:LUMINA2"}
)
"""What tells a transformer's file in the original layout, of families that say it in a file of their own."""
