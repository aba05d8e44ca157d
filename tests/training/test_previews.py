"""Previews take the memory of one image, come after the save, and end no run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from ready import prepared
from tiny import recipe_text
from torch import Tensor

from lora_studio.data.manifest import Bucket
from lora_studio.data.regularization_images import ImageRequest
from lora_studio.errors import OutOfMemory
from lora_studio.evaluate import previews
from lora_studio.evaluate.previews import render
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.families.unet import StableDiffusion
from lora_studio.recipe import Recipe
from lora_studio.recipe.data import RegularizationImagesConfig
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.training import SamplesConfig
from lora_studio.runs import Run
from lora_studio.training.events import Event, Note, ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.loop.watch import PreviewWatch, ValidationWatch
from lora_studio.training.planning.memory import peak_bytes
from lora_studio.training.prepare.regularization_images import drawer
from lora_studio.training.session import train

SAMPLES = SamplesConfig(
    prompts=("a red ball", "a blue cat", "a fish", "a house"), seed=5, steps=2, guidance=3.0
)
CPU = torch.device("cpu")


@pytest.fixture
def recipe(tmp_path: Path, images: Path, tiny_base: Path) -> Recipe:
    path = tmp_path / "tiny.toml"
    text = recipe_text(images, str(tiny_base))
    path.write_text(text + '[samples]\nprompts = ["a red ball"]\nsteps = 1\nevery = 2\n', "utf-8")
    return load_recipe(path)


def first(config: SamplesConfig, count: int) -> SamplesConfig:
    return config.model_copy(update={"prompts": config.prompts[:count]})


def test_four_prompts_take_the_memory_of_one_and_the_same_images(tiny_base: Path) -> None:
    family = load_base(str(tiny_base))
    one, four = (first(SAMPLES, count) for count in (1, 4))
    peaks = [peak_bytes(lambda c=c: render(family, c, side=96), CPU) for c in (one, four)]
    assert peaks[1] < 1.1 * peaks[0]
    alone, together = render(family, one, side=96), render(family, four, side=96)
    assert together[0].tobytes() == alone[0].tobytes()


def test_tiny_images_are_drawn_together_and_are_those_drawn_alone(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, passes = load_base(str(tiny_base)), list[int]()
    family.parts["unet"].register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    for guidance in (3.0, 1.0):  # without guidance there is no negative prompt
        config = SAMPLES.model_copy(update={"guidance": guidance})
        passes.clear()
        together = render(family, config, side=64)
        assert passes == [8 if guidance > 1 else 4] * SAMPLES.steps
        with monkeypatch.context() as patched:
            patched.setattr(previews, "MOST_TOGETHER", 0)
            alone = render(family, config, side=64)
        for one, other in zip(together, alone, strict=True):
            assert max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True)) <= 1  # of 255


def test_frozen_text_encoders_are_gone_before_the_denoiser_begins(tiny_base: Path) -> None:
    family = load_base(str(tiny_base))
    seen: list[tuple[str, ...] | None] = []

    def look() -> None:
        seen.append(family._on_device)

    family.place(CPU, "unet")
    render(family, SAMPLES, side=32, after_step=look)
    family.place(CPU, "unet", "text_encoder")  # as when it is trained
    render(family, first(SAMPLES, 1), side=32, after_step=look)
    assert seen == [("unet",)] * 2 + [("unet", "text_encoder")] * 2  # of one pass each
    assert family._on_device == ("unet", "text_encoder")


def test_large_images_are_decoded_in_tiles_that_look_the_same(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, decoded = load_base(str(tiny_base)), list[int]()
    family.parts["vae"].decoder.register_forward_pre_hook(lambda _, given: decoded.append(given[0].shape[-1]))
    whole = render(family, first(SAMPLES, 1), side=192)[0]
    monkeypatch.setattr(previews, "MOST_UNTILED", 96**2)
    tiled = render(family, first(SAMPLES, 1), side=192)[0]
    assert decoded[0] == 192 // family.pixels_per_latent
    assert len(decoded) > 4 and max(decoded[1:]) == 96 // family.pixels_per_latent
    pixels = [torch.tensor(list(image.tobytes())).float() for image in (whole, tiled)]
    assert tiled.size == whole.size and 0 < (pixels[0] - pixels[1]).abs().mean() < 4  # of 255


@pytest.mark.parametrize(("name", "rescale"), [("sdxl v zero-snr", 0.7), ("sdxl", 0.0), ("sd15", 0.0)])
def test_guidance_is_rescaled_at_zero_terminal_snr_alone(
    base_of: Callable[[str], Path], name: str, rescale: float
) -> None:
    """As diffusers' own pipeline draws it. 0.7: arXiv 2305.08891, sec. 3.4."""
    family = load_base(str(base_of(name)))
    assert family.guidance_rescale == rescale
    if name == "sd15":
        return
    drawn = render(family, first(SAMPLES, 1), side=64)[0]
    pipeline = StableDiffusionXLPipeline.from_pretrained(base_of(name), add_watermarker=False)
    pipeline.scheduler = family.pipeline().scheduler

    def of_diffusers(rescaled_by: float) -> bytes:
        return (
            pipeline(
                "a red ball",
                negative_prompt="",
                num_inference_steps=2,
                guidance_scale=3.0,
                guidance_rescale=rescaled_by,
                height=64,
                width=64,
                generator=previews.generator(5, "preview", 0),
            )
            .images[0]
            .tobytes()
        )

    assert drawn.tobytes() == of_diffusers(rescale) != of_diffusers(0.7 - rescale)


