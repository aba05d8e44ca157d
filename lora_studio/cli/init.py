"""The verbs that write a recipe: `start`, which asks for what it needs to know, and `init`."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.cli.captions import caption
from lora_studio.cli.doctor import doctor
from lora_studio.cli.migrate import taken_over, with_schema
from lora_studio.cli.options import BASES, Trigger, argument, flag, value
from lora_studio.cli.start import plan
from lora_studio.console import console
from lora_studio.errors import RecipeError, preview_names
from lora_studio.files import check_ending, expanded
from lora_studio.text import plural, with_class

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_studio.console.questions import Questions
    from lora_studio.data.scan.glance import Glance
    from lora_studio.families.original.glance import BaseGlance
    from lora_studio.recipe.migrate import MigrationInputs
    from lora_studio.recipe.presets import PresetInputs

_ONE_FOR_ALL = "same"
ClassWord = Annotated[str, value("WORD", "for a subject: what it is, e.g. dog; put behind the trigger")]
Name = Annotated[str, value("NAME", "of the run and the LoRA file; default: the folder's")]
RecipeOut = Annotated[Path | None, value("FILE", "the recipe to write; default: NAME.toml", "-o", "--out")]


def _check_name(out: Path | None) -> None:
    if out is not None:
        check_ending(out, ".toml")


def init(
    preset: Annotated[str, argument("PRESET", "one of those that --list names")] = "",
    images: Annotated[Path | None, value("FOLDER", "the folder of images")] = None,
    trigger: Trigger = "",
    base: Annotated[
        str, value("BASE", "a .safetensors file, a diffusers folder or a hub id; default: the preset's")
    ] = "",
    class_word: ClassWord = "",
    name: Name = "",
    out: RecipeOut = None,
    list_: Annotated[bool, flag("--list", "name the presets")] = False,
    from_: Annotated[
        list[Path] | None,
        value("FILE", "settings of another trainer, in place of PRESET; can be repeated", "--from"),
    ] = None,
    trainer: Annotated[
        str, value("NAME", "with --from: whose settings; default: told from what is in them")
    ] = "",
) -> None:
    """Write a recipe for your own images, from a preset with the reasons beside its numbers.

    With --from it is another trainer's settings in our terms: of kohya's sd-scripts and kohya_ss, OneTrainer,
    ai-toolkit, SimpleTuner, or a script that calls one of diffusers' examples. What became of each key is
    printed, and stands in the recipe.
    """
    from lora_studio.families.original.glance import glance_at_base
    from lora_studio.recipe.migrate import MigrationInputs
    from lora_studio.recipe.presets import PresetInputs, preset_base, preset_names, summary
    from lora_studio.training.starting import check_base, look_at_folder

    if list_:
        width = max(map(len, preset_names()))
        for one in preset_names():
            console.say(f"{one:{width}} {summary(one)}", indent=width + 1)
        return
    if from_:
        _check_name(out)
        if preset:
            raise RecipeError("init takes a preset or --from, not both; leave one of them out.")
        _init_from(from_, MigrationInputs(images, base, name, trigger, class_word, trainer), out)
        return
    summary(preset)  # an unknown preset is the first thing to say
    _check_name(out)
    if images is None or not trigger:
        raise RecipeError("init needs --images, a folder of images, and --trigger, the trigger words.")
    seen, found = glance_at_base(base or preset_base(preset)), look_at_folder(images)
    check_base(preset, seen)
    path = _write(preset, PresetInputs(images, trigger, base, name, class_word), found, out)
    console.print_rows([("images", f"{images}: {found.text}"), *_base_rows(seen)])
    warnings = [one for one in ("" if found.images else _none_yet(images), seen.doubt) if one]
    console.say_rows([("warning", one) for one in warnings], style="yellow")
    console.say("next, when that is mended:" if warnings else "next:")
    _say_next(path)


def _init_from(files: Sequence[Path], inputs: MigrationInputs, out: Path | None) -> None:
    path, made = taken_over(files, inputs, out)
    _write_recipe(path, made.text)
    console.say(f"wrote {path}")
    console.say("next:")
    _say_next(path)


def _say_next(path: Path) -> None:
    steps = {
        "doctor": "what is wrong with images and captions",
        "plan": "memory, disk and time",
        "train": "the LoRA",
    }
    for verb, what in steps.items():
        console.say(f"  lora-studio {verb:6} {_quoted(path)}   # {what}")


def _base_rows(base: BaseGlance) -> list[tuple[str, str]]:
    return [("base", base.title), ("", base.note)] if base.note else [("base", base.title)]


def _none_yet(images: Path) -> str:
    from lora_studio.data.images import is_image

    with suppress(OSError):  # of a folder that may not be looked into
        inside = sorted({path.parent.name for path in images.glob("*/*") if is_image(path.name)})
        if inside:
            return (
                f"{images} itself holds no images; give one of its folders that do: {preview_names(inside)}"
            )
    return f"{images} holds no images; put 20 to 50 there for a style, 5 to 20 for a subject"


def _write(preset: str, inputs: PresetInputs, found: Glance, out: Path | None) -> Path:
    """The recipe's file; says what images without a caption are learned with."""
    from lora_studio.recipe.presets import recipe_name, summary
    from lora_studio.training.starting import first_recipe

    bare, words = found.images - len(found.captions), with_class(inputs.trigger, inputs.class_words)
    path = out or Path(f"{inputs.name or recipe_name(inputs.images)}.toml")
    text, recipe = first_recipe(preset, inputs, found, folder=path.parent)
    _write_recipe(path, text)
    console.say(f"wrote {path}: {summary(preset)}")
    if recipe.data.trigger != inputs.trigger:
        console.say(f'the trigger is "{words}": captions should contain these words')
    if bare and (said := recipe.data.instance_prompt):
        console.say(
            f'{plural(bare)} without a caption will have "{said}", the recipe\'s data.instance_prompt'
        )
    elif bare:
        how = f"`lora-studio caption {_quoted(inputs.images)}` writes captions"
        console.say(f"warning: {plural(bare)} of {found.images} without a caption; {how}", "yellow")
    return path


