"""`lora-studio evaluate`: what a run or a file has learned, and what that cost, by images drawn for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from PIL.Image import Image

from lora_studio.data.images import decode_text, is_image, is_junk, is_mask, read_bytes
from lora_studio.data.manifest import Record
from lora_studio.errors import RecipeError, StudioError, reason_of
from lora_studio.evaluate.artist import Brush
from lora_studio.evaluate.encoders import ENCODERS, load_encoder, usual_encoder
from lora_studio.evaluate.evaluation import USUAL_SEEDS, Evaluated, Evaluator, Inquiry
from lora_studio.evaluate.questions import (
    USUAL_COUNT,
    Taught,
    contexts_for,
    questions_for,
    taught_by,
    with_prompts,
)
from lora_studio.evaluate.report import ReportImages, write_report
from lora_studio.evaluate.result import Evaluation, Question, Variant
from lora_studio.evaluate.saved import RESULT
from lora_studio.files import check_ending, digest, expanded, say_unwritable, write_atomically
from lora_studio.runs import METRICS, Run
from lora_studio.text import plural
from lora_studio.tools.sample.source import Checkpoint, SampleRequest, SampleSource, open_source
from lora_studio.training.events import Listener, Note, Progress, ignore_events
from lora_studio.training.machine import is_out_of_memory, out_of_memory
from lora_studio.training.prepare.data import manifest_of

MOST_STRENGTH, MOST_COUNT = 10.0, 100


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


@dataclass(frozen=True)
class Material:
    """What is known of what was taught."""

    taught: Taught
    training: list[Path] = field(default_factory=list)
    references: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def evaluate(
    target: Path, request: EvaluationRequest, *, on_event: Listener = ignore_events
) -> tuple[Evaluated, Path]:
    """The evaluation of a run's checkpoint or of a LoRA file, and the folder with its evaluation.json.

    Images that were drawn before, for this file or another on the same base, are not drawn again. Raises
    StudioError for what cannot be evaluated, before anything is drawn.
    """
    check_request(request)
    on_event(Note("reading the base"))
    source = open_source(target, _sample_request(request))
    (step,) = source.steps_of([request.checkpoint], everything=False)
    source.check([request.strength])
    material = material_of(source, request)
    questions = _questions(source, material.taught, request)
    encoder = load_encoder(*_encoder_of(source, request), device=source.family.device)
    with SourceArtist(source, request) as artist:
        artist.brush.keep_texts(questions)
        asked = _asked(source, material, questions, request, step)
        evaluator = Evaluator(artist, encoder, asked, on_progress=lambda *done: on_event(Progress(*done)))
        learned = artist.learned(variant := Variant(step, request.strength))
        facts = {"base": _public(source.base_name), "learned_sha256": learned}
        try:
            made = evaluator.evaluate(target.name, variant, facts)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(f"while images were drawn ({reason_of(error)})") from None
    folder = request.folder or source.folder.with_name(source.folder.name.replace("samples", "evaluation"))
    write_evaluation(folder, made, source.run)
    return made, folder


def write_evaluation(folder: Path, made: Evaluated, run: Run | None = None) -> None:
    """`evaluation.json`, its page and its image, in place of older ones. Raises StudioError."""
    path = folder / RESULT
    with say_unwritable(path):
        text = json.dumps(made.evaluation.to_json(), indent=2, ensure_ascii=False)
        write_atomically(path, f"{text}\n".encode("utf-8", "backslashreplace"))
    write_report(
        folder,
        made.evaluation,
        ReportImages(made.drawn, made.training_image),
        losses=[] if run is None else run.measurements(METRICS),
        validation=[] if run is None else run.measurements(),
    )


def check_request(request: EvaluationRequest) -> None:
    """Raises StudioError for what is no evaluation of anything, before the base is read."""
    if not abs(request.strength) <= MOST_STRENGTH:
        most = f"{MOST_STRENGTH:g}"
        raise RecipeError(f"--strength is {request.strength:g}; it must be a number from -{most} to {most}.")
    if not 1 <= request.count <= MOST_COUNT:
        raise RecipeError(f"--count is {request.count}; it must be from 1 to {MOST_COUNT} prompts a group.")
    if request.encoder:
        ENCODERS.check(request.encoder.partition(":")[0])
    for option, folder in (("--images", request.images),):
        if folder is not None and not folder.is_dir():
            raise StudioError(f"{option} is {folder}; give a folder of images that were not trained on.")
    if request.folder is not None:
        check_ending(request.folder, "")


def _sample_request(request: EvaluationRequest) -> SampleRequest:
    checkpoints = () if request.checkpoint is None else (request.checkpoint,)
    return SampleRequest(checkpoints=checkpoints, base=request.base, device=request.device, fingerprint=True)


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

    def draw(self, asked: Sequence[tuple[str, int]], variant: Variant | None) -> list[Image]:
        """One image for each prompt and seed."""
        if variant != self._present:
            self._stack.close()
            strength, step = (None, None) if variant is None else (variant.strength, variant.step)
            self._stack.enter_context(self._source.drawing(step, strength))
            self._present = variant
        return self.brush.draw(asked)


def material_of(source: SampleSource, request: EvaluationRequest) -> Material:
    """What was taught, by the run's recipe and manifest, or as far as a file says it; and images of it."""
    given = Taught(request.trigger, request.class_words)
    run, recipe = source.run, source.recipe
    if run is None or recipe is None:
        trigger = request.trigger or next(iter(source.samples.prompts), "")
        material = Material(Taught(trigger, request.class_words))
    else:
        manifest = manifest_of(run)
        taught = taught_by(manifest.used, recipe.data)
        taught = Taught(
            given.trigger or taught.trigger, given.class_words or taught.class_words, taught.captions
        )
        folders = [one.images for one in recipe.data.all_sources]
        material = Material(taught, [*_found(manifest.used, folders)])
        material.references.extend(_found(manifest.of_role("validation"), folders))
        if lacking := len(manifest.used) - len(material.training):
            what = f"{plural(lacking, 'training image')} of the run were not found again, or have changed"
            material.notes.append(f"{what}: memorisation of them was not looked for")
    if request.images is not None:
        material.references[:] = _images_in(request.images)
    return material


