"""LoRA Studio: a folder of images becomes a verified LoRA file."""

__version__ = "0.1.0"
