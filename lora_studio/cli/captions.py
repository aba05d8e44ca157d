"""The verbs `caption` and `captions`: they parse and print, and import no torch before they must."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.console.screen import console
from lora_studio.data.captioners import CAPTION_WRITERS
from lora_studio.errors import CaptionError
from lora_studio.quiet import quiet_libraries

if TYPE_CHECKING:
    from lora_studio.data.manifest import Manifest


Folder = Annotated[Path, typer.Argument(help="a folder of images")]
Writer = Annotated[
    str, typer.Option("--with", metavar="NAME", help=f"who writes: {', '.join(CAPTION_WRITERS.names())}")
]
Model = Annotated[
    str, typer.Option(help="a folder or hub id with safetensors; for endpoint the server's name for it")
]
Url = Annotated[str, typer.Option(help="endpoint: e.g. http://localhost:8080/v1")]
Prompt = Annotated[
    str, typer.Option(help="endpoint: what is asked; blip: how a caption begins; florence: how long it is")
]
Thresholds = Annotated[
    list[str],
    typer.Option("--threshold", metavar="CATEGORY=NUMBER", help="wd14: least probability, e.g. general=0.4"),
]
Trigger = Annotated[str, typer.Option(help="the trigger words; put in front unless the caption holds them")]
Recursive = Annotated[
    bool,
    typer.Option("--recursive", help="also all subfolders; without it only <repeats>_<name> ones are read"),
]

_FETCHED = ", which is downloaded when it is used for the first time"


def caption(
    folder: Folder,
    writer: Writer,
    model: Model = "",
    url: Url = "",
    prompt: Prompt = "",
    template: Annotated[str, typer.Option(help='default: "a photo of {trigger} {class}"')] = "",
    thresholds: Thresholds = [],  # noqa: B006 - typer reads the default, nobody changes it
    max_tokens: Annotated[int, typer.Option(min=0, help="the longest caption in tokens")] = 0,
    trigger: Trigger = "",
    class_words: Annotated[
        str, typer.Option("--class-word", "--class", help="what the trigger is one of")
    ] = "",
    prefix: Annotated[str, typer.Option(help="words before every caption")] = "",
    suffix: Annotated[str, typer.Option(help='words behind, e.g. ", {trigger}"')] = "",
    blacklist: Annotated[str, typer.Option(help='tags to leave out, e.g. "solo, signature"')] = "",
    batch_size: Annotated[int, typer.Option(min=0, help="images at a time; 0: as suits the captioner")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one")] = "",
    redo: Annotated[
        bool, typer.Option("--redo", help="also replace captions that a captioner wrote and nobody edited")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace every caption, hand-written ones too; a copy is kept")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the captions and write nothing")] = False,
    recursive: Recursive = False,
) -> None:
    """Write captions for the images that have none: exit 0, or 1 if some still have none."""
    quiet_libraries()
    from lora_studio.console.dataset import CaptionScreen, print_outcome
    from lora_studio.data.captioners import caption_writer
    from lora_studio.data.captioners.base import WriterOptions
    from lora_studio.data.captioners.write import write_captions
    from lora_studio.data.captions.wording import Wording
    from lora_studio.data.scan.folder import ScanOptions, scan

    wording = Wording(trigger, class_words, prefix, suffix, blacklist)
    limits = dict(_threshold(text) for text in thresholds)
    options = WriterOptions(model, device, prompt, template, url, max_tokens, batch_size, limits, wording)
    made = caption_writer(writer)(options)
    manifest = scan(_existing(folder), ScanOptions(recursive=recursive))
    if model_name := made.settings.get("model"):
        fetched = "" if made.name == "endpoint" or Path(model).expanduser().is_dir() else _FETCHED
        console.say(f"{made.name} with the model {model_name}{fetched}")
    with CaptionScreen(console, made.name) as screen:
        try:
            outcome = write_captions(
                manifest,
                made,
                folder=folder,
                replace="all" if overwrite else "generated" if redo else "nothing",
                dry_run=dry_run,
                on_image=screen,
            )
        except KeyboardInterrupt:
            console.say("stopped; the same command goes on where it was")
            raise typer.Exit(130) from None
    print_outcome(outcome, manifest, console, dry_run=dry_run)
    if outcome.faults:
        raise typer.Exit(1)


def captions(
    folder: Folder,
    trigger: Annotated[str, typer.Option(help="the trigger words, to see which captions lack them")] = "",
    base: Annotated[
        str,
        typer.Option(help='count tokens as this base: "pocket", a diffusers folder, a file or a hub id'),
    ] = "",
    find: Annotated[str | None, typer.Option(help="show the captions that hold these words")] = None,
    replace: Annotated[str | None, typer.Option(help="with --find: show them with other words")] = None,
    regex: Annotated[bool, typer.Option("--regex", help="--find is a regular expression")] = False,
    write: Annotated[bool, typer.Option("--write", help="with --replace: write it; a copy is kept")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the statistics as JSON")] = False,
    recursive: Recursive = False,
) -> None:
    """Count words, trigger and tokens in the captions of a folder, or find and replace in all of them."""
    quiet_libraries()
    _check_replace(find, replace, regex=regex, write=write)
    from lora_studio.data.scan.folder import ScanOptions, scan

    manifest = scan(_existing(folder), ScanOptions(recursive=recursive))
    if find is not None:
        _find(folder, manifest, find, replace, regex=regex, write=write)
        return
    from lora_studio.console.dataset import print_statistics
    from lora_studio.data.captions.statistics import caption_statistics

    tokenizers = {}
    if base:
        from lora_studio.families.loading import load_tokenizers

        tokenizers = load_tokenizers(base)
    statistics = caption_statistics(manifest.used, trigger=trigger, tokenizers=tokenizers)
    if as_json:
        console.print_json(json.dumps(asdict(statistics)))
    else:
        print_statistics(statistics, console, trigger=trigger)


def _check_replace(find: str | None, replace: str | None, *, regex: bool, write: bool) -> None:
    if find is None and (replace is not None or regex or write):
        raise CaptionError("--replace, --regex and --write need --find, the words to look for.")
    if write and replace is None:
        raise CaptionError('--write needs --replace, the words to write; --replace "" takes them out.')


def _find(
    folder: Path, manifest: Manifest, find: str, replace: str | None, *, regex: bool, write: bool
) -> None:
    from lora_studio.console.dataset import print_changes, print_found
    from lora_studio.data.captions.replace import apply_changes, find_changes

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


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise CaptionError(f"there is no folder {folder}; give the folder that holds the images.")
    return folder
