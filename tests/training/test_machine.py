"""Which parts lie on the device when, and that options change the speed and not the result."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gradients import loss_and_gradients, shift
from torch import Tensor, nn

from lora_studio.evaluate.previews import decoder_of, in_its_precision, render
from lora_studio.families.base import ModelFamily
from lora_studio.families.unet import StableDiffusion
from lora_studio.quiet import paused_collector
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.session import train


@pytest.fixture
def stays(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What was on the device, one after the other."""
    found: list[tuple[str, ...]] = []
    plain = ModelFamily.place

    def place(family: ModelFamily, device: torch.device, *names: str) -> None:
        found.append(names)
        plain(family, device, *names)

    monkeypatch.setattr(ModelFamily, "place", place)
    return found


def session_of(recipe_file: Path, folder: Path, *changes: str) -> Session:
    options = ("data.resolution=32", "training.steps=2", *changes)
    session = prepare(load_recipe(recipe_file, changes=options), Run(folder), ignore_events)
    session.run.close()
    return session


def test_only_the_denoiser_stays_after_caching(
    recipe_file: Path, tmp_path: Path, stays: list[tuple[str, ...]]
) -> None:
    session_of(recipe_file, tmp_path)
    assert stays == [(), ("vae",), ("text_encoder",), ("unet",)]


@pytest.mark.parametrize(
    "change", ["adapter.text_encoder=true", "data.caption_suffix=', {trigger}'"], ids=["trained", "frozen"]
)
def test_a_text_encoder_stays_if_it_is_trained(
    change: str, recipe_file: Path, tmp_path: Path, stays: list[tuple[str, ...]]
) -> None:
    session_of(recipe_file, tmp_path, change)
    assert stays[-1] == (("unet", "text_encoder") if "true" in change else ("unet",))


def test_previews_bring_the_text_encoders_and_put_them_away_again(
    recipe_file: Path, tmp_path: Path, stays: list[tuple[str, ...]]
) -> None:
    train(load_recipe(recipe_file, changes=("data.resolution=32", "training.steps=2")), tmp_path / "run")
    asked, denoiser = {"unet", "text_encoder"}, {"unet"}
    after_caching = [set(names) for names in stays[4:]]
    # base and tuned are drawn; between them the live base is asked, and then the file in the same parts
    prompts, images, live = [asked, denoiser], [denoiser, denoiser], [asked, denoiser]
    previews, file = prompts + images, live
    timed = previews
    assert after_caching == [*timed, *previews, *live, *file, *previews]


@pytest.mark.gpu
def test_parts_that_rest_take_no_memory_of_the_gpu(recipe_file: Path, tmp_path: Path) -> None:
    session = session_of(recipe_file, tmp_path, "machine.device=cuda")
    where = {name: next(part.parameters()).device.type for name, part in session.family.parts.items()}
    assert where == {"unet": "cuda", "vae": "cpu", "text_encoder": "cpu"}
    before = torch.cuda.memory_allocated()
    with session.family.placed(*session.family.parts):
        assert torch.cuda.memory_allocated() > before
    assert torch.cuda.memory_allocated() == before


def update(session: Session) -> Tensor:
    """What a run changes."""
    before = torch.cat([one.flatten() for one in session.adapters.state().values()])
    assert session.loop.run(1)
    session.run.close()
    return torch.cat([one.flatten() for one in session.adapters.state().values()]) - before


def gradients(session: Session) -> Tensor:
    """Of the first micro-batch; Adam's update would be as large for one that is mere rounding."""
    shift(session.adapters)
    return loss_and_gradients(session, next(iter(session.loop.feed.of_step(1))))[1]


def check_same(
    recipe_file: Path, folder: Path, measure: Callable[[Session], Tensor], *changes: str, apart: float
) -> Session:
    """Of its own size the measure differs by less than `apart`."""
    plain = session_of(recipe_file, folder / "plain")
    other = session_of(recipe_file, folder / "other", *changes)
    expected, found = measure(plain), measure(other)
    assert len(expected) == plain.adapters.num_parameters
    assert (found - expected).norm() < apart * expected.norm()
    return other


