"""LoRA (arXiv 2106.09685): W' = W + alpha / rank * up @ down."""

from __future__ import annotations

from peft import LoraConfig


def configuration(rank: int, alpha: float, paths: list[str]) -> LoraConfig:
    """PEFT's configuration for LoRA in the modules at `paths`; PEFT starts `up` at zero."""
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=paths, bias="none")
