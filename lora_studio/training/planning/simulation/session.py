"""A run without weights, images and caches, made by the parts that make a real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_studio.adapters.full import TensorPlace
from lora_studio.data.cache.store import Latent, Latents, TensorStore
from lora_studio.data.conditioning import CaptionSet, ConditioningCache
from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.data.feed import Feed
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.masks import LossMask
from lora_studio.data.regularization_images import RegularizationRows, regularization_rows
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading.published import published_base
from lora_studio.files import expanded
from lora_studio.processes import ALONE
from lora_studio.quantization import NONE, linear_paths
from lora_studio.recipe import Recipe
from lora_studio.runs import ReadOnlyRun, run_folder
from lora_studio.training.events import ignore_events
from lora_studio.training.machine import Machine
from lora_studio.training.planning.counting import Largest
from lora_studio.training.planning.simulation.images import Shapes
from lora_studio.training.planning.simulation.pretending import CPU
from lora_studio.training.planning.simulation.quantized import in_fewer_bits
from lora_studio.training.prepare import Session, make_loop, make_validation
from lora_studio.training.prepare.base_model import BuildContext, base_of, plan_adapters
from lora_studio.training.prepare.data import EncodedSet, batches_of
from lora_studio.training.prepare.dataset import captions_of


@dataclass(frozen=True)
class SimulatedMachine(Machine):
    """One whose quantised layers need no library, and whose autocast is CUDA's."""

    @property
    def widens_norms(self) -> bool:
        return self.autocast is not None

    def lay_out(self, denoiser: nn.Module, endings: tuple[str, ...]) -> None:  # type: ignore[override]
        plain = Machine(self.device, self.dtype, config=self.config)
        plain.lay_out(denoiser, endings)
        if self.quantize != NONE:
            in_fewer_bits(denoiser, linear_paths(denoiser, endings), self.quantize, self.dtype)


@dataclass
class SimulatedContext(BuildContext):
    def __post_init__(self) -> None:
        """Without caches, which are named after weights."""


def base_without_weights(recipe: Recipe) -> ModelFamily:
    """The recipe's base with shapes alone; a published one needs no file. Raises BaseModelError."""
    base = recipe.base.model_copy(update={"loras": (), "vae": ""})
    known = None if expanded(base.model).exists() else published_base(base.model)
    family = known or base_of(recipe.model_copy(update={"base": base}), weights=False)
    family.max_chunks = recipe.data.max_token_chunks
    return family


def simulated_session(
    recipe: Recipe, machine: Machine, family: ModelFamily, shapes: Shapes, exact: Mapping[TensorPlace, Tensor]
) -> tuple[Session, int]:
    """The session of a family of fakes that encodes as it trains; to be called while pretending.

    And the bytes of the largest stack of weights that are laid together, once, in the first pass on a device.
    """
    plan = plan_adapters(recipe, family)
    run = ReadOnlyRun(run_folder(recipe.name))
    context = SimulatedContext(recipe, run, machine, family, plan, ignore_events, ALONE)
    records = placeholder_images(recipe, shapes)
    measured = records[:1] if shapes.has_validation else []
    latents, texts = _latents(family, [*records, *measured]), _texts(recipe, family, shapes)
    with Largest() as stack:
        adapters = plan.inject(family, exact)
    machine.speed_up(family, adapters.parts)
    family.place(machine.device, family.denoiser, *(family.text_encoders if texts is None else ()))
    images = [one for one in records if one.role == "instance"]
    batches = batches_of(recipe, images)
    captions = captions_of(recipe, images)
    feed = Feed(
        records=records,
        captions=captions,
        latents=latents,
        texts=texts,
        plan=batches,
        seed=recipe.training.seed,
        device=machine.device,
        masks=[_mask(latents[0]) if shapes.has_masks else None] * len(records),
        masked_preservation=recipe.objective.masked_preservation,
        regularization_rows=_regularization_rows(recipe, records, first=len(images)),
    )
    loop = make_loop(context, adapters, feed)
    caption_set = CaptionSet({shapes.caption: set()}, complete=True)
    encoded = EncodedSet(records, measured, latents, texts, caption_set, batches)
    session = Session(
        recipe=recipe,
        run=run,
        machine=machine,
        family=family,
        base_fingerprint="",
        manifest=Manifest(tuple(records)),
        report=DoctorReport((), {}),
        adapters=adapters,
        batches=batches,
        loop=loop,
        caption_set=caption_set,
        validation=make_validation(context, loop, encoded),
        processes=ALONE,
        inputs={},
    )
    return session, stack.size


def placeholder_images(recipe: Recipe, shapes: Shapes) -> list[Record]:
    """As many as a batch has, all of the largest bucket; then a regularization image for each of them."""
    width, height = shapes.bucket.width, shapes.bucket.height
    image = Record(
        path="",
        name="",
        width=width,
        height=height,
        caption=shapes.caption,
        trigger=recipe.data.trigger,
        class_words=recipe.data.class_words,
        resolution=recipe.data.resolution,
        bucket=shapes.bucket,
        resize=(width, height),
        crop=(0, 0, width, height),
    )
    shown = [replace(image, name=f"image {number}") for number in range(shapes.images)]
    if not recipe.data.regularization_sources:
        return shown
    return shown + [replace(one, name=f"beside {one.name}", role="prior") for one in shown]


def _latents(family: ModelFamily, records: Sequence[Record]) -> Latents:
    """What the VAE says of an image, for each of the records."""
    bucket, keys = records[0].bucket, [record.name for record in records]
    assert bucket is not None
    (mean,), (std,) = family.encode_image(torch.zeros(1, 3, bucket.height, bucket.width))
    latents = Latents(TensorStore(Path()), keys)
    for key in keys:
        latents.add(key, Latent(mean, std))
    return latents


def _texts(recipe: Recipe, family: ModelFamily, shapes: Shapes) -> ConditioningCache | None:
    """None if captions are encoded while it trains."""
    if recipe.adapter.text_encoder or recipe.tokens:
        return None
    with torch.no_grad():
        known = {text: family.encode_text([text]) for text in dict.fromkeys(("", shapes.caption))}
        return ConditioningCache(known, lambda text: family.encode_text([text]), family.join, CPU)


def _mask(latent: Latent) -> LossMask:
    return LossMask(torch.ones(latent.mean.shape[-2:]), torch.ones(latent.mean.shape[-2:]))


def _regularization_rows(recipe: Recipe, records: Sequence[Record], *, first: int) -> RegularizationRows:
    per_image = recipe.data.regularization_images.per_image
    return regularization_rows(records, first=first, per_image=per_image, seed=recipe.training.seed)
