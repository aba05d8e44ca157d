"""`lora-studio evaluate`: what a run or a file has learned, and what that cost, by images drawn for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from PIL.Image import Image

from lora_studio.data.images import decode_text, read_bytes
from lora_studio.errors import RecipeError, StudioError, reason_of
from lora_studio.evaluate.artist import Brush
from lora_studio.evaluate.encoders import ENCODERS, load_encoder, usual_encoder
from lora_studio.evaluate.evaluation import USUAL_SEEDS, Evaluated, Evaluator, Inquiry, check_seeds
from lora_studio.evaluate.material import Material, images_in, material_of_run, public_name, relative_losses
from lora_studio.evaluate.questions import (
    USUAL_COUNT,
    Taught,
    at_other_side,
    contexts_for,
    questions_for,
    with_prompts,
)
from lora_studio.evaluate.result import Evaluation, Question, Size, Variant
from lora_studio.evaluate.written import write_evaluation
from lora_studio.files import check_ending, expanded
from lora_studio.tools.sample import check_request as check_drawn
from lora_studio.tools.sample import side_of
from lora_studio.tools.sample.source import SampleRequest, SampleSource, open_source
from lora_studio.training.events import Listener, Note, Progress, ignore_events
from lora_studio.training.finish.export import Checkpoint
from lora_studio.training.machine import is_out_of_memory, out_of_memory
from lora_studio.training.prepare.data import manifest_of

MOST_COUNT = 100


@dataclass(frozen=True)
class EvaluationRequest:
    """What is asked; what is empty or None is as the run has it, or as is usual for the base."""

    strength: float = 1.0
    checkpoint: Checkpoint = None
    base: str | None = None  # of a file
    images: Path | None = None  # a folder of images of what was taught, that were not trained on
    prompts: Path | None = None  # a text file; see `questions.with_prompts`
    count: int = USUAL_COUNT  # prompts of each group
    seeds: tuple[int, ...] = USUAL_SEEDS
    encoder: str = ""  # a name of `ENCODERS`, also with ":" and a folder or hub id behind it
    steps: int | None = None  # denoising steps
    guidance: float | None = None
    side: int | None = None  # pixels
    trigger: str = ""  # of a file that does not say it
    class_words: str = ""
    device: str = ""
    folder: Path | None = None  # None: evaluation/ in the run, <name>_evaluation beside a file


def evaluate(
    target: Path, request: EvaluationRequest, *, on_event: Listener = ignore_events
) -> tuple[Evaluated, Path]:
    """The evaluation of a run's checkpoint or of a LoRA file, and the folder with its evaluation.json.

    Images that were drawn before, for this file or another on the same base, are not drawn again. Raises
    StudioError for what cannot be evaluated, before anything is drawn.
    """
    check_request(request)
    on_event(Note("reading the base"))
    source = open_source(target, sample_request(request))
    (step,) = source.steps_of([request.checkpoint], everything=False)
    source.check([request.strength])
    request = replace(request, side=side_of(source, request.side))
    material = material_of(source, request)
    questions = _questions(source, material.taught, request)
    encoder = load_encoder(*_encoder_of(source, request), device=source.family.device)
    with SourceArtist(source, request) as artist:
        artist.brush.keep_texts(questions)
        asked = _asked(source, material, questions, request, step)
        evaluator = Evaluator(artist, encoder, asked, on_progress=lambda *done: on_event(Progress(*done)))
        learned = artist.learned(variant := Variant(step, request.strength))
        facts = {"base": public_name(source.base_name), "learned_sha256": learned}
        try:
            made = evaluator.evaluate(_name(target), variant, facts)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(f"while images were drawn ({reason_of(error)})") from None
    folder = request.folder or source.folder.with_name(source.folder.name.replace("samples", "evaluation"))
    write_evaluation(folder, made, source.run)
    return made, folder


def folders_for(targets: Sequence[Path], out: Path | None) -> dict[Path, Path | None]:
    """Where each goes: into `out`, of several into folders in it; of two of a name the second says so.

    Raises StudioError for those that are not there, before the first is evaluated.
    """
    if lacking := [one for one in targets if not one.exists()]:
        raise StudioError(
            f"there is no {lacking[0]}; give a run's folder, such as runs/my_style, or a LoRA file."
        )
    several = list(dict.fromkeys(targets))
    if out is None or len(several) == 1:
        return dict.fromkeys(several, out)
    names = [_name(one).removesuffix(".safetensors") for one in several]
    numbers = [names[:place].count(name) + 1 for place, name in enumerate(names)]
    folders = [
        f"{name}_{number}" if number > 1 else name for name, number in zip(names, numbers, strict=True)
    ]
    return {one: out / folder for one, folder in zip(several, folders, strict=True)}


def _name(target: Path) -> str:
    """Also of "." and "..", which have none."""
    return Path(os.path.abspath(target)).name


def check_request(request: EvaluationRequest) -> None:
    """Raises StudioError for what is no evaluation of anything, before the base is read."""
    check_drawn(sample_request(request))
    check_seeds(request.seeds)
    if not 1 <= request.count <= MOST_COUNT:
        raise RecipeError(f"--count is {request.count}; it must be from 1 to {MOST_COUNT} prompts a group.")
    if request.encoder:
        ENCODERS.check(request.encoder.partition(":")[0])
    if request.images is not None:
        images_in(request.images, "--images")
    if request.prompts is not None:
        _text_of(request.prompts)
    if request.folder is not None:
        check_ending(request.folder, "")


def sample_request(request: EvaluationRequest) -> SampleRequest:
    """What of it says how images are drawn."""
    return SampleRequest(
        strengths=(request.strength,),
        checkpoints=() if request.checkpoint is None else (request.checkpoint,),
        seeds=request.seeds,
        steps=request.steps,
        guidance=request.guidance,
        base=request.base,
        device=request.device,
        fingerprint=True,
    )


class SourceArtist:
    """Draws from a run or a file; what was learned stays in the weights until something else is asked for."""

    def __init__(self, source: SampleSource, request: EvaluationRequest) -> None:
        self._source, self._stack = source, ExitStack()
        self._present: Variant | tuple[()] | None = ()  # nothing yet
        usual = source.samples.model_copy(
            update={} if request.guidance is None else {"guidance": request.guidance}
        )
        brush = Brush.like_previews(
            source.family, usual, request.side or source.side, source.base_fingerprint
        )
        if request.steps is not None:
            config = brush.config.model_copy(update={"steps": request.steps})
            brush = Brush(brush.family, config, brush.side, brush.base)
        self.brush = brush
        self.drawn_with: Mapping[str, str | int | float] = brush.drawn_with

    def __enter__(self) -> SourceArtist:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def learned(self, variant: Variant) -> str:
        """Of the checkpoint or the file."""
        return self._source.learned(variant.step)

    def draw(
        self, asked: Sequence[tuple[str, int]], variant: Variant | None, size: Size | None = None
    ) -> list[Image]:
        """One image for each prompt and seed."""
        if variant != self._present:
            self._stack.close()
            strength, step = (None, None) if variant is None else (variant.strength, variant.step)
            self._stack.enter_context(self._source.drawing(step, strength))
            self._present = variant
        return self.brush.draw(asked, size)


def material_of(source: SampleSource, request: EvaluationRequest) -> Material:
    """What was taught, by the run's recipe and manifest, or as far as a file says it; and images of it."""
    run, recipe = source.run, source.recipe
    if run is None or recipe is None:
        trigger = request.trigger or next(iter(source.samples.prompts), "")
        references = () if request.images is None else tuple(images_in(request.images, "--images"))
        return Material(Taught(trigger, request.class_words), references=references)
    found = material_of_run(manifest_of(run), recipe.data, request.images, option="--images")
    known = found.taught
    trigger, words = request.trigger or known.trigger, request.class_words or known.class_words
    return replace(found, taught=replace(known, trigger=trigger, class_words=words))


