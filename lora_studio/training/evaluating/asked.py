"""What a run's checkpoints, strengths and result are asked, and by what their images are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lora_studio.errors import RecipeError
from lora_studio.evaluate.artist import Brush
from lora_studio.evaluate.encoders import ImageEncoder, load_encoder, usual_encoder
from lora_studio.evaluate.evaluation import Evaluated, Evaluator, Inquiry
from lora_studio.evaluate.material import (
    Material,
    material_of_run,
    public_name,
    questions_of,
    relative_losses,
)
from lora_studio.evaluate.questions import USUAL_COUNT
from lora_studio.evaluate.result import Evaluation, Question, Variant
from lora_studio.evaluate.saved import evaluation_folder
from lora_studio.evaluate.statistics import TRIMMED
from lora_studio.evaluate.written import write_evaluation
from lora_studio.files import digest
from lora_studio.recipe import Recipe
from lora_studio.training.evaluating.artist import TrainedArtist
from lora_studio.training.events import Listener, Note, Progress, ignore_events
from lora_studio.training.loop.watch import draw_within_memory
from lora_studio.training.prepare import Session


def encoder_named(name: str, base: str) -> tuple[str, str]:
    """The encoder's name and the folder or hub id of its weights; of "auto" what is usual for the base."""
    name, _, model = name.partition(":")
    return (usual_encoder(base), model) if name in ("auto", "") else (name, model)


@dataclass
class RunMeasures:
    """Measures variants of a run as the verb `evaluate` does, in the base that is loaded already.

    Of checkpoints and strengths with few prompts, whose images are not kept; of the result with all.
    """

    artist: TrainedArtist
    listener: Listener = ignore_events
    encoder_device: str = "cpu"  # where there is room for it beside what is trained
    option: str = "evaluate.images"  # what the folder of references was given with
    _evaluators: dict[int, Evaluator] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.artist.trained.recipe

    @cached_property
    def material(self) -> Material:
        """Raises StudioError if the folder of reference images holds too few."""
        images, manifest = self.recipe.evaluate.images, self.artist.trained.manifest
        return material_of_run(manifest, self.recipe.data, images, option=self.option)

    @cached_property
    def encoder(self) -> ImageEncoder:
        """Raises StudioError if its files are not there."""
        named = encoder_named(self.recipe.evaluate.encoder, self.recipe.base.model)
        return load_encoder(*named, device=self.encoder_device)

    def check(self) -> None:
        """Before the first step. Raises StudioError if encoder or images are not there, or nothing to ask."""
        if not self.questions(1):
            raise RecipeError(
                "[evaluate] has nothing to ask: there is no data.trigger, and no caption; add one of them."
            )
        self.material, self.encoder  # noqa: B018

    def questions(self, count: int) -> tuple[Question, ...]:
        """`count` of each group."""
        return questions_of(self.material.taught, self.artist.trained.family, count)

    def measure(self, variant: Variant) -> Evaluation:
        """With few prompts: figures to choose by."""
        made = self._evaluated(self.recipe.evaluate.checkpoint_prompts, variant)
        for one in made.tuned:  # of many checkpoints they would fill the disk
            one.path.unlink(missing_ok=True)
        return made.evaluation

    def evaluate(self, variant: Variant) -> Evaluated:
        """With all prompts."""
        return self._evaluated(self.recipe.evaluate.prompts or USUAL_COUNT, variant)

    def _evaluated(self, count: int, variant: Variant) -> Evaluated:
        if count not in self._evaluators:
            asked = self._asked(self.questions(count))
            tell = self.listener
            self._evaluators[count] = Evaluator(
                self.artist,
                self.encoder,
                asked,
                on_progress=lambda *done: tell(Progress(*done)),
            )
        evaluator = self._evaluators[count]
        losses = relative_losses(self.artist.trained.run, variant.step)
        evaluator.asked = replace(evaluator.asked, relative_losses=losses)
        facts = {"base": public_name(self.recipe.base.model), "learned_sha256": self.artist.learned(variant)}
        return evaluator.evaluate(self.recipe.name, variant, facts)

    def _asked(self, questions: Sequence[Question]) -> Inquiry:
        references, are_training, notes = self.material.compared_with
        return Inquiry(
            questions=questions,
            references=references,
            training=self.material.training,
            seeds=seeds_of(self.recipe),
            references_are_training=are_training,
            background=self.recipe.data.background,
            notes=notes,
        )

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What figures to choose by depend on beside the checkpoint: for best.json, and to tell others'."""
        references, are_training, _ = self.material.compared_with
        count = self.recipe.evaluate.checkpoint_prompts
        drawn = {key: value for key, value in self.artist.drawn_with.items() if key != "base"}
        return {
            "questions": [one.prompt for one in self.questions(count)],
            "sizes": [one.size for one in self.questions(count)],
            "seeds": list(seeds_of(self.recipe)),
            "drift_without_one_of": TRIMMED,
            "encoder": self.encoder.name,
            "encoder_sha256": self.encoder.digest,
            "references": len(references),
            "references_are_training": are_training,
            "drawn_with": drawn,
        }

    @cached_property
    def hashed(self) -> str:
        """SHA-256 of all of that."""
        references, _, _ = self.material.compared_with
        told = [self.facts, dict(self.artist.drawn_with), sorted(digest(path) for path in references)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def measures_of(session: Session, listener: Listener) -> RunMeasures | None:
    """As [evaluate] asks for; None if it asks for nothing. Raises StudioError for what is not there."""
    recipe = session.recipe
    if recipe.evaluate.off:
        return None
    brush = Brush.like_previews(session.family, recipe.samples, recipe.data.resolution, session.whole_base)
    measures = RunMeasures(TrainedArtist(session, session.loop.state, brush), listener)
    measures.check()
    return measures


def evaluate_result(measures: RunMeasures | None, step: int, listener: Listener) -> None:
    """What the verb writes into the run's folder, if the recipe wants it; a note if memory is not enough."""
    if measures is None or not measures.recipe.evaluate.at_end:
        return
    trained = measures.artist.trained
    made = draw_within_memory(trained.family, lambda: measures.evaluate(Variant(step)))
    if made is None:
        listener(Note("warning: the result was not evaluated: the memory ran out"))
        return
    if trained.processes.is_main:
        with trained.run.writing():
            write_evaluation(evaluation_folder(trained.run.folder), made, trained.run)
    for verdict in made.evaluation.verdicts:
        if verdict.decided:
            listener(Note(f"{verdict.word}: {verdict.sentence}"))


def seeds_of(recipe: Recipe) -> tuple[int, ...]:
    """Of the images of each prompt."""
    first = recipe.evaluate.first_seed
    return tuple(range(first, first + recipe.evaluate.seeds))
