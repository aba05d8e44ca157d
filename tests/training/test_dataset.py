"""From [data] to batches: sources, roles, weights and loss masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from noise import grey_noise
from PIL import Image
from tiny import image_folder, recipe_text

from lora_studio.data.batches import Batch
from lora_studio.errors import DatasetError
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.finish.file_facts import training_facts
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.report import Timing, describe
from lora_studio.training.session import to_toml


@pytest.fixture
def session_of(tmp_path: Path, tiny_base: Path):  # type: ignore[no-untyped-def]
    """`session_of(data, "data.repeats=2")`: what is ready to train with `data` in place of `images = ...`."""

    def make(data: str, *changes: str) -> Session:
        text = recipe_text(tmp_path, str(tiny_base))
        text = text.replace(f'images = "{tmp_path}"', "").replace("[adapter]", f"{data}\n[adapter]")
        (tmp_path / "recipe.toml").write_text(text, "utf-8")
        return prepare(
            load_recipe(tmp_path / "recipe.toml", changes=changes), Run(tmp_path / "run"), ignore_events
        )

    return make


def plan_of(session: Session) -> list[str]:
    plan = describe(session, first_step=1, timing=Timing(0.1, 1))
    return [f"{title}: {text}".removeprefix(": ") for title, text in plan.rows]


def batches(session: Session, steps: int) -> list[Batch]:
    return [batch for step in range(1, steps + 1) for batch in session.loop.feed.of_step(step)]


SOURCES = """
[[data.sources]]
images = "style"
repeats = 3
weight = 0.5
[[data.sources]]
images = "subject"
trigger = "vkq robot"
[[data.sources]]
images = "faces"
role = "prior"
[[data.sources]]
images = "test"
role = "validation"
"""


@pytest.fixture
def four_folders(tmp_path: Path) -> None:
    names = {"style": "zwx style", "subject": "vkq robot", "faces": "a prior", "test": "held out"}
    for folder, words in names.items():
        image_folder(tmp_path / folder, count=3, trigger=words)
        for number, path in enumerate(sorted((tmp_path / folder).glob("*.*g"))):  # unlike those of the others
            Image.new("RGB", (64, 64), (len(folder) * 20, len(words) * 20, number * 99)).save(path)
        (tmp_path / folder / "02.webp").unlink()
        (tmp_path / folder / "02.txt").unlink()


@pytest.mark.usefixtures("four_folders")
def test_only_instance_images_are_trained_on_with_their_repeats_and_weight(session_of) -> None:  # type: ignore[no-untyped-def]
    session = session_of(SOURCES, "data.caption_dropout=0")
    assert [record.name for record in session.manifest.used] == [
        *("style/00.png", "style/01.jpg", "subject/00.png", "subject/01.jpg")
    ]
    assert session.batches.views_per_image(4) == [3, 3, 1, 1]
    shown = batches(session, 8)
    rows = [
        (caption, batch.weight[row].item()) for batch in shown for row, caption in enumerate(batch.captions)
    ]
    # Half of each batch are regularization images: the means of both halves are added, so each counts twice.
    assert {weight for caption, weight in rows if "zwx" in caption} == {2 * 0.5}
    assert {weight for caption, weight in rows if "vkq" in caption} == {2 * 1.0}
    assert not any("held" in caption for caption, _ in rows)
    priors = [sum("prior" in caption for caption in batch.captions) for batch in shown]
    assert priors == [len(batch.captions) // 2 for batch in shown]


@pytest.mark.usefixtures("four_folders")
def test_the_plan_says_what_is_not_trained_on_and_what_is_repeated(session_of) -> None:  # type: ignore[no-untyped-def]
    session = session_of(SOURCES)
    lines = plan_of(session)
    assert "images: 4 used, 0 excluded" in lines
    assert any(line.startswith("regularization images: 2 from folders") for line in lines)
    measured = "their loss is measured before the first step and every 100"
    assert f"validation: 2 images, not trained on; {measured}: test/00.png, test/01.jpg" in lines
    assert "repeats: 2 images in style, 3 times an epoch each" in lines
    assert not any(line.startswith("warning") for line in lines)  # every caption holds its own trigger
    assert training_facts(session).trigger == "zwx style, vkq robot"
    assert (session.run.folder / "manifest.jsonl").read_text("utf-8").count('"role": "validation"') == 2


@pytest.mark.usefixtures("four_folders")
def test_the_recipe_of_a_run_with_sources_is_written_so_that_it_can_go_on(session_of) -> None:  # type: ignore[no-untyped-def]
    session = session_of(SOURCES)
    (session.run.folder / "recipe.toml").write_text(to_toml(session.recipe), "utf-8")
    assert load_recipe(session.run.folder / "recipe.toml") == session.recipe


@pytest.mark.usefixtures("four_folders")
def test_preservation_leaves_out_each_sources_own_trigger(session_of) -> None:  # type: ignore[no-untyped-def]
    session = session_of(SOURCES + 'class_words = "thing"\n[objective]\npreservation = 0.5\n')
    captions = session.loop.feed.captions
    plain = [captions.plain(index) for index in range(4)]
    assert not any("zwx" in one or "vkq" in one for one in plain)
    assert all(plain)


def masked_folder(folder: Path) -> None:
    """Two images of one size, of which the first has its left half masked out."""
    folder.mkdir()
    for number in range(2):
        grey_noise((64, 64), 60 + number).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"image {number}, zwx style")
    mask = Image.new("L", (64, 64), 255)
    mask.paste(0, (0, 0, 32, 64))
    mask.save(folder / "0.mask.png")


def test_a_masked_image_is_learned_where_its_mask_is_white_and_others_as_ever(tmp_path, session_of) -> None:  # type: ignore[no-untyped-def]
    masked_folder(tmp_path / "images")
    session = session_of('images = "images"', "data.caption_dropout=0")
    batch = next(b for b in batches(session, 9) if len(b.captions) == 2)
    loop, (row,) = session.loop, [i for i, caption in enumerate(batch.captions) if "image 0" in caption]
    assert batch.weight.shape == (2, 1, *batch.latents.shape[2:])
    noised = loop.objective.noise(batch.latents, generator("noise"))
    answer = session.family.denoise(noised.latents, noised.timestep, batch.conditioning, batch.geometry)
    error = (answer - noised.target).square()
    half = error.shape[-1] // 2
    rows = torch.stack([error[i, :, :, half:].mean() if i == row else error[i].mean() for i in (0, 1)])
    expected = (rows * noised.weight).mean()
    torch.testing.assert_close(loop.loss(batch, generator("noise")), expected)
    assert "masks: 1 image learned only where the mask is white" in plan_of(session)


def test_without_masks_the_weights_are_ones_that_broadcast(recipe_file: Path, tmp_path: Path) -> None:
    session = prepare(load_recipe(recipe_file), Run(tmp_path), ignore_events)
    for batch in batches(session, 3):
        assert torch.equal(batch.weight, torch.ones(len(batch.captions), 1, 1, 1))


def test_transparency_as_mask_reaches_the_loss_and_as_background_the_latent(tmp_path, session_of) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "images").mkdir()
    image = Image.new("RGBA", (64, 64), (200, 30, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 64, 32))
    image.save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.txt").write_text("a, zwx style")
    data = 'images = "images"\nbackground = "grey"\n'
    laid, masked = session_of(data), session_of(data + 'transparency = "mask"\n')
    assert laid.loop.feed.weights[0].shape == (1, 1)
    upper, lower = masked.loop.feed.weights[0].chunk(2)
    assert (upper == 0).all() and (lower == 2).all()
    assert torch.equal(laid.loop.feed.latents[0].mean, masked.loop.feed.latents[0].mean)
    white = session_of('images = "images"\n')
    assert not torch.equal(laid.loop.feed.latents[0].mean, white.loop.feed.latents[0].mean)
    assert "transparency: 1 image with clear parts, laid on grey" in plan_of(laid)


def test_a_moving_image_is_noted_in_the_plan(tmp_path, session_of) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "10_zwx style").mkdir()
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "10_zwx style" / "a.gif", save_all=True, append_images=frames[1:])
    lines = plan_of(session_of('images = "."'))
    assert any("note: 10_zwx style/a.gif: moving" in line for line in lines)
    assert "repeats: 1 image in 10_zwx style, 10 times an epoch each" in lines
    assert "captions: 1 from folder name" in lines


def test_a_mask_that_does_not_fit_stops_the_run_in_one_sentence(tmp_path, session_of) -> None:  # type: ignore[no-untyped-def]
    masked_folder(tmp_path / "images")
    Image.new("L", (10, 50), 255).save(tmp_path / "images" / "1.mask.png")
    with pytest.raises(DatasetError, match=r"1\.mask\.png \(10x50 has not the shape of 1\.png, 64x64\)"):
        session_of('images = "images"')
