"""The verb `init`: it parses and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_studio.console.screen import console
from lora_studio.errors import RecipeError
from lora_studio.recipe.presets import PresetInputs, fill, preset_names, recipe_name, summary, with_class


def init(
    preset: Annotated[str, typer.Argument(help="one of those that --list names")] = "",
    images: Annotated[Path | None, typer.Option(help="the folder of images")] = None,
    trigger: Annotated[str, typer.Option(help='the words that shall call it, e.g. "zwx style"')] = "",
    base: Annotated[
        str, typer.Option(help="a .safetensors file, a diffusers folder or a hub id; default: the preset's")
    ] = "",
    class_word: Annotated[
        str, typer.Option(help="for a subject: what it is one of, e.g. dog; put behind the trigger")
    ] = "",
    name: Annotated[str, typer.Option(help="of the run and the LoRA file; default: the folder's")] = "",
    out: Annotated[Path | None, typer.Option(help="the recipe's file; default: <name>.toml")] = None,
    list_: Annotated[bool, typer.Option("--list", help="name the presets")] = False,
) -> None:
    """Write a recipe for your own images, from a preset with the reasons beside its numbers."""
    if list_:
        for one in preset_names():
            console.say(f"{one:15} {summary(one)}")
        return
    summary(preset)  # an unknown preset is the first thing to say
    if images is None or not trigger:
        raise RecipeError("init needs --images, a folder of images, and --trigger, the words that call it.")
    path = out or Path(f"{name or recipe_name(images)}.toml")
    text, recipe = fill(preset, PresetInputs(images, trigger, base, name, class_word), folder=path.parent)
    _write(path, text)
    console.say(f"wrote {path}: {summary(preset)}")
    if recipe.data.trigger != trigger:
        words = f'the trigger is "{with_class(trigger, class_word)}": every caption should hold these words'
        console.say(words)
    console.say("next:")
    for verb, what in (
        ("doctor", "what is wrong with images and captions"),
        ("plan", "memory, disk and time"),
        ("train", "the LoRA"),
    ):
        console.say(f"  lora-studio {verb} {_shell(path)}   # {what}")


def _shell(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{path} is there already and stays as it is; choose another --out.") from None
    except OSError as error:
        reason = error.strerror or error
        raise RecipeError(f"{path} cannot be written ({reason}); choose another --out.") from None