def test_checkpointing_and_channels_last_change_nothing_but_rounding(
    recipe_file: Path, tmp_path: Path
) -> None:
    changes = ("machine.gradient_checkpointing=true", "machine.channels_last=true")
    session = check_same(recipe_file, tmp_path, update, *changes, apart=0.02)
    convolutions = [m for m in session.family.parts["unet"].modules() if isinstance(m, nn.Conv2d)]
    wide = [one.weight for one in convolutions if one.kernel_size == (3, 3) and one.in_channels > 4]
    assert wide and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in wide)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own, of what it uses
def test_compiled_blocks_change_nothing_but_rounding(recipe_file: Path, tmp_path: Path) -> None:
    changes = ("machine.compile=true", "machine.gradient_checkpointing=true")
    session = check_same(recipe_file, tmp_path, gradients, *changes, apart=1e-4)
    compiled = [m for m in session.family.parts["unet"].modules() if m._compiled_call_impl is not None]
    assert {type(one).__name__ for one in compiled} == {"BasicTransformerBlock", "ResnetBlock2D"}


def test_previews_leave_nothing_on_the_device(recipe_file: Path, tmp_path: Path) -> None:
    """Their copy of the VAE is gone when they are drawn, not when Python next looks for cycles."""
    session = session_of(recipe_file, tmp_path)

    def num_vaes() -> int:
        return sum(type(one).__name__ == "AutoencoderKL" for one in gc.get_objects())

    gc.collect()
    with paused_collector():
        before = num_vaes()
        render(session.family, session.recipe.samples.model_copy(update={"steps": 1}), side=32)
        assert num_vaes() == before


@pytest.mark.parametrize(
    ("base", "decoded"),
    [("float16", torch.float32), ("bfloat16", torch.bfloat16), ("float32", torch.float32)],
)
def test_images_are_decoded_in_the_bases_precision_but_float16s_in_float32(
    recipe_file: Path, tmp_path: Path, base: str, decoded: torch.dtype
) -> None:
    """SDXL's VAE overflows in float16; under autocast its normalisation would be in float32 on a GPU."""
    family = session_of(recipe_file, tmp_path, f"base.dtype={base}").family
    vae, seen, dtype = family.parts["vae"], list[torch.dtype](), family.precision
    for module in (vae.decoder.conv_in, vae.decoder.conv_norm_out):
        module.register_forward_hook(lambda module, given, answer: seen.append(answer.dtype))
    with torch.no_grad(), in_its_precision(family):
        decoder = decoder_of(family)
        decoder.decode(torch.zeros(1, 4, 4, 4, dtype=dtype))
    assert seen == [decoded, decoded]
    assert "decode" not in vars(vae) and next(vae.parameters()).dtype == torch.float32


def test_what_is_cached_is_encoded_without_tf32(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caches know neither the option nor the device: at 10 bits other runs would get other latents."""
    found = set[tuple[str, str, bool]]()
    image, text = StableDiffusion.encode_image, StableDiffusion.encode_text

    def seen(what: str) -> None:
        found.add((what, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))

    def encode_image(family: StableDiffusion, pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen("image")
        return image(family, pixels)

    def encode_text(family: StableDiffusion, captions: list[str]) -> dict[str, Tensor]:
        seen("text")
        return text(family, captions)

    monkeypatch.setattr(StableDiffusion, "encode_image", encode_image)
    monkeypatch.setattr(StableDiffusion, "encode_text", encode_text)
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    session_of(recipe_file, tmp_path / "run", "machine.tf32=true")
    assert found == {("image", "highest", False), ("text", "highest", False)}
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32


def test_tf32_is_what_the_recipe_says(recipe_file: Path, tmp_path: Path) -> None:
    for name, on in (("on", True), ("off", False)):
        session_of(recipe_file, tmp_path / name, f"machine.tf32={str(on).lower()}")
        assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
        assert torch.backends.cudnn.allow_tf32 is on
