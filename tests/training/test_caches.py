"""What a run encodes and what it finds in the caches, counted by the encoders' calls."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import image_folder, recipe_text

from lora_studio.families.unet import StableDiffusion15
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import Event, Note, ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.session import train

DEFAULT = "data.resolution=64"


class Counted:
    """Images and captions that went through the base's encoders."""

    def __init__(self) -> None:
        self.images = self.captions = 0

    def taken(self) -> tuple[int, int]:
        """Since the last time it was asked."""
        answer = (self.images, self.captions)
        self.images = self.captions = 0
        return answer


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counted:
    """A cache of the test's own, and what is encoded."""
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    counts, image, text = Counted(), StableDiffusion15.encode_image, StableDiffusion15.encode_text

    def encode_image(family: StableDiffusion15, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counts.images += len(pixels)
        return image(family, pixels)

    def encode_text(family: StableDiffusion15, captions: list[str]) -> dict[str, torch.Tensor]:
        encoded = text(family, captions)
        counts.captions += len(captions) * (encoded["text"].device.type != "meta")  # those of a trial are not
        return encoded

    monkeypatch.setattr(StableDiffusion15, "encode_image", encode_image)
    monkeypatch.setattr(StableDiffusion15, "encode_text", encode_text)
    return counts


@pytest.fixture
def start(tmp_path: Path, tiny_base: Path) -> Callable[..., Session]:
    """`start("data.resolution=96")`: a run over five images in the folder `images`, ready to train."""
    image_folder(tmp_path / "images")
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(tmp_path / "images", str(tiny_base)), "utf-8")

    def make(change: str = DEFAULT) -> Session:
        return prepare(load_recipe(path, changes=(change,)), Run(tmp_path / "run"), ignore_events)

    return make


def test_a_second_run_over_an_unchanged_folder_encodes_nothing(start, counted: Counted) -> None:  # type: ignore[no-untyped-def]
    first = start()
    assert counted.taken() == (5, 6)  # five captions, and the empty one
    second = start()
    assert counted.taken() == (0, 0)
    for one, other in zip(first.loop.feed.latents, second.loop.feed.latents, strict=True):
        assert torch.equal(one.mean, other.mean) and torch.equal(one.std, other.std)


