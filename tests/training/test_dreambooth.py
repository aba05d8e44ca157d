"""All that keeps the base at once: regularization images, preservation, its predictions outside of masks.

Against a reference written here: diffusers' pipelines for conditioning and the base, Pillow for the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from gradients import shift
from noise import grey_noise
from PIL import Image
from tiny import recipe_text
from torch import Tensor, nn

from lora_studio.data.batches import Batch, BatchPlan
from lora_studio.data.manifest import Record
from lora_studio.errors import RecipeError
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.report import Timing, describe

LAMBDA, OUTSIDE, DELTA = 0.5, 0.7, 0.3
OPTIONS = (
    *("data.caption_dropout=0", "data.class_words=thing", "objective.preservation=0.4"),
    *("data.regularization_images.images=class", f"data.regularization_images.weight={LAMBDA}"),
    *(f"objective.masked_preservation={OUTSIDE}", "data.repeats=2"),
)
SHAPES = ((64, 64), (72, 72), (96, 64), (64, 96))  # of one's own; regularization images are larger
MASKED = {0: 255, 2: 200}  # image -> the level of the white part of its mask


@dataclass
class Case:
    """A prepared run, and the base as diffusers loads it."""

    session: Session
    pipeline: DiffusionPipeline

    def batches(self, batch_size: int, steps: int = 10) -> list[Batch]:
        feed, images = self.session.loop.feed, self.session.manifest.used
        feed.plan = BatchPlan(images, batch_size=batch_size, gradient_accumulation=1, seed=1)
        return [batch for step in range(1, steps + 1) for batch in feed.of_step(step)]


def put_images(folder: Path, deviation: int, *, caption: str, masks: bool = False, larger: int = 1) -> None:
    folder.mkdir()
    for number, (width, height) in enumerate((larger * w, larger * h) for w, h in SHAPES):
        grey_noise((width, height), deviation + number).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{caption} {number}", "utf-8")
        if masks and number in MASKED:
            mask = Image.new("L", (width, height), 0)
            mask.paste(MASKED[number], (8, 0, 40, height - 12))
            mask.save(folder / f"{number}.mask.png")


@pytest.fixture(scope="module", params=["sd15", "sd2 v", "sdxl"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, base_of: Callable[[str], Path]
) -> Iterator[Case]:
    folder, base = tmp_path_factory.mktemp("dream"), base_of(request.param)
    put_images(folder / "images", 20, caption="a zwx style", masks=True)
    put_images(folder / "class", 60, caption="plain", larger=2)
    (folder / "tiny.toml").write_text(recipe_text(folder / "images", str(base)), "utf-8")
    session = prepare(load_recipe(folder / "tiny.toml", changes=OPTIONS), Run(folder / "run"), ignore_events)
    shift(session.adapters)  # so that the base is another
    pipeline = DiffusionPipeline.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    yield Case(session, pipeline)
    session.run.close()


def record_of(case: Case, caption: str) -> Record:
    """The image that a caption belongs to; each has a number of its own."""
    role = "prior" if caption.startswith("plain") else "instance"
    (found,) = [one for one in case.session.manifest.of_role(role) if one.caption[-1] == caption[-1]]
    return found


def is_regularization_image(batch: Batch) -> list[bool]:
    return [caption.startswith("plain") for caption in batch.captions]


def encoded(case: Case, captions: list[str]) -> tuple[Tensor, Tensor | None]:
    """Text and pooled embeddings by diffusers' own pipeline."""
    with torch.no_grad():
        found = case.pipeline.encode_prompt(
            captions, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return found[0], found[2] if len(found) == 4 else None


def time_ids(record: Record) -> list[float]:
    """SDXL's, arXiv 2307.01952, 2.2: original height, width; crop top, left; target height, width."""
    assert record.crop is not None
    left, top, right, bottom = record.crop
    return [float(value) for value in (record.height, record.width, top, left, bottom - top, right - left)]


def heard(unet: nn.Module, act: Callable[[], object]) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Text, pooled embeddings and time ids of every time that the UNet is asked."""
    found = []

    def listen(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, dict[str, Tensor]]) -> None:
        added = kwargs.get("added_cond_kwargs") or {}
        found.append((args[2], added.get("text_embeds"), added.get("time_ids")))

    handle = unet.register_forward_pre_hook(listen, with_kwargs=True)
    act()
    handle.remove()
    return found


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_row_and_the_class_half_are_conditioned_by_their_own_caption_and_geometry(
    case: Case, batch_size: int
) -> None:
    """Row 19: elsewhere the class half had no time ids of its own, or those of the others."""
    loop, seen, apart = case.session.loop, set(), batch_size == 1
    for batch in case.batches(batch_size, steps=40):
        of_class, asked = is_regularization_image(batch), sorted({*batch.preserved, *batch.masked})
        own = len(batch) - sum(of_class)
        assert of_class == [False] * own + [True] * own and own <= batch_size
        calls = heard(loop.family.parts["unet"], lambda batch=batch: loop.loss(batch, generator("noise")))
        rows = [asked, range(len(batch))] if asked else [range(len(batch))]
        assert len(calls) == len(rows)  # one pass of the base serves all that ask for it
        for (text, pooled, ids), wanted in zip(calls, rows, strict=True):
            captions = [batch.captions[row] for row in wanted]
            expected_text, expected_pooled = encoded(case, captions)
            torch.testing.assert_close(text, expected_text, atol=1e-5, rtol=1e-4)
            assert (pooled is None) == (expected_pooled is None) == (ids is None)
            if pooled is not None and ids is not None:
                torch.testing.assert_close(pooled, expected_pooled, atol=1e-5, rtol=1e-4)
                assert ids.tolist() == [time_ids(record_of(case, caption)) for caption in captions]
        seen.add((tuple(batch.latents.shape[2:]), own))
        apart |= asked == [1]  # not the first rows, whose geometry is another's
        if len({shape for shape, _ in seen}) == 3 and apart:
            return
    raise AssertionError(f"only {seen}")


def mask_of(record: Record, height: int, width: int) -> Tensor:
    """[H, W] in 0..1, made of the mask file with Pillow alone."""
    if not record.mask_path:
        return torch.ones(height, width)
    with Image.open(record.mask_path) as mask:
        shown = mask.convert("L").resize(record.resize, Image.Resampling.BOX).crop(record.crop)
        return torch.from_numpy(np.asarray(shown.resize((width, height), Image.Resampling.BOX)) / 255.0)


def reference(case: Case, batch: Batch, error: Callable[[Tensor], Tensor]) -> Tensor:
    """The loss of a batch; its live answer is the only thing taken from the code under test."""
    session, scheduler = case.session, DDPMScheduler.from_config(case.pipeline.scheduler.config)
    noise = torch.randn(batch.latents.shape, generator=generator("noise"))
    timestep = session.loop.objective.noise(batch.latents, generator("noise")).timestep
    noised = scheduler.add_noise(batch.latents, noise, timestep)
    is_v = scheduler.config.prediction_type == "v_prediction"
    truth = scheduler.get_velocity(batch.latents, noise, timestep) if is_v else noise
    alpha = scheduler.alphas_cumprod[timestep]
    snr = alpha / (1 - alpha)
    min_snr = snr.clamp(max=5) / (snr + 1 if is_v else snr)  # arXiv 2303.09556
    text, pooled = encoded(case, batch.captions)
    ids = torch.tensor([time_ids(record_of(case, caption)) for caption in batch.captions])
    added = None if pooled is None else {"text_embeds": pooled, "time_ids": ids}
    conditioning = {"text": text} | ({} if pooled is None else {"pooled": pooled})
    with torch.no_grad():
        base = case.pipeline.unet(noised, timestep, text, added_cond_kwargs=added).sample
        live = session.family.denoise(noised, timestep, conditioning, ids)
    losses: dict[bool, list[Tensor]] = {False: [], True: []}
    for row, of_class in enumerate(is_regularization_image(batch)):
        mask = mask_of(record_of(case, batch.captions[row]), *batch.latents.shape[2:])
        target = base[row] if "thing" in batch.captions[row] else truth[row]
        inside = (error(live[row] - target) * mask / mask.mean()).mean()
        outside = (error(live[row] - base[row]) * (1 - mask)).mean()
        losses[of_class].append(min_snr[row] * (inside + OUTSIDE * outside))
    own, beside = (torch.stack(losses[part]).mean() for part in (False, True))
    return own + LAMBDA * beside  # arXiv 2208.12242, eq. 2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_loss_is_the_one_written_by_hand(case: Case, batch_size: int) -> None:
    """Regularization images, preserved images and masks together, under min-SNR."""
    kinds = set()
    for batch in case.batches(batch_size):
        kinds |= {(row in batch.preserved, row in batch.masked) for row in range(len(batch) // 2)}
        found = case.session.loop.loss(batch, generator("noise")).double()
        torch.testing.assert_close(found, reference(case, batch, torch.square).double(), rtol=2e-4, atol=0)
        if len(kinds) == 4:  # each of both, neither, and both at once
            return
    raise AssertionError(f"only {kinds}")


def test_outside_of_a_mask_the_loss_is_of_the_kind_that_is_asked_for(case: Case) -> None:
    loop, squared = case.session.loop, case.session.loop.objective
    batch = next(batch for batch in case.batches(2) if batch.masked)
    loop.objective = replace(squared, loss="huber", loss_delta=DELTA)  # type: ignore[type-var]
    found = loop.loss(batch, generator("noise"))
    loop.objective = squared

    def huber(e: Tensor) -> Tensor:
        return torch.where(e.abs() <= DELTA, e**2, 2 * DELTA * e.abs() - DELTA**2)

    torch.testing.assert_close(found.double(), reference(case, batch, huber).double(), rtol=2e-4, atol=0)


def test_passes_of_fewer_rows_have_the_same_gradients(case: Case) -> None:
    loop, gradients = case.session.loop, []
    batch = next(batch for batch in case.batches(2) if len(batch) == 4 and batch.masked)
    for passes in (1, 3):
        loop.state.counters.passes = passes
        loop.forward_backward(batch, generator("noise"), None)
        parameters = case.session.adapters.named_parameters().values()
        gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        loop.state.optimizer.zero_grad()
    loop.state.counters.passes = 1
    assert (gradients[1] - gradients[0]).norm() < 1e-5 * gradients[0].norm()


def test_the_plan_says_what_is_kept(case: Case) -> None:
    lines = describe(case.session, first_step=1, timing=Timing(0.1, 1)).rows
    assert ("masks", "2 images learned only where the mask is white") in lines
    assert ("", "outside of it the base's own prediction is kept, with weight 0.7") in lines


def test_outside_of_no_mask_is_refused_in_one_sentence(tmp_path: Path, recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, changes=("objective.masked_preservation=0.5",))
    with pytest.raises(RecipeError, match=r"masked_preservation is 0\.5, but no image .* has a mask; put"):
        prepare(recipe, Run(tmp_path), ignore_events)
