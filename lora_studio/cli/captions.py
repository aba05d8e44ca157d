"""The verbs `caption` and `captions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.cli.options import (
    BASES,
    Device,
    Json,
    Recursive,
    Trigger,
    argument,
    flag,
    print_json,
    value,
)
from lora_studio.console import console, errors
from lora_studio.data.captioners import CAPTION_WRITERS
from lora_studio.errors import CaptionError
from lora_studio.files import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_studio.data.captioners import CaptionWriter
    from lora_studio.data.captioners.write import Replace
    from lora_studio.data.manifest import Manifest
    from lora_studio.data.sources import Source

Target = Annotated[Path, argument("FOLDER|RECIPE", "images, or a recipe's .toml file")]
_WRITERS = f"{', '.join(CAPTION_WRITERS.names())}; default: template with --class-word, else filename"
Writer = Annotated[str, value("NAME", f"the captioner: {_WRITERS}", "--with")]
Model = Annotated[
    str, value("MODEL", "a folder or hub id with safetensors; for endpoint the server's name for it")
]
_PROMPTS = "endpoint: the question; blip: the caption's first words; florence: how long captions are"
Prompt = Annotated[str, value("WORDS", _PROMPTS)]
Thresholds = Annotated[
    list[str] | None, value("CATEGORY=NUMBER", "wd14: least probability, e.g. general=0.4", "--threshold")
]

_FETCHED = ", which is downloaded when it is used for the first time"


def caption(
    target: Target,
    writer: Writer = "",
    model: Model = "",
    url: Annotated[str, value("URL", "endpoint: e.g. http://localhost:8080/v1")] = "",
    prompt: Prompt = "",
    template: Annotated[str, value("WORDS", 'default: "a photo of {trigger} {class}"')] = "",
    thresholds: Thresholds = None,
    max_tokens: Annotated[int, value("N", "the longest caption in tokens", min=0)] = 0,
    trigger: Annotated[str, value("WORDS", "put first where they lack; default: the recipe's")] = "",
    class_words: Annotated[
        str, value("WORDS", "what the trigger is, e.g. dog; default: the recipe's", "--class-word", "--class")
    ] = "",
    prefix: Annotated[str, value("WORDS", "words before every caption")] = "",
    suffix: Annotated[str, value("WORDS", 'words behind, e.g. ", {trigger}"')] = "",
    blacklist: Annotated[str, value("TAGS", 'tags to leave out, e.g. "solo, signature"')] = "",
    batch_size: Annotated[int, value("N", "images at a time; 0: as suits the captioner", min=0)] = 0,
    device: Device = "",
    redo: Annotated[
        bool, flag("--redo", "also replace a captioner's captions that no one edited since")
    ] = False,
    overwrite: Annotated[
        bool, flag("--overwrite", "replace every caption, hand-written ones too; a copy is kept")
    ] = False,
    dry_run: Annotated[bool, flag("--dry-run", "show the captions and write nothing")] = False,
    recursive: Recursive = False,
) -> None:
    """Write captions for the images that have none: exit 0, or 1 if some still have none."""
    from lora_studio.data.captioners import WriterOptions, caption_writer, default_writer
    from lora_studio.data.captions.wording import Wording
    from lora_studio.data.sources import sources_at

    limits = dict(_threshold(text) for text in thresholds or ())
    sources = sources_at(target, trigger=trigger, class_words=class_words, recursive=recursive)
    replace: Replace = "all" if overwrite else "generated" if redo else "nothing"
    faults = 0
    for source in sources:
        wording = Wording(source.trigger, source.class_words, prefix, suffix, blacklist)
        options = WriterOptions(model, device, prompt, template, url, max_tokens, batch_size, limits, wording)
        name, why = (writer, "") if writer else default_writer(source.trigger, source.class_words)
        made = caption_writer(name)(options)
        if len(sources) > 1:
            console.say(f"{source.folder}:")
        if why:
            console.say(f"captions are {why}")
        faults += _write(source, made, replace, dry_run=dry_run)
    if faults:
        raise typer.Exit(1)


def _write(source: Source, made: CaptionWriter, replace: Replace, *, dry_run: bool) -> int:
    """Caption a folder -> how many images still have no caption."""
    from lora_studio.console.dataset import CaptionScreen, print_outcome
    from lora_studio.data.captioners.write import write_captions
    from lora_studio.data.scan import scan

    manifest, folder = scan(source.folder, source.reading), source.folder
    if model := made.settings.get("model"):
        fetched = "" if made.name == "endpoint" or expanded(str(model)).is_dir() else _FETCHED
        console.say(f"{made.name} with the model {model}{fetched}")
    with CaptionScreen(console, made.name) as screen:
        try:
            outcome = write_captions(
                manifest, made, folder=folder, replace=replace, dry_run=dry_run, on_image=screen
            )
        except KeyboardInterrupt:
            console.say("stopped; the same command goes on where it was")
            raise typer.Exit(130) from None
    print_outcome(outcome, manifest, console, dry_run=dry_run)
    return len(outcome.faults)


def captions(
    target: Target,
    trigger: Trigger = "",
    base: Annotated[str, value("BASE", f"count tokens as this base: {BASES}; default: the recipe's")] = "",
    find: Annotated[str | None, value("WORDS", "show the captions that contain these words")] = None,
    replace: Annotated[str | None, value("WORDS", "with --find: show them with other words")] = None,
    regex: Annotated[bool, flag("--regex", "--find is a regular expression")] = False,
    write: Annotated[bool, flag("--write", "with --replace: write it; a copy is kept")] = False,
    as_json: Json = False,
    recursive: Recursive = False,
) -> None:
    """Count words, trigger words and tokens in captions, or find and replace in all of them."""
    _check_replace(find, replace, regex=regex, write=write)
    from lora_studio.data.scan import scan
    from lora_studio.data.sources import sources_at

    sources = sources_at(target, trigger=trigger, recursive=recursive)
    manifests = [(source, scan(source.folder, source.reading)) for source in sources]
    if find is None:
        _count(manifests, _tokenizers(target, base), as_json=as_json)
        return
    for source, manifest in manifests:
        if len(sources) > 1:
            console.say(f"{source.folder}:")
        _find(source.folder, manifest, find, replace, regex=regex, write=write)


def _tokenizers(target: Path, base: str) -> Mapping[str, PreTrainedTokenizerBase]:
    """Of the base that is named; of the recipe's, if that is here."""
    from lora_studio.errors import BaseModelError
    from lora_studio.families.loading import load_tokenizers
    from lora_studio.recipe.load import load_recipe
    from lora_studio.training.prepare.base_model import file_options

    if base:
        return load_tokenizers(base)
    if target.is_dir():
        return {}
    try:
        of_recipe = load_recipe(target).base
        return load_tokenizers(of_recipe.model, file_options(of_recipe))
    except BaseModelError as fault:
        errors.say(f"tokens are not counted: {fault}")
        return {}


