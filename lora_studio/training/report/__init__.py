"""What will be trained, put into words before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from lora_studio.data.batches import average_views
from lora_studio.data.buckets.report import bucket_plan
from lora_studio.data.manifest import Record
from lora_studio.data.regularization_images import DRAWN
from lora_studio.recipe.training import TrainingConfig
from lora_studio.training.events import RegularizationSummary, TrainingPlan
from lora_studio.training.prepare import Session
from lora_studio.training.report.adapters import adapter_notes
from lora_studio.training.report.captions import (
    caption_examples,
    caption_warnings,
    find_cuts,
    one_of_each,
    preserved_example,
    variation_in_words,
)
from lora_studio.training.report.timing import Timing


def describe(session: Session, *, first_step: int, timing: Timing) -> TrainingPlan:
    """What will be trained, for people to read before it starts."""
    recipe, used = session.recipe, session.manifest.used
    captions, foreseen = session.loop.feed.captions, session.foreseen
    images_per_step = recipe.training.batch_size * recipe.training.gradient_accumulation
    return TrainingPlan(
        name=recipe.name,
        base=recipe.base.model,
        images_used=len(used),
        images_excluded=tuple((record.name, record.excluded) for record in session.manifest.excluded),
        captions=caption_examples(captions),
        captioned_by=dict(Counter(record.captioned_by for record in used)),
        captions_without_trigger=sum(
            any(captions.records[index].trigger not in text for text in captions.written(index))
            for index in one_of_each(captions)
        ),
        triggers=tuple(session.report.plan["triggers"]),
        preservation=recipe.objective.preservation,
        preserved_caption=preserved_example(captions),
        captions_cut=find_cuts(captions, foreseen, session.family),
        token_chunks=session.family.max_chunks,
        variation=variation_in_words(captions, foreseen, cached=session.loop.feed.texts is not None),
        caption_warnings=caption_warnings(captions),
        buckets=bucket_plan(used, recipe.data.all_resolutions),
        steps=recipe.training.steps,
        first_step=first_step,
        images_per_step=images_per_step,
        views_per_image=average_views(session.batches, recipe.training.steps),
        num_parameters=session.adapters.num_parameters,
        num_layers=len(session.adapters.layers),
        device=str(session.machine.device),
        precision=str(session.machine.dtype).removeprefix("torch."),
        learning_rate=recipe.training.learning_rate
        if session.adapters.layers
        else max(one.learning_rate for one in recipe.tokens),
        seconds_per_step=timing.step,
        seconds_of_validation=timing.validation * timing.validations,
        seconds_of_previews=timing.preview * timing.previews,
        folder=session.run.folder,
        held_out=tuple(record.name for record in session.manifest.of_role("validation")),
        validation_every=0 if session.validation is None else recipe.validation.every,
        processes=session.processes.count,
        batch_size=recipe.training.batch_size,
        regularization_images=_regularization_images(session),
        repeats=_repeats(used),
        masks=sum(bool(record.mask) for record in used),
        masked_preservation=recipe.objective.masked_preservation,
        backgrounds=dict(Counter(record.background for record in used if record.background)),
        base_notes=session.family.notes,
        adapter_notes=adapter_notes(recipe, session.adapters),
        warmup_note=_warmup_note(recipe.training),
        num_tokens=len(recipe.tokens),
        notes=tuple((record.name, record.note) for record in used if record.note),
        findings=session.report.findings,
    )


def _warmup_note(training: TrainingConfig) -> str:
    if not training.warms_up_to_the_end:
        return ""
    reached = min(1.0, training.steps / training.warmup)
    return (
        f"the warm-up takes {training.warmup} steps, so the rate gets to {reached:.0%} of this, in the last "
        "step; training.warmup_steps makes that shorter"
    )


def _regularization_images(session: Session) -> RegularizationSummary | None:
    records, feed = session.manifest.of_role("prior"), session.loop.feed
    if not records:
        return None
    drawn = sum(record.captioned_by == DRAWN for record in records)
    return RegularizationSummary(
        drawn=drawn,
        from_folders=len(records) - drawn,
        per_image=feed.class_rows.per_image,
        weights=tuple(sorted({record.weight for record in records})),
        prompt=feed.records[len(feed.captions.records)].caption,
    )


def _repeats(records: Sequence[Record]) -> tuple[tuple[str, int, int], ...]:
    """Folder, its images and the repeats of each; empty if every image is shown once an epoch."""
    if all(record.repeats == 1 for record in records):
        return ()
    folders = Counter((str(PurePosixPath(record.name).parent), record.repeats) for record in records)
    return tuple((folder, count, repeats) for (folder, repeats), count in folders.items())
