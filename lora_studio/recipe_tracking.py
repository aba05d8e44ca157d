"""The recipe's [tracking]: where curves and pictures of a run are sent while it trains."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from lora_studio.recipe_data import Section


class TrackingConfig(Section):
    """Who is told of losses, learning rates and previews; nobody by default."""

    free: ClassVar[frozenset[str]] = frozenset({"to", "project", "run_name", "words"})

    to: tuple[str, ...] = Field((), description='any of "tensorboard", "wandb" and "trackio"')
    project: str = Field(
        "lora-studio",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$",
        description="what the runs there are listed under",
    )
    run_name: str = Field("", max_length=128, description="of this run there; the recipe's name if empty")
    words: bool = Field(
        False, description="also send the trigger and the previews' prompts; else numbers and pictures only"
    )
