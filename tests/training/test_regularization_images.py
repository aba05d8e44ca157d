"""Prior preservation: regularization images beside the images of each batch, only there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from noise import grey_noise
from PIL import Image
from tiny import image_folder, recipe_text

from lora_studio.data.batches import Batch
from lora_studio.errors import DatasetError, RecipeError, StudioError
from lora_studio.evaluate.previews import render
from lora_studio.families.loading import load_base
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.training import SamplesConfig
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.events import Event, Progress, ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.prepare.regularization_images import draw_ahead
from lora_studio.training.report import Timing, describe
from lora_studio.training.session import to_toml, train

DRAWN = (
    *(
        "data.regularization_images.count=6",
        "data.regularization_images.steps=1",
        "data.regularization_images.guidance=2",
    ),
    *("data.class_words=thing", "data.caption_dropout=0"),
)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds nothing yet; the other tests share one, so that the base draws once."""
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def recipe_path(tmp_path: Path, tiny_base: Path) -> Path:
    """Five images in five shapes, batches of two."""
    image_folder(tmp_path / "images")
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(tmp_path / "images", str(tiny_base)), "utf-8")
    return path


@pytest.fixture
def start(recipe_path: Path, tmp_path: Path) -> Callable[..., Session]:
    def make(*changes: str, listener: Callable[[Event], None] = ignore_events) -> Session:
        return prepare(load_recipe(recipe_path, changes=changes), Run(tmp_path / "run"), listener)

    return make


def batches(session: Session, steps: int) -> list[Batch]:
    return [batch for step in range(1, steps + 1) for batch in session.loop.feed.of_step(step)]


def own_rows(batch: Batch) -> int:
    return sum("zwx style" in caption for caption in batch.captions)


def lines_of(session: Session) -> list[str]:
    plan = describe(session, first_step=1, timing=Timing(0.1, 1))
    return [f"{title}: {text}".removeprefix(": ") for title, text in plan.rows]


def test_every_batch_holds_regularization_images_of_its_own_shape_without_the_trigger(start) -> None:  # type: ignore[no-untyped-def]
    session = start(*DRAWN)
    shapes = set()
    for batch in batches(session, 20):
        own, rows = own_rows(batch), len(batch.captions)
        assert rows == 2 * own == len(batch.latents) == len(batch.geometry) == len(batch.weight)
        assert all("zwx" in caption for caption in batch.captions[:own])
        assert all("thing" in caption and "zwx" not in caption for caption in batch.captions[own:])
        height, width = batch.latents.shape[2:]
        assert (batch.geometry[:, 4:] == torch.tensor([height * 4.0, width * 4.0])).all()
        shapes.add((height, width))
    assert len(shapes) > 3


def test_steps_and_views_are_what_they_were_without(start) -> None:  # type: ignore[no-untyped-def]
    """Row 18: other trainers double the steps, or train on regularization images as plain data."""
    without, with_them = start(), start(*DRAWN)
    assert with_them.batches.micro_batches_per_epoch == without.batches.micro_batches_per_epoch
    assert with_them.batches.views_per_image(40) == without.batches.views_per_image(40)
    assert [r.name for r in with_them.manifest.used] == [r.name for r in without.manifest.used]
    plain = start("data.caption_dropout=0")
    for one, other in zip(batches(plain, 20), batches(with_them, 20), strict=True):
        own = len(one.captions)
        assert other.captions[:own] == one.captions and torch.equal(other.latents[:own], one.latents)


@pytest.mark.parametrize(
    ("per_image", "weight", "batch_size"), [(1, 1, 1), (1, 0.5, 2), (0.5, 2, 2), (2, 1, 2), (3, 0.25, 1)]
)
def test_the_loss_is_the_images_plus_lambda_times_the_regularization_images(
    start: Callable[..., Session], per_image: float, weight: float, batch_size: int
) -> None:
    """Row 19: with every batch size and shape. The formula: arXiv 2208.12242, eq. 2."""
    session = start(
        *DRAWN,
        f"data.regularization_images.per_image={per_image}",
        f"data.regularization_images.weight={weight}",
        f"training.batch_size={batch_size}",
    )
    loop = session.loop
    for batch in batches(session, 6):
        own = own_rows(batch)
        assert len(batch.captions) - own == max(1, int(per_image * own + 0.5))
        noised = loop.objective.noise(batch.latents, generator("noise"))
        answer = session.family.denoise(
            noised.latents, noised.timestep, batch.conditioning or {}, batch.geometry
        )
        rows = (answer - noised.target).square().mean(dim=(1, 2, 3)) * noised.weight
        expected = rows[:own].mean() + weight * rows[own:].mean()
        torch.testing.assert_close(loop.loss(batch, generator("noise")), expected)