def test_an_edited_image_is_encoded_again_and_nothing_else(start, counted: Counted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """USERS row 11: the name and the size of the file stay the same."""
    start()
    counted.taken()
    path = tmp_path / "images" / "00.png"
    with Image.open(path) as image:
        edited = image.convert("RGB")
    edited.putpixel((3, 3), (255, 0, 255))
    edited.save(path)
    start()
    assert counted.taken() == (1, 0)


def test_an_edited_caption_is_encoded_again_and_nothing_else(start, counted: Counted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """USERS row 11."""
    start()
    counted.taken()
    (tmp_path / "images" / "01.txt").write_text("another thing, zwx style", "utf-8")
    start()
    assert counted.taken() == (0, 1)


@pytest.mark.parametrize("change", ["data.resolution=96", "base.vae_dtype=bfloat16"])
def test_another_resolution_or_precision_encodes_all_images_again(
    start, counted: Counted, change: str
) -> None:  # type: ignore[no-untyped-def]
    """USERS row 11."""
    start()
    counted.taken()
    start(change)
    assert counted.taken() == (5, 0)
    start(change)
    start()
    assert counted.taken() == (0, 0)  # the first ones are still there


def test_another_vae_encodes_all_images_again(
    start: Callable[..., Session], counted: Counted, tiny_base: Path, tmp_path: Path
) -> None:
    from diffusers import AutoencoderKL

    start()
    counted.taken()
    shutil.copytree(tiny_base, tmp_path / "base")
    vae = AutoencoderKL.from_pretrained(tiny_base / "vae", dtype=torch.float32)
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] += 1e-3
    vae.save_pretrained(tmp_path / "base" / "vae")
    start(f"base.model={tmp_path / 'base'}")
    assert counted.taken() == (5, 0)


def test_a_renamed_image_keeps_its_latent_and_two_of_one_stem_have_their_own(
    start: Callable[..., Session], counted: Counted, tmp_path: Path
) -> None:
    """USERS row 12: caches are not named after files."""
    start()
    counted.taken()
    folder = tmp_path / "images"
    for old, new in (("00", "aaa.bbb"), ("03", "aaa.ccc")):
        (folder / f"{old}.png").rename(folder / f"{new}.png")
        (folder / f"{old}.txt").rename(folder / f"{new}.txt")
    session = start()
    assert counted.taken() == (0, 0)
    names = [record.name for record in session.manifest.used]
    one, other = (session.loop.feed.latents[names.index(f"aaa.{end}.png")] for end in ("bbb", "ccc"))
    assert one.mean.shape != other.mean.shape


def test_every_image_of_a_run_is_decoded_once_for_the_caches_and_the_doctor_together(
    start: Callable[..., Session], counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_studio.data.images import decode as images

    decoded = []
    plain = images._decode
    monkeypatch.setattr(images, "_decode", lambda *arguments: decoded.append(1) or plain(*arguments))
    start()
    assert (len(decoded), counted.images) == (5, 5)


def test_a_vae_that_overflows_in_bfloat16_is_asked_again_in_float32(
    tmp_path: Path, start: Callable[..., Session], counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """USERS row 4: the image is named, the others stay as they were encoded."""
    expected = start().loop.feed.latents
    sound = StableDiffusion15.encode_image

    def overflowing(family: StableDiffusion15, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = sound(family, pixels)
        wide = pixels.shape[3] > 1.4 * pixels.shape[2]
        return (mean * torch.inf, std) if torch.is_autocast_enabled("cpu") and wide else (mean, std)

    monkeypatch.setattr(StableDiffusion15, "encode_image", overflowing)
    heard: list[Event] = []
    recipe = load_recipe(tmp_path / "recipe.toml", changes=("base.vae_dtype=bfloat16",))
    latents = prepare(recipe, Run(tmp_path / "run"), heard.append).loop.feed.latents
    notes = [event.text for event in heard if isinstance(event, Note)]
    assert notes == ["the VAE gave NaN in bfloat16 for 01.jpg, 03.png: encoded again in float32"]
    for index, (latent, exact) in enumerate(zip(latents, expected, strict=True)):
        same = torch.equal(latent.mean, exact.mean)
        assert same == (index in (1, 3)), index
        # bfloat16 has 8 bits: through the VAE's layers the latents stay within some percent of their spread.
        assert (latent.mean - exact.mean).abs().mean() < 0.1 * exact.mean.std()


ON_DISK = "data.latent_memory_gb=0"


def test_latents_read_ahead_from_the_disk_train_to_the_same_bytes_and_resume_to_them(
    tmp_path: Path, recipe_file: Path, finished: Finished
) -> None:
    """USERS row 45: no worker process is started for it."""
    starts: list[object] = []
    process = multiprocessing.process.BaseProcess
    before, process.start = process.start, lambda self: starts.append(self)  # type: ignore[method-assign,assignment]
    try:
        recipe = load_recipe(recipe_file, changes=(ON_DISK, "training.gradient_accumulation=1"))
        result = train(recipe, tmp_path / "run")
        assert isinstance(result, Finished)
        written = result.lora_file.read_bytes()
        assert written == finished.lora_file.read_bytes()
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000004")
        os.remove(result.lora_file)
        again = train(recipe, tmp_path / "run", resume=True)
    finally:
        process.start = before  # type: ignore[method-assign]
    assert isinstance(again, Finished) and again.lora_file.read_bytes() == written
    assert starts == []


def test_batches_from_the_disk_are_the_same_in_any_order(tmp_path: Path, recipe_file: Path) -> None:
    changes = ("training.gradient_accumulation=2",)
    held = prepare(load_recipe(recipe_file, changes=changes), Run(tmp_path / "a"), ignore_events).loop.feed
    read = prepare(
        load_recipe(recipe_file, changes=(*changes, ON_DISK)), Run(tmp_path / "b"), ignore_events
    ).loop.feed
    assert read.latents.on_disk and not held.latents.on_disk
    for step in (1, 2, 3, 9, 2, 40, 41):
        for one, other in zip(held.of_step(step), read.of_step(step), strict=True):
            assert torch.equal(one.latents, other.latents) and one.captions == other.captions
            assert torch.equal(one.weight, other.weight) and torch.equal(one.geometry, other.geometry)
    assert torch.equal(held.largest().latents, read.largest().latents)
