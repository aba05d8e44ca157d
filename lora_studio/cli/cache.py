"""The verbs `cache` and `regularization-images`: they parse and print, and import no torch too early."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lora_studio.console.screen import console
from lora_studio.errors import StudioError
from lora_studio.quiet import quiet_libraries
from lora_studio.recipe.load import load_recipe
from lora_studio.text import file_size

if TYPE_CHECKING:
    from lora_studio.data.cache.prune import CacheEntry

cache = typer.Typer(
    name="cache", invoke_without_command=True, help="Show what is cached for all runs, and make it smaller."
)


@cache.callback()
def show(context: typer.Context) -> None:
    """Show what is cached for all runs: how many entries of each kind, how large, and where."""
    from lora_studio.data.cache.prune import cache_folder, entries

    if context.invoked_subcommand is None:
        console.say(f"cache folder {cache_folder()}")
        _print(entries(cache_folder()))


@cache.command()
def prune(
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="what was not used for so long, e.g. 30d, 12h or 4w")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="the longest unused, until so much is left, e.g. 5GB")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove it; without this it is only shown")] = False,
) -> None:
    """Remove entries from the cache; a run that needs one makes it again."""
    from lora_studio.data.cache.prune import bytes_of, cache_folder, entries, prunable, remove, seconds_of

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


def regularization_images(
    recipe: Annotated[Path, typer.Argument(help="a TOML recipe with data.regularization_images.count")],
    changes: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="change the recipe, as for train")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
) -> None:
    """Draw a recipe's regularization images ahead of training; after a stop the same command goes on."""
    loaded = load_recipe(recipe, changes=tuple(changes))
    quiet_libraries()
    from lora_studio.console.run import RunScreen
    from lora_studio.training.prepare.regularization_images import draw_ahead

    console.say("reading the base model and the images")
    with RunScreen(console) as screen:
        drawing = draw_ahead(loaded, screen)
    count, folder = len(drawing.records), Path(drawing.records[0].path).parent
    console.say(f"{count} regularization images, {drawing.drawn} of them drawn now, in {folder}")


def _print(found: Sequence[CacheEntry]) -> None:
    """A line a kind."""
    from lora_studio.data.cache.prune import KINDS

    table = Table(box=None, pad_edge=False)
    for title in ("kind", "entries", "size", "longest unused", "last used"):
        table.add_column(title, justify="right" if title in ("entries", "size") else "left")
    for kind, words in KINDS.items():
        of_kind = [one for one in found if one.kind == kind and not one.leftover]
        if of_kind:
            _add_row(table, words, of_kind)
    if leftovers := [one for one in found if one.leftover]:
        _add_row(table, "left by crashes", leftovers)
    _add_row(table, "all", found)
    console.print(table)


def _add_row(table: Table, title: str, found: Sequence[CacheEntry]) -> None:
    dates = [datetime.fromtimestamp(one.used_at).strftime("%Y-%m-%d") for one in found] or ["-"]
    table.add_row(
        title, str(len(found)), file_size(sum(one.num_bytes for one in found)), min(dates), max(dates)
    )