def _asked(
    source: SampleSource,
    material: Material,
    questions: Sequence[Question],
    request: EvaluationRequest,
    step: int | None,
) -> Inquiry:
    references, are_training, notes = material.compared_with
    if source.lacking_words:
        words = ", ".join(source.lacking_words)
        notes += (f"drawn without the embedding of {words}, a file of its own; evaluate the run's folder",)
    return Inquiry(
        questions=questions,
        references=references,
        training=material.training,
        seeds=request.seeds,
        references_are_training=are_training,
        background="white" if source.recipe is None else source.recipe.data.background,
        relative_losses={} if source.run is None else relative_losses(source.run, step),
        notes=notes,
    )


def _questions(source: SampleSource, taught: Taught, request: EvaluationRequest) -> tuple[Question, ...]:
    tokenizer = next(iter(source.family.tokenizers.values()))
    built = questions_for(taught, contexts_for(tokenizer), count=request.count)
    share = (request.side or source.side) / source.side
    if request.prompts is None:
        return at_other_side(built, share, source.family.stride)
    asked = with_prompts(built, _text_of(request.prompts), taught, name=request.prompts.name)
    return at_other_side(asked, share, source.family.stride)


def _text_of(path: Path) -> str:
    try:
        return decode_text(read_bytes(expanded(path), max_bytes=10**6))
    except (StudioError, UnicodeDecodeError) as error:
        raise StudioError(f"{path} cannot be read as a text file of prompts: {reason_of(error)}.") from None


def _encoder_of(source: SampleSource, request: EvaluationRequest) -> tuple[str, str]:
    name, _, model = request.encoder.partition(":")
    return name or usual_encoder(source.base_name), model


__all__ = ["Evaluated", "Evaluation", "EvaluationRequest", "evaluate"]
