"""The verb `assess`: how well bases suit a recipe's images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lora_studio.cli.options import BASES, Changes, Device, Json, RecipeFile, print_json, value
from lora_studio.console import console, errors

if TYPE_CHECKING:
    from lora_studio.console import Screen
    from lora_studio.tools.assess import BasesAssessed

_ENCODER = "pocket, clip, siglip2 or dinov2, also clip:FOLDER or clip:HUB_ID; default: by the first base"
_OUT = "default: <name of the recipe>_assessment"


def assess(
    recipe: RecipeFile,
    bases: Annotated[
        list[str] | None, value("BASE", f"{BASES}; can be repeated; default: the recipe's", "--base")
    ] = None,
    changes: Changes = None,
    count: Annotated[int, value("N", "images that are measured, from all over the recipe's")] = 16,
    encoder: Annotated[str, value("NAME", _ENCODER)] = "",
    device: Device = "",
    out: Annotated[Path | None, value("DIR", _OUT, "-o", "--out")] = None,
    as_json: Json = False,
) -> None:
    """Measure bases on a recipe's images before training: captions, VAE, domain gap; a ranking and a page."""
    from lora_studio.console.run import run_screen
    from lora_studio.tools.assess import AssessmentRequest
    from lora_studio.tools.assess import assess as measure

    wanted = (tuple(bases or ()), tuple(changes or ()), count, encoder, device, out)
    with run_screen(errors) as screen:
        found = measure(recipe, AssessmentRequest(*wanted), on_event=screen)
    if as_json:
        print_json(found.to_json())
    else:
        print_assessed(found, console)


def print_assessed(found: BasesAssessed, screen: Screen) -> None:
    """Each base's measures and its strangest image, then the ranking."""
    from lora_studio.evaluate.assessing import ASPECTS
    from lora_studio.evaluate.assessing.page import TITLES, in_figures, ranking_in_words

    rows = []
    for one in found.assessments:
        rows.append(("base", one.base))
        rows += [("", f"{TITLES[name]}: {in_figures(name, one.measures[name])}") for name in ASPECTS]
        rows.append(("", f"strangest to it: {', '.join(worst.name for worst in one.worst('gap', 3))}"))
    rows += [("ranking", ranking_in_words(found.ranking)), ("page", found.page)]
    screen.say_rows(rows)
