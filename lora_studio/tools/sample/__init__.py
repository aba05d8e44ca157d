"""`lora-studio sample`: images from a finished LoRA or a run's checkpoints, the base beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path

from PIL import Image

from lora_studio.errors import RecipeError, StudioError, reason_of
from lora_studio.evaluate.preview_sheet import sheet_of
from lora_studio.evaluate.previews import as_png, drawn_together, render, sampling_of
from lora_studio.files import say_unwritable, write_atomically
from lora_studio.recipe.section import MOST_SEED
from lora_studio.recipe.training import SamplesConfig
from lora_studio.tools import Report
from lora_studio.tools.sample.source import AXES, SampleRequest, SampleSource, open_source
from lora_studio.training.events import Listener, Note, Progress, ignore_events
from lora_studio.training.machine import is_out_of_memory, out_of_memory

GRID_STRENGTHS = (0.5, 0.75, 1.0, 1.25)
MOST_IMAGES, MOST_STRENGTH, MOST_STEPS, MOST_GUIDANCE = 400, 10.0, 1000, 100
WIDEST = 4096  # pixels of a sheet, above which its images are shown smaller


@dataclass(frozen=True)
class SampleImage(Report):
    """One image, and what it was drawn with; the base's have neither checkpoint nor strength."""

    file: str
    prompt: str
    seed: int
    checkpoint: int | None
    strength: float | None


@dataclass(frozen=True)
class Sampled(Report):
    """`sheet`: a file with a row for each prompt and seed, a column for the base and each variant."""

    sheet: str
    images: tuple[SampleImage, ...]


@dataclass(frozen=True)
class SampleVariant:
    """A column of the sheet."""

    title: str
    checkpoint: int | None = None
    strength: float | None = None  # None: the base


def sample(target: Path, request: SampleRequest, *, on_event: Listener = ignore_events) -> Sampled:
    """Draw the request's images from a LoRA file or a run's folder, and write them into a new folder.

    With equal prompts and seeds in every column. Nothing that is there is replaced. Raises StudioError for
    what cannot be drawn, before anything is.
    """
    check_request(request)
    on_event(Note("reading the base"))
    source = open_source(target, request)
    prompts, seeds = _prompts(source, request), request.seeds or (source.samples.seed,)
    variants = _variants(source, request)
    if (number := len(prompts) * len(seeds) * len(variants)) > MOST_IMAGES:
        raise StudioError(f"that would be {number} images; at most {MOST_IMAGES} are drawn at a time.")
    config = source.samples.model_copy(update={"prompts": prompts} | _given(request))
    side = side_of(source, request.side)
    try:
        columns = _draw(source, variants, config, seeds, side, on_event)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(f"while images were drawn ({reason_of(error)})") from None
    return _write(request.folder or source.folder, columns, list(product(prompts, seeds)))


def check_request(request: SampleRequest) -> None:
    """Raises RecipeError for numbers with which nothing can be drawn, before the base is read."""
    if wrong := [one for one in request.strengths if not abs(one) <= MOST_STRENGTH]:
        most = f"{MOST_STRENGTH:g}"
        raise RecipeError(f"--strength is {wrong[0]:g}; it must be a number from -{most} to {most}.")
    if wrong := [one for one in request.seeds if not 0 <= one <= MOST_SEED]:
        raise RecipeError(f"--seeds has {wrong[0]}; a seed is a whole number from 0 to {MOST_SEED}.")
    for name in request.grid - set(AXES):
        raise RecipeError(f"--grid has {name!r}; it is made of {', '.join(AXES)}.")
    if request.steps is not None and not 1 <= request.steps <= MOST_STEPS:
        raise RecipeError(f"--steps is {request.steps}; it must be from 1 to {MOST_STEPS}.")
    if request.guidance is not None and not 1 <= request.guidance <= MOST_GUIDANCE:
        raise RecipeError(f"--guidance is {request.guidance:g}; it must be from 1 to {MOST_GUIDANCE}.")


def _given(request: SampleRequest) -> dict[str, object]:
    names = ("negative_prompt", "steps", "guidance")
    return {name: value for name in names if (value := getattr(request, name)) is not None}