def _count(
    manifests: list[tuple[Source, Manifest]],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    *,
    as_json: bool,
) -> None:
    from lora_studio.console.dataset import print_statistics
    from lora_studio.data.captions.statistics import caption_statistics

    found = [
        (source, caption_statistics(manifest.used, trigger=source.trigger, tokenizers=tokenizers))
        for source, manifest in manifests
    ]
    if as_json:
        each = [asdict(statistics) for _, statistics in found]
        print_json(each[0] if len(each) == 1 else each)
        return
    for source, statistics in found:
        if len(found) > 1:
            console.say(f"{source.folder}:")
        print_statistics(statistics, console, trigger=source.trigger)


def _check_replace(find: str | None, replace: str | None, *, regex: bool, write: bool) -> None:
    if find is None and (replace is not None or regex or write):
        raise CaptionError("--replace, --regex and --write need --find, the words to look for.")
    if write and replace is None:
        raise CaptionError('--write needs --replace, the words to write; --replace "" takes them out.')


def _find(
    folder: Path, manifest: Manifest, find: str, replace: str | None, *, regex: bool, write: bool
) -> None:
    from lora_studio.console.dataset import print_changes, print_found
    from lora_studio.data.captions.find_replace import apply_changes, find_changes

    if replace is None:
        print_found(find_changes(manifest.used, find, "\\g<0>" if regex else find, regex=regex), console)
        return
    changes, backup = find_changes(manifest.used, find, replace, regex=regex), None
    if write:
        changes, backup = apply_changes(changes, folder=folder)
    print_changes(changes, console, written=write, backup=backup)


def _threshold(text: str) -> tuple[str, float]:
    """ "general=0.4" -> ("general", 0.4)."""
    category, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise CaptionError(
            f"--threshold {text!r} is not CATEGORY=NUMBER with a number from 0 to 1, such as general=0.4."
        )
    return category.strip(), value
