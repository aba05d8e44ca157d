"""The verb `choose`: which checkpoint of a run is the best, and at which strengths it is of use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lora_studio.cli.options import Device, Json, argument, flag, print_json, value
from lora_studio.cli.sample import listed_numbers
from lora_studio.console import console, errors

if TYPE_CHECKING:
    from lora_studio.console import Screen
    from lora_studio.tools.choose import RunChoice

_STRENGTHS = "also measure these strengths of it, e.g. 0.4,0.6,0.8,1,1.2,1.4, and draw a sheet of them"
_IMAGES = "images of what was taught that were not trained on; default: the run's validation images"
_ENCODER = "pocket, clip, siglip2 or dinov2, also clip:FOLDER or clip:HUB_ID; default: by the base"


def choose(
    run: Annotated[Path, argument("RUN", "a run's folder, finished or stopped, with its checkpoints")],
    strengths: Annotated[list[str] | None, value("NUMBERS", _STRENGTHS, "--strengths")] = None,
    grid: Annotated[bool, flag("--grid", "also draw a sheet of prompts and checkpoints")] = False,
    images: Annotated[Path | None, value("DIR", _IMAGES)] = None,
    count: Annotated[int | None, value("N", "prompts of each of the four groups", min=1)] = None,
    drift: Annotated[float | None, value("NUMBER", "the budget of drift")] = None,
    leakage: Annotated[float | None, value("NUMBER", "the budget of leakage")] = None,
    encoder: Annotated[str, value("NAME", _ENCODER)] = "",
    device: Device = "",
    as_json: Json = False,
) -> None:
    """Measure a run's kept checkpoints, and say which learned the most within its budgets: best.json."""
    given: dict[str, Any] = {
        "strengths": listed_numbers(strengths, "--strengths"),
        "images": images,
        "checkpoint_prompts": count,
        "drift": drift,
        "leakage": leakage,
        "encoder": encoder,
    }
    from lora_studio.console.run import run_screen
    from lora_studio.tools.choose import ChoiceRequest, choose_of_run

    changes = {name: one for name, one in given.items() if one not in (None, "", ())}
    with run_screen(errors) as screen:
        found = choose_of_run(run, ChoiceRequest(changes, grid, device), on_event=screen)
    if as_json:
        print_json(found.to_json())
    else:
        print_chosen(found, console)


def print_chosen(found: RunChoice, screen: Screen) -> None:
    """A line a checkpoint, then which it is, and why."""
    rows = []
    for one in found.choice.candidates:
        figures = (
            f"{name} {interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
            for name, interval in one.measures.items()
        )
        rows.append((f"step {one.variant.step}", "  ".join(figures)))
    rows.append(("best", found.choice.why))
    if found.strengths is not None:
        rows.append(("strength", found.strengths.choice.why))
        rows.append(("", found.strengths.in_words))
    rows += [("written", path) for path in found.files]
    screen.say_rows(rows)