def _found(records: Sequence[Record], folders: Sequence[Path]) -> Iterator[Path]:
    """Where images of a manifest lie, which has no paths, if they are what they were."""
    for record in records:
        places = (folder / record.name for folder in folders)
        yield from [one for one in places if one.is_file() and digest(one) == record.sha256][:1]


def _images_in(folder: Path) -> list[Path]:
    found = sorted(
        one for one in folder.iterdir() if one.is_file() and is_image(one.name) and not is_junk(one.name)
    )
    found = [one for one in found if not is_mask(one.name)]
    if len(found) < 2:
        raise StudioError(f"--images is {folder}, with {plural(len(found))} in it; give 2 or more.")
    return found


def _asked(
    source: SampleSource,
    material: Material,
    questions: Sequence[Question],
    request: EvaluationRequest,
    step: int | None,
) -> Inquiry:
    references, notes = material.references, list(material.notes)
    are_training = len(references) < 2
    if are_training:
        references = material.training
        notes.append(
            "fidelity was measured against the training images, as there are no others: it does not tell "
            "learning from copying; keep two or more for validation, or give others with --images"
            if references
            else "there are no reference images; give a folder of them with --images"
        )
    background = "white" if source.recipe is None else source.recipe.data.background
    return Inquiry(
        questions=questions,
        references=references,
        training=material.training,
        seeds=request.seeds,
        references_are_training=are_training,
        background=background,
        relative_losses={} if source.run is None else _relative_losses(source.run, step),
        notes=notes,
    )


def _relative_losses(run: Run, step: int | None) -> dict[str, float]:
    """By validation image, of the base's, as the run measured at this step, or last."""
    rows = [row for row in run.measurements() if row["step"] > 0 and step in (None, row["step"])]
    return dict(rows[-1].get("images", {})) if rows else {}


def _questions(source: SampleSource, taught: Taught, request: EvaluationRequest) -> tuple[Question, ...]:
    tokenizer = next(iter(source.family.tokenizers.values()))
    built = questions_for(taught, contexts_for(tokenizer), count=request.count)
    if request.prompts is None:
        return built
    path = expanded(request.prompts)
    try:
        text = decode_text(read_bytes(path, max_bytes=10**6))
    except (StudioError, UnicodeDecodeError) as error:
        raise StudioError(f"{path} cannot be read as a text file of prompts: {reason_of(error)}.") from None
    return with_prompts(built, text, taught, name=path.name)


def _encoder_of(source: SampleSource, request: EvaluationRequest) -> tuple[str, str]:
    name, _, model = request.encoder.partition(":")
    return name or usual_encoder(source.base_name), model


def _public(base: str) -> str:
    """The base's name without the folders that it lies in."""
    return Path(base).name if Path(base).exists() else base


__all__ = ["Evaluated", "Evaluation", "EvaluationRequest", "evaluate"]