def test_without_regularization_images_batches_are_as_ever(start) -> None:  # type: ignore[no-untyped-def]
    for batch in batches(start(), 5):
        assert (
            torch.equal(batch.weight, torch.ones(len(batch.captions), 1, 1, 1)) and len(batch.captions) <= 2
        )


def test_the_base_draws_them_once_and_plan_and_manifest_have_them(
    start, own_cache: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    heard: list[Event] = []
    session = start(*DRAWN, listener=heard.append)
    drawn = [e.done for e in heard if isinstance(e, Progress) and e.what == "regularization images"]
    assert drawn == list(range(1, 7))
    heard.clear()
    again = start(*DRAWN, listener=heard.append)
    told = {e.what for e in heard if isinstance(e, Progress)}
    assert told == {"looking at images"}  # the doctor does; neither drawn nor encoded again
    assert torch.equal(batches(again, 1)[0].latents, batches(session, 1)[0].latents)
    lines = lines_of(session)
    first = session.manifest.of_role("prior")[0].caption
    assert f'regularization images: 6 drawn by the base, e.g. "{first}"' in lines
    assert "1 in a batch besides each of its images, with weight 1" in lines
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "manifest.jsonl").read_text("utf-8").splitlines()
    ]
    assert sum(row["role"] == "prior" and row["captioned_by"] == "class prompt" for row in rows) == 6
    assert len(list((own_cache / "class_images").glob("*.png"))) == 6


def test_a_drawn_image_is_what_the_untouched_base_answers(start, tiny_base: Path) -> None:  # type: ignore[no-untyped-def]
    session = start(*DRAWN)
    record = session.manifest.of_role("prior")[0]
    with Image.open(record.path) as image:
        shown = torch.tensor(list(image.convert("RGB").tobytes())).float()
    pipeline = load_base(str(tiny_base)).pipeline()
    noise = generator(0, "class image", record.caption, record.bucket.name, 0)
    sizes = {"width": record.width, "height": record.height}
    with torch.inference_mode():
        answer = pipeline(
            record.caption,
            generator=noise,
            num_inference_steps=1,
            guidance_scale=2,
            output_type="np",
            **sizes,
        ).images[0]
    # Drawn alone instead of in a batch of four: the last bits differ, and seldom a pixel by one.
    assert (torch.from_numpy(answer).flatten() * 255 - shown).abs().max() < 1.01


FOLDER = ("data.caption_dropout=0", "data.class_words=thing")


def class_folder(folder: Path, *, captions: str = "") -> None:
    """Three regularization images, not in the shapes of the others."""
    folder.mkdir()
    for number in range(3):
        grey_noise((200 + number, 90), 50 + number).convert("RGB").save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(captions, "utf-8")


