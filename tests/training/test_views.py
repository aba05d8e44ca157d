"""Images at several areas, in several crops and mirrored, from the recipe to the batch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from noise import grey_noise
from PIL import Image
from tiny import recipe_text

from lora_studio.data.batches import Batch, each_view, entries
from lora_studio.data.cache.encode import pixels_of
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.report import Timing, describe
from lora_studio.training.session import train


def prepared(folder: Path, base: Path, *changes: str, images: Path | None = None) -> Session:
    """What is ready to train on the images in `folder / "images"`."""
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe_text(images or folder / "images", str(base)), "utf-8")
    return prepare(
        load_recipe(recipe, changes=("data.caption_dropout=0", *changes)), Run(folder / "run"), ignore_events
    )


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Two images of noise, four times as wide as high, one with a mask."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        grey_noise((400, 100), 60 + number).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"image {number}, zwx style")
    mask = Image.new("L", (400, 100), 0)
    mask.paste(255, (100, 0, 200, 100))
    mask.save(folder / "1.mask.png")
    return tmp_path


def batches(session: Session, steps: int) -> list[Batch]:
    return [batch for step in range(1, steps + 1) for batch in session.loop.feed.of_step(step)]


def plan_of(session: Session) -> list[str]:
    plan = describe(session, first_step=1, timing=Timing(0.1, 1))
    return [f"{title}: {text}".removeprefix(": ") for title, text in plan.rows]


ALL = ("data.flip=0.5", 'data.crop="random"', "data.crops=3", "data.extra_resolutions=[96]")


def test_every_shown_latent_comes_with_the_geometry_and_mask_of_its_own_view(
    wide: Path, tiny_base: Path
) -> None:
    """SDXL is told the crop's corner in the resized, mirrored image, and the size before resizing."""
    session = prepared(wide, tiny_base, *ALL, "training.batch_size=3")
    feed, views = session.loop.feed, each_view(entries(session.manifest.used))
    assert len(feed.latents) == len(views) == 2 * 2 * 3 * 2
    found: set[int] = set()
    for step in range(1, 151):
        (batch,) = feed.of_step(step)
        draw = generator(1, step, 0, "latents")
        for row, latent in enumerate(batch.latents):
            noise = torch.randn(latent.shape, generator=draw)
            (number,) = [
                number
                for number, view in enumerate(views)
                if (one := feed.latents[number]).mean.shape == latent.shape
                and torch.equal(one.mean + one.std * noise, latent)
            ]
            view = views[number]
            assert f"image {view.name[0]}" in batch.captions[row]
            corner = [view.crop[1], view.crop[0]]
            assert batch.geometry[row].tolist() == [100, 400, *corner, view.bucket.height, view.bucket.width]
            mask = feed.weights[number].expand(batch.weight.shape[-2:])
            assert torch.equal(batch.weight[row, 0], mask)
            found.add(number)
    assert len(found) == len(views)  # all of them come up


def test_the_corner_that_geometry_names_is_where_the_pixels_come_from(wide: Path, tiny_base: Path) -> None:
    """Mirror the file, resize it, cut at the corner: these are the pixels of the mirrored view."""
    session = prepared(wide, tiny_base, *ALL)
    for view in each_view(entries(session.manifest.used)):
        with Image.open(view.path) as opened:
            image = opened.convert("RGB")
        if view.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert view.crop is not None and view.resize is not None
        left, top = view.crop[:2]
        box = (left, top, left + view.crop[2] - view.crop[0], top + view.crop[3] - view.crop[1])
        expected = torch.tensor(list(image.resize(view.resize, Image.Resampling.LANCZOS).crop(box).tobytes()))
        pixels = ((pixels_of(view).permute(1, 2, 0) + 1) * 127.5).round().flatten()
        assert (pixels - expected).abs().max() <= 1


def test_which_view_is_shown_depends_on_seed_and_step_alone(wide: Path, tiny_base: Path) -> None:
    one, again = (prepared(wide, tiny_base, *ALL) for _ in range(2))
    other = prepared(wide, tiny_base, *ALL, "training.seed=2")
    forwards = [batch.geometry for batch in batches(one, 30)]
    backwards = [next(iter(again.loop.feed.of_step(step))).geometry for step in range(30, 0, -1)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    different = [batch.geometry for batch in batches(other, 30)]
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(forwards, different, strict=True))


