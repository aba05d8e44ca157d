"""The verb `sample`: images from what was learned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from lora_studio.cli.export import step_named
from lora_studio.cli.options import BASES, Device, Json, argument, print_json, value
from lora_studio.console import console, errors
from lora_studio.errors import RecipeError

Prompts = Annotated[
    list[str] | None, value("WORDS", "what is drawn; can be repeated; default: a preview's", "--prompt")
]
Strengths = Annotated[
    list[str] | None, value("NUMBERS", "of the LoRA, e.g. 0.5,0.8,1; default: 1", "--strength")
]
Seeds = Annotated[str, value("NUMBERS", "e.g. 1,2,3 or 1-4; default: the previews', or 42")]
Checkpoints = Annotated[
    list[str] | None, value("STEPS", "of a run, e.g. 100,200,best; default: its file's", "--checkpoint")
]
_GRID = 'several of what is not given: "prompts x strengths x checkpoints", or some of these'
_OUT = "default: samples in the run, or <name>_samples beside the file"


def sample(
    target: Annotated[Path, argument("RUN|FILE", "a run's folder, finished or not, or a LoRA file")],
    prompts: Prompts = None,
    strengths: Strengths = None,
    seeds: Seeds = "",
    checkpoints: Checkpoints = None,
    grid: Annotated[str, value("AXES", _GRID)] = "",
    negative: Annotated[str | None, value("WORDS", "the negative prompt")] = None,
    steps: Annotated[int | None, value("N", "denoising steps")] = None,
    guidance: Annotated[float | None, value("NUMBER", "classifier-free guidance")] = None,
    size: Annotated[int | None, value("PIXELS", "side of an image; default: what was trained")] = None,
    base: Annotated[str | None, value("BASE", f"of a file: {BASES}")] = None,
    device: Device = "",
    out: Annotated[Path | None, value("DIR", _OUT, "-o", "--out")] = None,
    as_json: Json = False,
) -> None:
    """Draw images with a finished LoRA or a run's checkpoints, the base beside them with equal seeds."""
    numbers = listed_numbers(strengths, "--strength")
    chosen = tuple(step_named(text) for text in _listed(checkpoints, "--checkpoint"))
    drawn = tuple(listed_seeds(seeds))
    from lora_studio.console.run import run_screen
    from lora_studio.tools.sample import SampleRequest
    from lora_studio.tools.sample import sample as draw

    request = SampleRequest(
        prompts=tuple(prompts or ()),
        strengths=numbers,
        checkpoints=chosen,
        seeds=drawn,
        grid=_axes(grid),
        negative_prompt=negative,
        steps=steps,
        guidance=guidance,
        side=size,
        base=base,
        device=device,
        folder=out,
    )
    with run_screen(errors) as screen:
        found = draw(target, request, on_event=screen)
    if as_json:
        print_json(found.to_json())
        return
    sheet = f"{found.sheet}: a row for each prompt and seed, the base on the left"
    images = f"{len(found.images)} in {Path(found.images[0].file).parent}"
    console.say_rows([("sheet", sheet), ("images", images)])


def _axes(grid: str) -> frozenset[str]:
    axes = frozenset(word for word in re.split(r"[^a-z]+", grid.lower()) if word not in ("", "x"))
    if grid and not axes:
        raise RecipeError("--grid has nothing in it; give it a value, or leave it out.")
    return axes


def listed_seeds(text: str) -> list[int]:
    """Of "1,2,3" or "1-4"; none of nothing. Raises RecipeError."""
    return [seed for one in _listed([text] if text else None, "--seeds") for seed in _seeds(one)]


def _listed(texts: list[str] | None, option: str) -> list[str]:
    """What stands between commas and spaces, in all of them. Raises RecipeError if nothing does in one."""
    listed = [[one for one in re.split(r"[,\s]+", text) if one] for text in texts or ()]
    if not all(listed):
        raise RecipeError(f"{option} has nothing in it; give it a value, or leave it out.")
    return [one for text in listed for one in text]


def listed_numbers(texts: list[str] | None, option: str) -> tuple[float, ...]:
    """What stands between commas and spaces, in all of them. Raises RecipeError for what is no number."""
    return tuple(_number(one, option) for one in _listed(texts, option))


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RecipeError(f"{option} has {text!r}, which is no number; write for example 0.5,1.") from None


def _seeds(text: str) -> range:
    """ "7", or "1-4"."""
    found = re.fullmatch(r"(\d{1,20})(?:-(\d{1,20}))?", text)
    if not found:
        raise RecipeError(f"--seeds has {text!r}; write whole numbers, for example 1,2,3 or 1-4.")
    first, last = int(found[1]), int(found[2] or found[1])
    if not first <= last < first + 400:
        raise RecipeError(f"--seeds has {text!r}; a range goes up, by at most 400.")
    return range(first, last + 1)