def test_regularization_images_from_a_plain_folder(start, recipe_path: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Row 18: the path is the folder of images itself, and it is not ignored."""
    class_folder(tmp_path / "class")
    prompt = "data.regularization_images.prompt=some thing"
    session = start(
        *FOLDER, "data.regularization_images.images=class", prompt, "data.regularization_images.weight=0.5"
    )
    assert len(session.manifest.used) == 5 and len(session.manifest.of_role("prior")) == 3
    for batch in batches(session, 10):
        own = own_rows(batch)
        assert batch.captions[own:] == ["some thing"] * own
        assert (
            batch.weight.flatten().tolist() == [2.0] * own + [1.0] * own
        )  # (n + m) / n, and half of (n + m) / m
    assert 'regularization images: 3 from folders, e.g. "some thing"' in lines_of(session)
    written = to_toml(session.recipe)
    (tmp_path / "again.toml").write_text(written, "utf-8")
    assert load_recipe(tmp_path / "again.toml") == session.recipe


def test_the_instance_prompt_is_not_theirs(start, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    class_folder(tmp_path / "class")
    session = start(
        *FOLDER, "data.regularization_images.images=class", 'data.instance_prompt="a photo of a zwx style"'
    )
    assert {record.caption for record in session.manifest.of_role("prior")} == {"a photo of a thing"}


def test_a_caption_with_the_trigger_is_refused_before_anything_is_drawn(
    start, own_cache: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    class_folder(tmp_path / "class", captions="a ball, zwx style")
    with pytest.raises(
        DatasetError, match=r"captions of regularization images hold the trigger: class/0\.png"
    ):
        start("data.regularization_images.images=class")
    with pytest.raises(DatasetError, match="hold the trigger: drawn from 'a zwx style'"):
        start(*DRAWN, 'data.regularization_images.prompt="a zwx style"')
    assert not (own_cache / "class_images").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("data.regularization_images.weight=0.5",), "has neither count nor images"),
        (("data.regularization_images.per_image=2",), "has neither count nor images"),
        (
            ("data.regularization_images.count=5", "data.regularization_images.images=x"),
            "has both count and images",
        ),
        (
            (
                "data.regularization_images.images=x",
                "data.regularization_images.steps=30",
                "data.regularization_images.seed=2",
            ),
            "has images, which are not drawn, so steps = 30, seed = 2 would change nothing; leave that out",
        ),
        (
            ("data.regularization_images.images=x", "data.regularization_images.guidance=3"),
            "so guidance = 3.0 would change",
        ),
        (("data.regularization_images.count=-1",), "data.regularization_images.count is -1"),
        (("data.regularization_images.cuont=1",), "did you mean 'count'?"),
    ],
)
def test_regularization_images_that_would_be_ignored_are_refused(
    recipe_path: Path, changes: tuple[str, ...], words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_path, changes=changes)
    assert words in str(caught.value)


def test_class_rows_with_preservation_and_a_trained_text_encoder(start) -> None:  # type: ignore[no-untyped-def]
    session = start(*DRAWN, "objective.preservation=0.5", "adapter.text_encoder=true")
    preserved = 0
    for batch in batches(session, 20):
        own = len(batch.captions) // 2
        assert batch.conditioning is None and all(row < own for row in batch.preserved)
        preserved += len(batch.preserved)
        assert session.loop.loss(batch, generator("noise")).isfinite()
    assert preserved


def test_a_run_with_regularization_images_goes_to_its_end_and_repeats(
    recipe_path: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(recipe_path, changes=DRAWN)
    first, second = (train(recipe, tmp_path / name) for name in ("first", "second"))
    assert isinstance(first, Finished) and isinstance(second, Finished)
    assert first.lora_file.read_bytes() == second.lora_file.read_bytes()


def test_they_can_be_drawn_ahead_of_training(start, recipe_path: Path, own_cache: Path) -> None:  # type: ignore[no-untyped-def]
    recipe = load_recipe(recipe_path, changes=DRAWN)
    first, again = draw_ahead(recipe, ignore_events), draw_ahead(recipe, ignore_events)
    assert (first.drawn, again.drawn) == (6, 0) and first.records == again.records
    heard: list[Event] = []
    assert start(*DRAWN, listener=heard.append).manifest.of_role("prior") == tuple(first.records)
    assert not any(isinstance(event, Progress) and event.what == "regularization images" for event in heard)
    with pytest.raises(StudioError, match=r"data\.regularization_images\.count is 0"):
        draw_ahead(load_recipe(recipe_path), ignore_events)


def test_a_base_in_bfloat16_draws_although_its_vae_stays_in_float32(start, tiny_base: Path) -> None:  # type: ignore[no-untyped-def]
    session = start(*DRAWN, "data.regularization_images.count=1", "base.dtype=bfloat16")
    assert len(session.manifest.of_role("prior")) == 1
    samples = SamplesConfig(prompts=("a ball",), seed=1, steps=1, guidance=1.0)
    (shown,) = render(session.family, samples, side=64)
    (exact,) = render(load_base(str(tiny_base)), samples, side=64)
    pixels = [torch.tensor(list(one.tobytes())).float() for one in (shown, exact)]
    assert (
        not torch.equal(*pixels) and (pixels[0] - pixels[1]).abs().mean() < 8
    )  # of 255: bfloat16 has eight bits
