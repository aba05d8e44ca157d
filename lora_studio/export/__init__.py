"""From trained adapters to a file that every UI loads, and the proof that it does."""

from typing import TYPE_CHECKING

from lora_studio.registry import Registry

if TYPE_CHECKING:
    from lora_studio.export.target import Target

EXPORTERS: Registry["Target"] = Registry(
    "export target",
    {
        "kohya": "lora_studio.export.kohya:KOHYA",
        "diffusers": "lora_studio.export.kohya:DIFFUSERS",
        "native": "lora_studio.export.kohya:NATIVE",
        "comfy": "lora_studio.export.forms:COMFY",
        "sd_scripts": "lora_studio.export.forms:SD_SCRIPTS",
        "embedding": "lora_studio.export.embedding:EMBEDDING",
        "a1111_bundle": "lora_studio.export.embedding:A1111_BUNDLE",
        "merged": "lora_studio.export.merged:MERGED",
        "checkpoint": "lora_studio.export.merged:CHECKPOINT",
    },
)
_READ_BY = {  # what people call a target whose files a program reads
    **dict.fromkeys(("comfyui", "a1111", "automatic1111", "forge", "invokeai"), "kohya"),
    **dict.fromkeys(("sd-scripts", "musubi", "musubi-tuner"), "sd_scripts"),
    **{"peft": "diffusers", "lycoris": "native", "ckpt": "checkpoint"},
}


def target_named(name: str) -> str:
    """The target of that name, or for the program of that name; another name as it is."""
    return _READ_BY.get(name.lower(), name)