def start(
    folder: Annotated[Path | None, argument("FOLDER", "your images")] = None,
    learn: Annotated[str, value("WHAT", "style, subject or face; default: style, face with masks")] = "",
    base: Annotated[
        str, value("BASE", f"{BASES}; default: a checkpoint in the working folder, else pocket")
    ] = "",
    name: Name = "",
    class_word: ClassWord = "",
    trigger: Annotated[
        str, value("WORDS", "the trigger words; default: what all captions share, or a new word")
    ] = "",
    captions: Annotated[
        str, value("NAME", "where none has one: same, or the captioner that writes them; default: same")
    ] = "",
    preset: Annotated[str, value("PRESET", "instead of the one that fits; init --list names them")] = "",
    out: RecipeOut = None,
) -> None:
    """From images to a recipe that is checked and planned; asks in a terminal, else takes its defaults."""
    from lora_studio.console.questions import Questions, someone_answers

    _check_name(out)
    questions = Questions(console, asks=someone_answers())
    told = questions.ask("The folder of your images", "FOLDER", str(folder or ""), check=_check_images)
    given = Given(expanded(told), learn, base, name, class_word, trigger, captions, preset)
    path = _ask_and_write(questions, given, out)
    train = f"lora-studio train {_quoted(path)}"
    console.say()
    console.say("The doctor looks at the images:")
    try:
        doctor(path)
    except typer.Exit:
        console.say()
        console.say(f"next: mend the errors, then lora-studio plan {_quoted(path)}, then {train}")
        raise
    console.say()
    console.say("The plan, by a trial step:")
    plan(path)
    console.say()
    console.say(f"next: {train}")


@dataclass(frozen=True)
class Given:
    """What the options of `start` say; empty: to be asked."""

    images: Path
    learn: str
    base: str
    name: str
    class_word: str
    trigger: str
    captions: str
    preset: str


def _check_images(folder: str) -> None:
    from lora_studio.training.starting import look_at_folder

    path = expanded(folder)
    if not look_at_folder(path).images:
        raise RecipeError(f"{_none_yet(path)}.")


def _ask_and_write(questions: Questions, given: Given, out: Path | None) -> Path:
    """Ask what was not given, choose the preset and write the recipe."""
    from lora_studio.families.original.glance import glance_at_base
    from lora_studio.recipe.presets import PresetInputs, recipe_name
    from lora_studio.training import starting

    ask, images, found = questions.ask, given.images, starting.look_at_folder(given.images)
    usual, question = starting.default_base(Path()), f"The base model: {BASES}"
    console.print_rows([("images", f"{images}: {found.text}")])
    base = glance_at_base(ask(question, "--base", given.base, default=usual, check=starting.check_known))
    console.print_rows([(f"{title:6}", text) for title, text in _base_rows(base)])
    usual, question = starting.usual_purpose(found), "What is learned: style, subject or face"
    purpose = ask(question, "--learn", given.learn, default=usual, check=starting.check_purpose)
    name = ask("Its name, also of the file", "--name", given.name, default=recipe_name(images))
    word = given.class_word
    if purpose != starting.STYLE:
        usual, question = starting.usual_class(purpose, found), "What it is one of, e.g. dog, woman, teapot"
        word = ask(question, "--class-word", word, default=usual)
    usual = starting.usual_trigger(purpose, name, found)
    trigger = ask("The words that call it in a prompt", "--trigger", given.trigger, default=usual)
    words = with_class(trigger, word)
    if not found.captions and (writer := _captioner(questions, given.captions)) != _ONE_FOR_ALL:
        with suppress(typer.Exit):  # some images without one: the doctor says which
            caption(images, writer, trigger=words, class_words=word)
        found = starting.look_at_folder(images)
    choice = starting.choose_preset(base, purpose, found, preset=given.preset)
    console.print_rows([("trigger", words), ("preset", f"{choice.name}, {choice.why}")])
    said = "" if len(found.captions) == found.images else starting.one_caption(words, of_style=not word)
    return _write(choice.name, PresetInputs(images, trigger, base.model, name, word, said), found, out)


def _captioner(questions: Questions, given: str) -> str:
    """Of images without a caption."""
    from lora_studio.data.captioners import CAPTION_WRITERS, caption_writer

    def check(name: str) -> None:
        if name != _ONE_FOR_ALL:
            caption_writer(name)

    writers = ", ".join(name for name in CAPTION_WRITERS.names() if name not in ("template", "endpoint"))
    question = f"Captions: {_ONE_FOR_ALL} (one for all images), or a captioner that writes them: {writers}"
    question += "; all but filename download a model"
    return questions.ask(question, "--captions", given, default=_ONE_FOR_ALL, check=check)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _write_recipe(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(with_schema(path, text))
    except FileExistsError:
        raise RecipeError(f"{path} is there already and stays as it is; choose another --out.") from None
    except OSError as error:
        reason = error.strerror or error
        raise RecipeError(f"{path} cannot be written ({reason}); choose another --out.") from None