class FullDevice:
    """No room for any image from the draw with a number on; notes which checkpoints there were then."""

    def __init__(self, patch: pytest.MonkeyPatch, run: Path, *, from_draw: int) -> None:
        self.draws, self.checkpoints = 0, list[list[str]]()
        make = StableDiffusion.encode_prompt

        def encode(family: StableDiffusion, *given: object, **named: object) -> dict[str, Tensor]:
            self.draws += 1
            if self.draws >= from_draw:
                self.checkpoints.append([path.name for path in Run(run).checkpoints()])
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")
            return make(family, *given, **named)  # type: ignore[arg-type]

        patch.setattr(StableDiffusion, "encode_prompt", encode)


def warnings_of(heard: list[Event]) -> list[str]:
    return [event.text for event in heard if isinstance(event, Note) and "no previews" in event.text]


def test_previews_without_memory_are_a_note_and_the_step_was_saved_before(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    device = FullDevice(monkeypatch, tmp_path / "run", from_draw=3)  # after the trial and the base's
    result = train(recipe, tmp_path / "run", on_event=heard.append)
    assert isinstance(result, Finished) and result.report.ok
    assert device.checkpoints == [["step_000002"], ["step_000002", "step_000004"]]
    (told, _) = warnings_of(heard)
    assert "samples.prompts = []" in told and "data.resolution" in told
    assert "checkpointing" not in told and "rank" not in told  # which previews do not have


def test_a_base_whose_previews_do_not_fit_is_trained_without(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    device = FullDevice(monkeypatch, tmp_path / "run", from_draw=1)
    result = train(recipe, tmp_path / "run", on_event=heard.append)
    assert isinstance(result, Finished) and result.report.ok
    assert device.draws == 2 and len(warnings_of(heard)) == 1  # the trial, the base's, and never again
    assert not (tmp_path / "run" / "previews").exists()


def test_a_sheet_that_a_stop_left_out_is_drawn_by_the_resume(recipe: Recipe, tmp_path: Path) -> None:
    session = prepared(recipe, tmp_path / "run")
    run, state = session.run, session.loop.state

    def begin(step: int) -> None:
        PreviewWatch(session.family, state, run, recipe.samples, 64, 4, ignore_events).begin(step)

    begin(0)
    sheet = run.folder / "previews" / "step_000002.png"
    assert not sheet.exists()
    begin(2)
    assert sheet.exists() and not sheet.with_stem("step_000003").exists()
    sheet.write_bytes(b"as it was")
    begin(3)
    begin(2)
    assert sheet.read_bytes() == b"as it was" and not sheet.with_stem("step_000003").exists()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # of the pixels, which Pillow shows all the same
    path.write_bytes(content)


def of_other_sides(path: Path) -> None:
    Image.new("RGB", (640, 64)).save(path)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut_short, one_bit, of_other_sides, emptied])
def test_a_damaged_preview_of_the_base_is_drawn_again_and_that_is_said(
    recipe: Recipe, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    session, heard = prepared(recipe, tmp_path / "run"), list[Event]()
    run, state = session.run, session.loop.state
    watch = PreviewWatch(session.family, state, run, recipe.samples, 64, 4, heard.append)
    watch.begin(0)
    path = run.folder / "previews" / "base_00.png"
    whole = path.read_bytes()
    harm(path)
    watch.begin(2)
    assert path.read_bytes() == whole
    told = "previews/base_00.png of"
    assert any(isinstance(one, Note) and one.text.startswith(told) for one in heard)


def test_validation_is_measured_in_fewer_rows_and_never_left_out(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(folder: str, rows: int) -> list[dict[str, object]]:
        plain = StableDiffusion.denoise

        def denoise(family: StableDiffusion, latents: Tensor, *others: Tensor) -> Tensor:
            if len(latents) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return plain(family, latents, *others)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(StableDiffusion, "denoise", denoise)
            session = prepared(held_out, tmp_path / folder)
            assert session.validation is not None
            state, run = session.loop.state, session.run
            watch = ValidationWatch(session.validation, state, run, every=2, steps=4, listener=ignore_events)
            watch.begin()
            assert session.validation.rows_at_once == rows
            return run.lines("validation.jsonl")

    training = recipe.training.model_copy(update={"batch_size": 4})
    validation = recipe.validation.model_copy(update={"count": 1})
    held_out = recipe.model_copy(update={"training": training, "validation": validation})
    roomy, narrow = measured("roomy", 4), measured("narrow", 1)
    assert narrow[0]["loss"] == pytest.approx(roomy[0]["loss"], rel=1e-5)
    with pytest.raises(OutOfMemory, match="validation images"):
        measured("none", 0)


def test_regularization_images_that_do_not_fit_together_are_drawn_in_halves(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family: ModelFamily = load_base(str(tiny_base))
    requests = [ImageRequest("a ball", Bucket(64, 64), number) for number in range(4)]
    config = RegularizationImagesConfig(count=4, steps=1)
    expected = drawer(family, config)(requests)
    plain, tried, most = family.parts["unet"].forward, list[int](), 2

    def forward(latents: Tensor, *given: object, **named: object) -> object:
        tried.append(len(latents) // 2)  # guidance takes two of each
        if len(latents) > 2 * most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(latents, *given, **named)

    monkeypatch.setattr(family.parts["unet"], "forward", forward)
    draw = drawer(family, config)
    found = [draw(requests), draw(requests)]
    assert tried == [4, 2, 2, 2, 2]  # what was learned is not tried again
    far = [
        (torch.tensor(list(a.tobytes())).int() - torch.tensor(list(b.tobytes())).int()).abs().max()
        for images in found
        for a, b in zip(images, expected, strict=True)
    ]
    assert max(far) <= 1
    most = 0
    with pytest.raises(OutOfMemory, match="one regularization image on cpu; less is needed with"):
        draw(requests)
