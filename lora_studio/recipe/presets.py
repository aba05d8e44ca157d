"""Shipped recipes to begin with: their names, and one of them filled in for somebody's own images."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from lora_studio.errors import RecipeError
from lora_studio.files import expanded
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import PRESET_FOLDER, recipe_from
from lora_studio.registry import unknown
from lora_studio.tensor_file import FILE_ENDINGS
from lora_studio.text import with_class

_MOST_OWN, _LONGEST = 2, 200  # prompts that are captions, and letters of one
_SYNTAX = re.compile(r"[{}<>\\\[\]\n]")
_STRING = r'"(?:[^"\\\n]|\\.)*"'


@dataclass(frozen=True)
class PresetInputs:
    """What a preset does not know."""

    images: Path
    trigger: str
    base: str = ""  # empty: the preset's
    name: str = ""  # empty: the folder's
    class_words: str = ""  # what the trigger is one of
    instance_prompt: str = ""  # of images without a caption; empty: the preset's, if it has one
    captions: tuple[str, ...] = ()  # of the images; some are drawn as previews


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.toml"))


def preset_text(name: str) -> str:
    """The preset as it is shipped. Raises RecipeError, with a suggestion, if there is none of that name."""
    if name not in preset_names():
        raise RecipeError(unknown("preset", name, preset_names()))
    return (PRESET_FOLDER / f"{name}.toml").read_text("utf-8")


def summary(name: str) -> str:
    """What it is for: the first line."""
    return preset_text(name).splitlines()[0].removeprefix("# ")


def recipe_name(images: Path) -> str:
    """The folder's name as far as it can name a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", images.resolve().name).strip("._-")[:64] or "my_lora"


def fill(preset: str, inputs: PresetInputs, *, folder: Path) -> tuple[str, Recipe]:
    """The preset's text with the inputs in place of its words, and that recipe; raises RecipeError."""
    text = preset_text(preset)
    own = tomllib.loads(text)
    old_trigger, old_class = own["data"]["trigger"], own["data"].get("class_words", "")
    wanted = _class_words(preset, inputs, needed=bool(old_class))
    trigger = with_class(inputs.trigger, wanted)
    if not inputs.images.is_dir():
        raise RecipeError(f"there is no folder {inputs.images}; give --images a folder of images.")

    def reworded(words: str) -> str:
        if old_trigger in words:
            return words.replace(old_trigger, trigger)
        return re.sub(rf"\b{re.escape(old_class)}\b", lambda _: wanted, words) if old_class else words

    values = {
        "name": inputs.name or recipe_name(inputs.images),
        "model": _base(inputs.base) or own["base"]["model"],
        "images": _seen_from(folder, inputs.images),
        "instance_prompt": inputs.instance_prompt or reworded(own["data"].get("instance_prompt", "")),
        "class_words": wanted,
        "trigger": trigger,
    }
    if own.get("tokens"):
        values |= {"token": _new_word(preset, trigger, wanted), "start": wanted}
    for key, value in values.items():
        text = _assigned(text, key, value)
    prompts = [reworded(prompt) for prompt in own["samples"]["prompts"]]
    text = _with_prompts(text, _with_captions(prompts, inputs.captions, trigger))
    return text, recipe_from(tomllib.loads(text), folder=folder.resolve(), source=f"the recipe from {preset}")


def preset_base(name: str) -> str:
    """The base that it is written for."""
    return str(tomllib.loads(preset_text(name))["base"]["model"])


def _with_captions(prompts: list[str], captions: Sequence[str], trigger: str) -> list[str]:
    """What the user's own images show in place of the first prompts; the last one stays as it is.

    Short captions, as far apart in the folder as can be, without the syntax of other tools.
    """
    plain = list(dict.fromkeys(one for one in captions if len(one) <= _LONGEST and not _SYNTAX.search(one)))
    wanted = min(len(plain), _MOST_OWN, max(1, len(prompts) - 2))
    own = [plain[place * len(plain) // wanted] for place in range(wanted)]
    return [one if trigger in one else f"{one}, {trigger}" for one in own] + prompts[wanted:]


def _class_words(preset: str, inputs: PresetInputs, *, needed: bool) -> str:
    if not inputs.trigger.strip():
        raise RecipeError('--trigger is empty; give the trigger words, such as "zwx style".')
    if needed and not inputs.class_words.strip():
        raise RecipeError(
            f"{preset} needs --class-word: what {inputs.trigger!r} is one of, such as dog, woman or teapot."
        )
    return inputs.class_words.strip()


def _new_word(preset: str, trigger: str, class_words: str) -> str:
    """What is left of the trigger without its class: the one word that is learned."""
    words = re.sub(rf"\b{re.escape(class_words)}\b", " ", trigger, flags=re.IGNORECASE).split()
    if len(words) != 1:
        raise RecipeError(
            f"{preset} learns one new word, but --trigger {trigger!r} has {len(words)} beside its class "
            f"{class_words!r}; give one, such as zwx."
        )
    return words[0]


def _base(base: str) -> str:
    """A path as one that is found from everywhere; a hub id as it is."""
    path = expanded(base)
    if path.suffix in FILE_ENDINGS and not path.exists():
        raise RecipeError(f"there is no file at --base {base}; give a .safetensors file that is there.")
    return str(path.resolve()) if base and path.exists() else base


def _seen_from(folder: Path, images: Path) -> str:
    below, path = folder.resolve(), images.resolve()
    return path.relative_to(below).as_posix() if path.is_relative_to(below) else str(path)


def _quoted(value: str) -> str:
    return tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip("\n")


def _assigned(text: str, key: str, value: str) -> str:
    """The first `key = "..."` with another value; a key that is missing comes behind the trigger."""
    pattern = rf"(?m)^({key} = ){_STRING}"
    if re.search(pattern, text):
        return re.sub(pattern, lambda found: found[1] + _quoted(value), text, count=1)
    if not value:
        return text
    return re.sub(
        r"(?m)^(trigger = .*)$", lambda found: f"{found[1]}\n{key} = {_quoted(value)}", text, count=1
    )


def _with_prompts(text: str, prompts: list[str]) -> str:
    """Each on a line of its own, in place of the preset's."""
    lines = "".join(f"  {_quoted(prompt)},\n" for prompt in prompts)
    pattern = rf"(?m)^prompts = \[\s*(?:{_STRING},?\s*)*\]"
    return re.sub(pattern, lambda _: f"prompts = [\n{lines}]", text, count=1)
