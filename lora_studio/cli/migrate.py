"""What `init --from` and `schema` do: a recipe from another trainer's settings, and the schema of recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lora_studio.cli.options import value
from lora_studio.console import console
from lora_studio.errors import RecipeError
from lora_studio.files import check_ending, write_atomically
from lora_studio.text import shown

if TYPE_CHECKING:
    from lora_studio.recipe.migrate import Migrated, MigrationInputs

_WIDEST = 44  # letters of a key and its value in the table; the recipe has the whole
SchemaOut = Annotated[Path | None, value("FILE", "a .json file to write; default: print it", "-o", "--out")]


def schema(out: SchemaOut = None) -> None:
    """Print the JSON Schema of recipes, for editors and other programs."""
    from lora_studio.recipe.schema import recipe_schema, schema_text

    if out is None:
        console.say_json(recipe_schema())
        return
    check_ending(out, ".json")
    if out.exists():
        raise RecipeError(f"{out} is there already and stays as it is; choose another --out.")
    write_atomically(out, schema_text().encode())
    console.say(f"wrote {out}")


def with_schema(path: Path, text: str) -> str:
    """The recipe with the line by which editors find the schema, which is written beside it if it can be.

    A file of that name that is not a schema of ours stays, and so does the recipe without the line.
    """
    from lora_studio.recipe.schema import DIRECTIVE, SCHEMA_FILE, recipe_schema, schema_text

    beside = path.parent / SCHEMA_FILE
    try:
        if beside.exists() and f'"title": "{recipe_schema()["title"]}"' not in beside.read_text("utf-8"):
            return text
        write_atomically(beside, schema_text().encode())
    except (OSError, UnicodeDecodeError):
        return text
    return DIRECTIVE + text


def taken_over(files: Sequence[Path], inputs: MigrationInputs, out: Path | None) -> tuple[Path, Migrated]:
    """The recipe of other trainers' files and where it goes; prints the table of what became of each key."""
    from lora_studio.recipe.migrate import TRAINERS, migrate
    from lora_studio.recipe.migrate.writing import HEADINGS, not_needed, rows_of

    folder = out.parent if out is not None else Path()
    made = migrate(files, inputs, folder=folder)
    path = out or Path(f"{made.recipe.name}.toml")
    console.say(f"{', '.join(map(str, files))}: settings of {TRAINERS[made.trainer]}")
    for fate, heading in HEADINGS.items():
        if rows := rows_of(made.draft.fates, fate):
            console.say()
            console.print_rows([(_short(there), text) for there, text in rows], heading=heading)
    if idle := not_needed(made.draft.fates):
        console.say()
        console.say(f"not needed here: {', '.join(idle)}")
    for note in dict.fromkeys(made.draft.notes):
        console.say(f"note: {shown(note)}")
    console.say()
    return path, made


def _short(there: str) -> str:
    return there if len(there) <= _WIDEST else f"{there[: _WIDEST - 4]} ..."