def test_without_these_options_nothing_is_drawn_and_one_latent_is_made(wide: Path, tiny_base: Path) -> None:
    session = prepared(wide, tiny_base)
    corners = {tuple(row) for batch in batches(session, 20) for row in batch.geometry.tolist()}
    assert len(session.loop.feed.latents) == 2 and corners == {(100, 400, 0, 28, 40, 104)}


def test_plan_and_manifest_show_what_is_shown(wide: Path, tiny_base: Path) -> None:
    (wide / "images" / "1.txt").write_text("on the left, zwx style")
    Image.new("RGB", (50, 50), "red").save(wide / "images" / "2.png")
    (wide / "images" / "2.txt").write_text("red, zwx style")
    (wide / "images" / "metadata.jsonl").write_text('{"file_name": "0.png", "repeats": 2}')
    lines = plan_of(session := prepared(wide, tiny_base, *ALL))
    assert "buckets: 104x40: 2, 168x56: 2, 64x64: 1, 72x72: 1" in lines
    assert "repeats: 1 image, 2 times an epoch each" in lines
    assert "repeats: 2 images, 1 time an epoch each" in lines
    assert "areas: 2 at 96, 1 at 72, 3 at 64; an epoch shows an image at each of its own" in lines
    assert "too small for the area asked for, in smaller buckets: 1 (2.png)" in lines
    assert "enlarged, up to 1.44 times: 1 (2.png)" in lines
    assert "crops: up to 3 of an image, one by chance each time" in lines
    assert "mirrored: 50% of the showings" in lines
    assert "warning: captions that say left or right, which is wrong of a mirrored image: 1" in lines
    assert "latents: 28 of 3 images" in lines
    assert "with settings of their own: 1 (0.png)" in lines
    manifest = (session.run.folder / "manifest.jsonl").read_text("utf-8")
    views = [
        1 + len(line["more_views"]) for line in map(json.loads, manifest.splitlines()) if not line["excluded"]
    ]
    assert views == [12, 12, 4] and sum(views) == len(session.loop.feed.latents)


# What users ran into


@pytest.mark.parametrize("count", [1, 5])
def test_one_image_and_five_in_five_shapes_all_train_with_batches_of_four(
    tmp_path: Path, tiny_base: Path, count: int
) -> None:
    """Pain point 10, and the first two of the acceptance tests: nothing is dropped, and the run ends well."""
    shapes = [(64, 64), (96, 64), (64, 96), (112, 64), (80, 72)]
    (tmp_path / "images").mkdir()
    for number, size in enumerate(shapes[:count]):
        grey_noise(size, 50 + number).convert("RGB").save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text(f"image {number}, zwx style")
    session = prepared(tmp_path, tiny_base, "training.batch_size=4")
    assert len({record.bucket for record in session.manifest.used}) == count
    epoch = session.batches.micro_batches_per_epoch
    seen = Counter(caption for batch in batches(session, epoch) for caption in batch.captions)
    assert seen == {f"image {number}, zwx style": 1 for number in range(count)}
    recipe = load_recipe(
        tmp_path / "recipe.toml", changes=("training.batch_size=4", f"training.steps={count}")
    )
    result = train(recipe, tmp_path / "trained")
    assert isinstance(result, Finished) and result.report.ok
    assert result.summary["images_used"] == count and result.summary["views_per_image"] == 1


def test_the_plan_says_how_often_each_image_is_seen_and_warns_of_too_few_and_too_many(
    tmp_path: Path, tiny_base: Path, images: Path
) -> None:
    """Pain point 17: repeats, epochs, batch and accumulation are one number here, said before it starts."""
    found = {}
    for steps in (10, 100, 2000):
        changes = (f"training.steps={steps}", "training.gradient_accumulation=2", "data.repeats=3")
        session = prepared(tmp_path, tiny_base, *changes, images=images)
        lines = plan_of(session)
        shown = sum(len(m) for step in range(1, steps + 1) for m in session.batches.of_step(step))
        assert any(f"each image is seen about {shown / 5:.0f} times" in line for line in lines)
        assert any(line.startswith("time: about ") for line in lines)
        found[steps] = [line for line in lines if "30 to 300 times are common" in line]
    assert found[10] == ["that is little: 30 to 300 times are common; take more steps or fewer images"]
    assert found[100] == []
    assert found[2000] == ["that is a lot: 30 to 300 times are common; take fewer steps or more images"]