def _prompts(source: SampleSource, request: SampleRequest) -> tuple[str, ...]:
    own = source.samples.prompts
    prompts = request.prompts or (own if "prompts" in request.grid else own[:1])
    if not prompts:
        raise RecipeError("nothing says what to draw: give --prompt, with the trigger words in it.")
    return tuple(dict.fromkeys(prompts))


def side_of(source: SampleSource, side: int | None) -> int:
    """The side in pixels that is asked for, or the source's own. Raises RecipeError if it cannot be drawn."""
    side = source.side if side is None else side
    stride, most = source.family.stride, 16 * source.family.native_side
    if side % stride or not stride <= side <= most:
        what = f"a multiple of {stride} from {stride} to {most}"
        raise RecipeError(f"--size is {side}; of this base it must be {what}.")
    return side


def _variants(source: SampleSource, request: SampleRequest) -> list[SampleVariant]:
    """The base, then every strength of every checkpoint."""
    several = GRID_STRENGTHS if "strengths" in request.grid else (1.0,)
    strengths = tuple(dict.fromkeys(request.strengths or several))
    steps = source.steps_of(request.checkpoints, everything="checkpoints" in request.grid)
    source.check(strengths)
    found = [SampleVariant("base")]
    for step, strength in product(steps, strengths):
        title = f"step {step}" if step is not None else "tuned"
        shown = f"{title} at {strength:g}" if len(strengths) > 1 or strength != 1 else title
        found.append(SampleVariant(shown, step, strength))
    return found


Columns = dict[SampleVariant, list[Image.Image]]


def _draw(
    source: SampleSource,
    variants: Sequence[SampleVariant],
    config: SamplesConfig,
    seeds: Sequence[int],
    side: int,
    listener: Listener,
) -> Columns:
    """Each variant's images, by prompt and then by seed."""
    passes = math.ceil(len(config.prompts) / drawn_together(side)) * sampling_of(source.family, config).steps
    total, done, columns = passes * len(seeds) * len(variants), count(1), Columns()

    def tell() -> None:
        listener(Progress("denoising", next(done), total))

    for variant in variants:
        with source.drawing(variant.checkpoint, variant.strength) as family:
            by_seed = [
                render(family, config.model_copy(update={"seed": seed}), side=side, after_step=tell)
                for seed in seeds
            ]
        columns[variant] = [images[place] for place in range(len(config.prompts)) for images in by_seed]
    return columns


def _write(folder: Path, columns: Columns, rows: Sequence[tuple[str, int]]) -> Sampled:
    """A numbered sheet, and beside it a folder of that number with every image and what it is of."""
    with say_unwritable(folder):
        number = next(one for one in count(1) if not any(folder.glob(f"{one:03}*")))
        own, images = folder / f"{number:03}", []
        for place, (variant, drawn) in enumerate(columns.items()):
            for row, ((prompt, seed), image) in enumerate(zip(rows, drawn, strict=True)):
                path = own / f"{row:02}_{place:02}.png"
                write_atomically(path, as_png(image))
                step, strength = variant.checkpoint, variant.strength
                images.append(SampleImage(str(path), prompt, seed, step, strength))
        told = json.dumps([one.to_json() for one in images], indent=2, ensure_ascii=False)
        write_atomically(own / "images.json", f"{told}\n".encode())
        several = len({seed for _, seed in rows}) > 1
        titles = [f"{prompt}  (seed {seed})" if several else prompt for prompt, seed in rows]
        cell = max(1, WIDEST // len(columns))
        shown = {variant.title: [_within(one, cell) for one in drawn] for variant, drawn in columns.items()}
        sheet = folder / f"{number:03}.png"
        write_atomically(sheet, as_png(sheet_of(titles, shown)))
    return Sampled(str(sheet), tuple(images))


def _within(image: Image.Image, side: int) -> Image.Image:
    share = min(1.0, side / image.width)
    return image if share == 1 else image.resize((round(image.width * share), round(image.height * share)))


__all__ = ["SampleRequest", "Sampled", "sample"]
