"""The verbs `buckets`, `regularization-images` and `cache`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.cli.options import (
    Changes,
    Command,
    Group,
    Json,
    RecipeFile,
    argument,
    flag,
    print_json,
    value,
)
from lora_studio.console import console, errors
from lora_studio.errors import RecipeError, StudioError
from lora_studio.text import file_size

if TYPE_CHECKING:
    from lora_studio.data.buckets.report import BucketPlan
    from lora_studio.data.cache import CacheEntry
    from lora_studio.data.manifest import Manifest

RESOLUTION, STRIDE = 512, 64  # of Stable Diffusion 1.5


def buckets(
    images: Annotated[
        Path | None, argument("FOLDER|RECIPE", "images, or a recipe; default: the common shapes")
    ] = None,
    resolution: Annotated[
        int | None, value("PIXELS", "side of a square of the area; default: 512, or the recipe's", min=1)
    ] = None,
    stride: Annotated[
        int | None, value("PIXELS", "what sides are multiples of; default: 64, or the base's", min=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the sizes that images get in training, and how much of them is cropped away."""
    if images is None:
        _shapes(resolution or RESOLUTION, stride or STRIDE, as_json=as_json)
        return
    from lora_studio.console.dataset import print_bucket_plan

    if images.is_dir():
        manifest, plan = _of_folder(images, resolution or RESOLUTION, stride or STRIDE)
    elif images.suffix == ".toml":
        manifest, plan = _of_recipe(images, resolution, stride)
    else:
        raise RecipeError(
            f"{images} is neither a folder nor a recipe; give a folder of images or a .toml file."
        )
    excluded = [(record.name, record.excluded) for record in manifest.excluded]
    if as_json:
        print_json(asdict(plan) | {"excluded": dict(excluded)})
    else:
        print_bucket_plan(plan, excluded, console)


def _shapes(resolution: int, stride: int, *, as_json: bool) -> None:
    from lora_studio.console.dataset import print_aspects
    from lora_studio.data.buckets.report import aspect_rows

    rows = aspect_rows(resolution, stride)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        print_aspects(rows, console, resolution=resolution, stride=stride)


def _of_folder(folder: Path, resolution: int, stride: int) -> tuple[Manifest, BucketPlan]:
    from lora_studio.data.buckets import assign
    from lora_studio.data.buckets.report import bucket_plan
    from lora_studio.data.scan import scan
    from lora_studio.recipe.data import DataConfig

    data = DataConfig.model_construct(images=folder, resolution=resolution)
    manifest = assign(scan(folder), data, stride=stride)
    return manifest, bucket_plan(manifest.used, [resolution])


def _of_recipe(path: Path, resolution: int | None, stride: int | None) -> tuple[Manifest, BucketPlan]:
    from lora_studio.data.buckets.report import bucket_plan
    from lora_studio.recipe.load import load_recipe
    from lora_studio.training.prepare.base_model import base_of
    from lora_studio.training.prepare.dataset import read_dataset

    changes = () if resolution is None else (f"data.resolution={resolution}",)
    recipe = load_recipe(path, changes=changes)
    manifest = read_dataset(recipe, stride or base_of(recipe, weights=False).stride)
    return manifest, bucket_plan(manifest.used, recipe.data.all_resolutions)


def regularization_images(
    recipe: Annotated[Path, argument("RECIPE", "a TOML recipe with data.regularization_images.count")],
    changes: Changes = None,
) -> None:
    """Draw a recipe's regularization images ahead of training; after a stop the same command goes on."""
    from lora_studio.recipe.load import load_recipe

    loaded = load_recipe(recipe, changes=tuple(changes or ()))
    from lora_studio.console.run import run_screen
    from lora_studio.training.prepare.regularization_images import draw_ahead

    console.say("reading the base model and the images")
    with run_screen(console) as screen:
        drawing = draw_ahead(loaded, screen)
    count, folder = len(drawing.records), Path(drawing.records[0].path).parent
    console.say(f"{count} regularization images, {drawing.drawn} of them drawn now, in {folder}")


def class_images(recipe: RecipeFile, changes: Changes = None) -> None:
    """The name that regularization-images had before."""
    from lora_studio.recipe.renamed import notice

    errors.say(f"note: {notice('class-images', 'regularization-images')}")
    regularization_images(recipe, changes)


CACHE_HELP = "Show what is cached for all runs, and make it smaller."
cache = typer.Typer(name="cache", cls=Group, invoke_without_command=True, help=CACHE_HELP)


@cache.callback()
def show(context: typer.Context) -> None:
    """Show what is cached for all runs: how many entries of each kind, how large, and where."""
    from lora_studio.data.cache import entries
    from lora_studio.files import cache_folder

    if context.invoked_subcommand is None:
        console.say(f"cache folder {cache_folder()}")
        _print(entries(cache_folder()))


@cache.command(cls=Command)
def prune(
    older_than: Annotated[
        str | None, value("AGE", "what was not used for this long, e.g. 30d, 12h or 4w")
    ] = None,
    max_size: Annotated[
        str | None, value("SIZE", "the longest unused, until this much is left, e.g. 5GB")
    ] = None,
    yes: Annotated[bool, flag("--yes", "remove it; without this it is only shown")] = False,
) -> None:
    """Remove entries from the cache; a run that needs one makes it again."""
    from lora_studio.data.cache import bytes_of, entries, prunable, remove, seconds_of
    from lora_studio.files import cache_folder

    if older_than is None and max_size is None:
        raise StudioError("say what may go: --older-than 30d, --max-size 5GB, or both.")
    gone = prunable(
        entries(cache_folder()),
        older_than=None if older_than is None else seconds_of(older_than),
        max_bytes=None if max_size is None else bytes_of(max_size),
    )
    console.say(f"cache folder {cache_folder()}")
    if not gone:
        console.say("nothing to remove")
        return
    _print(gone)
    if yes:
        console.say(f"removed: {file_size(remove(gone))} are free now")
    else:
        console.say("this would be removed; add --yes to do it")


def _print(found: Sequence[CacheEntry]) -> None:
    from rich.table import Table

    from lora_studio.data.cache import KINDS

    table = Table(box=None, pad_edge=False)
    for title in ("kind", "entries", "size", "longest unused", "last used"):
        table.add_column(title, justify="right" if title in ("entries", "size") else "left")
    groups = [
        (words, [one for one in found if one.kind == kind and not one.leftover])
        for kind, words in KINDS.items()
    ]
    groups.append(("left by crashes", [one for one in found if one.leftover]))
    for words, group in [*((words, group) for words, group in groups if group), ("all", found)]:
        dates = [datetime.fromtimestamp(one.used_at).strftime("%Y-%m-%d") for one in group] or ["-"]
        size = file_size(sum(one.num_bytes for one in group))
        table.add_row(words, str(len(group)), size, min(dates), max(dates))
    console.print(table)
