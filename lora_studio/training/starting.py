"""From a folder of images and a base to a preset: what `init` and `start` look at before a recipe exists."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from lora_studio.data.scan.glance import Glance, glance
from lora_studio.errors import BaseModelError, DatasetError, RecipeError
from lora_studio.families.original.glance import BaseGlance, glance_at_base
from lora_studio.pocket import POCKET
from lora_studio.recipe import Recipe
from lora_studio.recipe.presets import PresetInputs, fill, preset_base, preset_names, summary
from lora_studio.registry import unknown
from lora_studio.text import with_class

STYLE, SUBJECT, FACE = PURPOSES = ("style", "subject", "face")
SMALL, SMALL_GIB = "_8gb", 11.0  # how presets for less GPU memory end: docs/reference/what-fits.md
FALLBACK = "zwx"  # a word that means nothing to CLIP
_MOST_FILES = 50  # that are looked at in search of a base


def look_at_folder(folder: Path) -> Glance:
    """Raises DatasetError for a folder that is missing or cannot be read; an empty one has no images."""
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}; give a folder of images.")
    return glance(folder) if any(folder.iterdir()) else Glance(0, (), 0)


def presets_for(base: BaseGlance) -> list[str]:
    """Those made for such a base."""
    return [name for name in preset_names() if glance_at_base(preset_base(name)).is_as(base)]


def check_base(preset: str, base: BaseGlance) -> None:
    """Raises RecipeError where what it is written for is known to be another kind of base."""
    own = glance_at_base(preset_base(preset))
    if not own.is_as(base):
        raise RecipeError(
            f"the base {base.model} is {base.title} at {base.side} pixels, but the preset {preset} is for "
            f"{own.title} at {own.side}; take another base, or one of {', '.join(presets_for(base))}."
        )


def default_base(folder: Path) -> str:
    """The first whole base of a known kind that lies there in a .safetensors file, else the pocket base."""
    for path in sorted(folder.glob("*.safetensors"))[:_MOST_FILES]:
        try:
            if glance_at_base(str(path)).kind:
                return str(path)
        except BaseModelError:
            continue
    return POCKET


def check_known(model: str) -> None:
    """Raises BaseModelError for a base that is not there or of another kind than can be trained."""
    if doubt := glance_at_base(model).doubt:
        raise BaseModelError(doubt)


def check_purpose(purpose: str) -> None:
    if purpose not in PURPOSES:
        raise RecipeError(unknown("purpose", purpose, list(PURPOSES)))


def usual_purpose(found: Glance) -> str:
    return FACE if found.masks else STYLE


def usual_class(purpose: str, found: Glance) -> str:
    """The last of the words that all captions share, as "robot" of "vkq robot"; a face is a person's."""
    shared = found.shared_words.split()
    return shared[-1] if len(shared) > 1 else "person" if purpose == FACE else ""


def usual_trigger(purpose: str, name: str, found: Glance) -> str:
    """The words that all captions share, where they could be one; else a new word made of the name."""
    words = found.shared_words.casefold().split()
    if purpose != STYLE:
        return found.shared_words if len(words) > 1 else new_word(name)
    plain = [caption.replace(",", " ").casefold().split() for caption in found.captions]
    ends = all(words in (one[-len(words) :], one[: len(words)]) for one in plain)
    return found.shared_words if words and ends else f"{new_word(name)} style"


def new_word(name: str) -> str:
    """A short one without a meaning, as "grdn" of "garden"."""
    letters = re.sub(r"[^a-z]", "", name.casefold())
    word = letters[:1] + re.sub("[aeiou]", "", letters[1:])
    return word[:5] if len(word) >= len(FALLBACK) else FALLBACK


def one_caption(words: str, *, of_style: bool) -> str:
    """What images without one are learned with: something is named beside a style, which can be preserved."""
    return f"an image, {words}" if of_style else f"a photo of {words}"


def first_recipe(preset: str, inputs: PresetInputs, found: Glance, *, folder: Path) -> tuple[str, Recipe]:
    """The preset filled in for the images: its text, and that recipe; raises RecipeError.

    Those of a subject that have no caption get a sentence, others what `inputs` has for them.
    """
    bare, words = found.images - len(found.captions), with_class(inputs.trigger, inputs.class_words)
    if bare and inputs.class_words and not inputs.instance_prompt:
        inputs = replace(inputs, instance_prompt=one_caption(words, of_style=False))
    return fill(preset, replace(inputs, captions=found.captions), folder=folder)


@dataclass(frozen=True)
class PresetChoice:
    name: str
    why: str


def choose_preset(base: BaseGlance, purpose: str, found: Glance, *, preset: str = "") -> PresetChoice:
    """The one that was asked for, or fits. Raises RecipeError where it does not suit, or none is known to."""
    if preset:
        name, why = preset, summary(preset)
        check_base(name, base)
        return PresetChoice(name, why)
    if base.kind is None:
        raise RecipeError(
            f"what kind of base {base.model} is cannot be told before it is loaded; name a preset with "
            "--preset: `lora-studio init --list` lists them."
        )
    known = presets_for(base)
    if not known:
        raise RecipeError(
            f"no preset is made for {base.title} yet; write a recipe by hand, after one that "
            "`lora-studio init` makes for another base."
        )
    small = next((name for name in known if name.endswith(SMALL)), None)
    memory = gpu_memory_gib() if small else None
    if small and memory is not None and memory < SMALL_GIB:
        return PresetChoice(small, f"a {purpose} on {base.title}, in {memory:.0f} GiB of GPU memory")
    face = next((name for name in known if name.endswith(f"_{FACE}")), None)
    if purpose == FACE and face and found.masks:
        return PresetChoice(face, f"a face on {base.title}, learned where the masks are white")
    ending, without = (STYLE if purpose == STYLE else SUBJECT), ""
    if purpose == FACE and face:
        without = f"; with a mask beside each image, {face} keeps clothes and rooms out of it"
    name = next(name for name in known if name.endswith(f"_{ending}"))
    return PresetChoice(name, f"a {purpose} on {base.title}{without}")


def gpu_memory_gib() -> float | None:
    """Of the GPU that a run would take; None without one. Imports torch."""
    import torch

    from lora_studio.processes import find_device

    device = find_device("auto")
    if device is None or device.type != "cuda":
        return None
    return float(torch.cuda.get_device_properties(device).total_memory / 2**30)
