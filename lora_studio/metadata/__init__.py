"""What files say of themselves and of what they were made from."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

PREFIX = "lora_studio.provenance."  # of the keys that tell what a file was made from


@cache
def key_table(name: str) -> Any:
    """A list of metadata's keys from `keys.toml`, or for "card" what a model card calls them."""
    return tomllib.loads(files(__package__).joinpath("keys.toml").read_text("utf-8"))[name]
