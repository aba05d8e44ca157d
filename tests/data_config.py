"""The recipe's [data] for tests that need no folder of images."""

from __future__ import annotations

from pathlib import Path

from lora_studio.recipe.data import DataConfig


def data_config(**values: object) -> DataConfig:
    """[data] with these values, unchecked, as tests ask for what a recipe would refuse, too."""
    return DataConfig.model_construct(images=Path("images"), **values)  # type: ignore[arg-type]
