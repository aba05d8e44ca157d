"""The verb `evaluate`: what was learned, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.cli.export import step_named
from lora_studio.cli.options import BASES, Device, Json, Trigger, argument, print_json, value
from lora_studio.cli.sample import listed_seeds
from lora_studio.console import console, errors

if TYPE_CHECKING:
    from lora_studio.evaluate.requirements import Requirement
    from lora_studio.tools.evaluate import EvaluationRequest

_IMAGES = "images of what was taught that were not trained on; default: the run's validation images"
_PROMPTS = (
    "a text file, a prompt a line; instead of those built for their group, or beside them with + in front"
)
_ENCODER = "pocket, clip, siglip2 or dinov2, also clip:FOLDER or clip:HUB_ID; default: by the base"
_OUT = "default: evaluation in the run, or <name>_evaluation beside the file"
_REQUIRE = 'exit 1 unless whole intervals keep them, e.g. "fidelity>=0.3, drift<=0.6, leakage<=0.15"'
_CHECKPOINT = "of a run, or best; default: that of its file, else the newest"
_COUNT = "prompts of each of the four groups; more make narrower intervals; default: 5"


def evaluate(
    targets: Annotated[list[Path], argument("RUN|FILE", "a run's folder, or a LoRA file; several in turn")],
    base: Annotated[str | None, value("BASE", f"of a file: {BASES}")] = None,
    images: Annotated[Path | None, value("DIR", _IMAGES)] = None,
    prompts: Annotated[Path | None, value("FILE", _PROMPTS)] = None,
    count: Annotated[int | None, value("N", _COUNT)] = None,
    strength: Annotated[float, value("NUMBER", "of the LoRA")] = 1.0,
    checkpoint: Annotated[str, value("STEP", _CHECKPOINT)] = "",
    seeds: Annotated[str, value("NUMBERS", "e.g. 1,2,3 or 1-4; default: 1000-1002")] = "",
    encoder: Annotated[str, value("NAME", _ENCODER)] = "",
    trigger: Trigger = "",
    class_words: Annotated[
        str, value("WORDS", 'what the trigger is one of, e.g. "robot"', "--class-word")
    ] = "",
    steps: Annotated[int | None, value("N", "denoising steps; default: 60 % of a preview's", min=1)] = None,
    guidance: Annotated[float | None, value("NUMBER", "classifier-free guidance", min=1)] = None,
    size: Annotated[int | None, value("PIXELS", "side of an image; default: what was trained")] = None,
    device: Device = "",
    out: Annotated[Path | None, value("DIR", _OUT, "-o", "--out")] = None,
    require: Annotated[str, value("BOUNDS", _REQUIRE)] = "",
    as_json: Json = False,
) -> None:
    """Measure what a run or file has learned, beside its base: fidelity, prompt following, drift, leakage,
    memorisation, diversity and burn, with 95 % intervals and a verdict where they allow one."""
    numbers = tuple(listed_seeds(seeds))
    step = step_named(checkpoint) if checkpoint else None
    from lora_studio.evaluate.requirements import requirements_of
    from lora_studio.tools.evaluate import EvaluationRequest

    required = requirements_of(require) if require else ()
    usual = EvaluationRequest()
    request = EvaluationRequest(
        strength=strength,
        checkpoint=step,
        base=base,
        images=images,
        prompts=prompts,
        count=usual.count if count is None else count,
        seeds=numbers or usual.seeds,
        encoder=encoder,
        trigger=trigger,
        class_words=class_words,
        steps=steps,
        guidance=guidance,
        side=size,
        device=device,
    )
    if missed := _measure(targets, request, required, out=out, as_json=as_json):
        for one in missed:
            errors.say(f"not kept: {one}")
        raise typer.Exit(1)


def _measure(
    targets: list[Path],
    request: EvaluationRequest,
    required: tuple[Requirement, ...],
    *,
    out: Path | None,
    as_json: bool,
) -> list[str]:
    """Each target in turn, printed; a sentence for each requirement that one has not kept."""
    from dataclasses import replace

    from lora_studio.console.evaluation import print_evaluation
    from lora_studio.console.run import run_screen
    from lora_studio.evaluate.report import PAGE
    from lora_studio.evaluate.requirements import failures
    from lora_studio.tools.evaluate import evaluate as measure
    from lora_studio.tools.evaluate import folders_for

    told, missed = [], list[str]()
    for target, folder in folders_for(targets, out).items():
        with run_screen(errors) as screen:
            made, place = measure(target, replace(request, folder=folder), on_event=screen)
        told.append(made.evaluation.to_json() | {"folder": str(place)})
        missed += [f"{made.evaluation.name}: {one}" for one in failures(required, made.evaluation)]
        if not as_json:
            print_evaluation(made.evaluation, console, written=[place / PAGE])
    if as_json:
        print_json(told if len(told) > 1 else told[0])
    return missed
