"""The loss on validation images, and previews while training: they look, and touch nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from noise import grey_noise
from PIL import Image
from safetensors.torch import load_file
from tiny import image_folder, recipe_text

from lora_studio.errors import CheckpointError, RecipeError
from lora_studio.evaluate.preview_sheet import prompts_on
from lora_studio.evaluate.validation import TIMESTEPS, best_step
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.preview_prompts import ask_for_prompts, asked_prompts
from lora_studio.rng import generator
from lora_studio.runs import PIN, Run
from lora_studio.training.events import Event, Note, PreviewsDrawn, ValidationMeasured, ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.finish.export import checkpoint_of
from lora_studio.training.loop.watch import PreviewWatch, ValidationWatch
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.report import Timing, describe
from lora_studio.training.session import train

SOURCES = """
sources = [{images = "style"}, {images = "test", role = "validation"}]
caption_dropout = 0
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Five images to train on and two with the role validation, one of them with a mask."""
    folder = tmp_path_factory.mktemp("validation")
    image_folder(folder / "style")
    image_folder(folder / "test", count=2, trigger="held out")
    for number, path in enumerate(sorted((folder / "test").glob("*.*g"))):
        grey_noise((64, 64), 50 + number).convert("RGB").save(path)
    mask = Image.new("L", (64, 64), 255)
    mask.paste(0, (0, 0, 32, 64))
    mask.save(folder / "test" / "01.mask.png")
    text = recipe_text(folder, str(tiny_base)).replace(f'images = "{folder}"', SOURCES)
    text += '[samples]\nprompts = ["a red ball, zwx style"]\nsteps = 1\n'
    (folder / "recipe.toml").write_text(text, "utf-8")
    return folder / "recipe.toml"


@pytest.fixture
def session(recipe: Path, tmp_path: Path) -> Iterator[Session]:
    made = prepare(load_recipe(recipe, changes=("training.ema=0.5",)), Run(tmp_path / "run"), ignore_events)
    with torch.no_grad():  # adapters that do something, and a mean that is not the same
        for layer in made.adapters.layers:
            layer.tensors["up"].copy_(
                0.1 * torch.randn(layer.tensors["up"].shape, generator=generator(layer.name))
            )
    yield made
    made.run.close()


def test_it_is_the_mean_squared_error_at_fixed_noise_and_evenly_spread_timesteps(
    session: Session, tiny_base: Path
) -> None:
    validation = session.validation
    assert validation is not None and validation.names == ("test/00.png", "test/01.jpg")
    with session.adapters.disabled():
        validation.measure_base()
    assert validation._base is not None
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet", dtype=torch.float32)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    timestep = torch.tensor([62, 187, 312, 437, 562, 687, 812, 937])
    for number, one in enumerate(validation.images):
        noise = torch.randn((TIMESTEPS, *one.latents.shape), generator=generator("holdout", one.sha256))
        latents = one.latents.expand(noise.shape)
        with session.family.placed("text_encoder"):
            text = session.family.encode_text([one.caption] * TIMESTEPS)["text"]
        with torch.no_grad():
            answer = unet(scheduler.add_noise(latents, noise, timestep), timestep, text).sample
        error = (answer - noise).square()
        if number == 1:  # its left half is masked out
            error = error[..., error.shape[-1] // 2 :]
        torch.testing.assert_close(validation._base[number], error.mean(dim=(1, 2, 3)), atol=1e-4, rtol=1e-4)


def fingerprint(session: Session) -> str:
    """Of every weight and mode, the mean, and all randomness that is not keyed."""
    digest = hashlib.sha256()
    for name, part in session.family.parts.items():
        for key, tensor in part.state_dict().items():
            digest.update(f"{name}.{key}".encode() + tensor.numpy().tobytes())
        for module in part.modules():
            digest.update(bytes([module.training, *(p.requires_grad for p in module.parameters(False))]))
    for tensor in session.loop.state.ema.state().values():  # type: ignore[union-attr]
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest() + hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()


def validation_watch(session: Session) -> Callable[[int], object]:
    assert session.validation is not None
    state, run = session.loop.state, session.run
    watch = ValidationWatch(session.validation, state, run, every=2, steps=4, listener=ignore_events)
    watch.begin()
    return watch.after_step


def preview_watch(session: Session) -> Callable[[int], object]:
    samples = session.recipe.samples.model_copy(update={"every": 2})
    state, run, side = session.loop.state, session.run, session.recipe.data.resolution
    watch = PreviewWatch(session.family, state, run, samples, side, 4, ignore_events)
    watch.begin()
    return watch.after_save


@pytest.mark.parametrize("make", [validation_watch, preview_watch])
def test_looking_leaves_weights_modes_and_randomness_as_they_are(
    session: Session, make: Callable[[Session], Callable[[int], object]]
) -> None:
    before = fingerprint(session)
    after_step = make(session)
    after_step(2)
    assert fingerprint(session) == before
    session.loop.run(1)  # and what was trained after a look is what is trained without
    assert fingerprint(session) != before


def test_the_mean_of_the_weights_is_what_is_measured_and_drawn(session: Session) -> None:
    """It is that of the start, at which the adapters have no effect, as long as there is no step."""
    after_step = validation_watch(session)
    after_step(2)
    rows = session.run.lines("validation.jsonl")
    assert [row["step"] for row in rows] == [0, 2]
    assert [row["relative"] for row in rows] == [1.0, 1.0]
    preview_watch(session)(2)
    with Image.open(session.run.folder / "previews" / "step_000002.png") as sheet:
        side = (sheet.width - 3 * 12) // 2  # below two lines of words
        left, right = (sheet.crop((x, 52, x + side, 52 + side)) for x in (12, 24 + side))
    assert left.tobytes() == right.tobytes() and left.getextrema()[0][0] < 255


@pytest.fixture(scope="module")
def measured(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, list[Event]]:
    """A finished run of six steps, measured every second, with only the newest checkpoint kept."""
    changes = ("training.steps=6", "validation.every=2", "samples.every=2", "training.keep_checkpoints=1")
    heard: list[Event] = []
    folder = tmp_path_factory.mktemp("measured") / "run"
    result = train(load_recipe(recipe, changes=changes), folder, on_event=heard.append)
    assert isinstance(result, Finished)
    return result, heard


def test_the_file_has_the_same_bytes_whether_it_is_measured_and_drawn_or_not(
    recipe: Path, tmp_path: Path, measured: tuple[Finished, list[Event]]
) -> None:
    changes = ("training.steps=6", "validation.count=0", "samples.prompts=[]")
    result = train(load_recipe(recipe, changes=changes), tmp_path / "run")
    assert isinstance(result, Finished)
    assert result.lora_file.read_bytes() == measured[0].lora_file.read_bytes()
    assert not list((tmp_path / "run").glob("validation*")) and result.summary["validation"] is None


def test_a_run_is_measured_before_the_first_step_and_to_its_last(
    measured: tuple[Finished, list[Event]],
) -> None:
    result, heard = measured
    rows = Run(result.folder).lines("validation.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4, 6] and rows[0]["relative"] == 1.0
    events = [event for event in heard if isinstance(event, ValidationMeasured)]
    assert [(event.step, event.loss, event.relative) for event in events] == [
        (row["step"], row["loss"], row["relative"]) for row in rows
    ]
    assert "of the base's" in events[1].text and "before the first" in events[0].text
    ranked = json.loads((result.folder / "validation.json").read_text())
    assert [one["relative"] for one in ranked["images"]] == sorted(rows[-1]["images"].values())
    assert ranked["step"] == 6 and ranked["best_step"] == best_step(rows)
    assert result.summary["validation"]["best_step"] == best_step(rows)
    with Image.open(result.folder / "validation.png") as plot:
        assert plot.width > 100
    names = {path.name for path in (result.folder / "previews").iterdir()}
    assert names == {"base_00.png", "tuned_00.png", *(f"step_{step:06}.png" for step in (0, 2, 4, 6))}


def test_the_best_measured_checkpoint_is_kept(measured: tuple[Finished, list[Event]]) -> None:
    result = measured[0]
    best = best_step(Run(result.folder).lines("validation.jsonl"))
    assert {path.name for path in Run(result.folder).checkpoints()} == {f"step_{best:06}", "step_000006"}


def test_the_best_is_the_lowest_after_the_first_step_and_the_earlier_of_two() -> None:
    rows = [{"step": step, "relative": value} for step, value in enumerate([0.1, 0.9, 0.8, 0.8])]
    assert best_step(rows) == 2 and best_step(rows[:1]) is None


def test_a_better_measurement_is_saved_even_between_two_checkpoints(session: Session) -> None:
    session.loop.after_step = lambda step: step == 3
    session.loop.run(1)
    assert [path.name for path in session.run.checkpoints()] == [f"step_{step:06}" for step in (2, 3, 4)]
    assert not (session.run.newest_checkpoint() / PIN).exists()


def test_a_tenth_is_held_out_by_default_from_twelve_images_on_and_the_plan_names_them(
    tmp_path: Path, tiny_base: Path
) -> None:
    image_folder(tmp_path / "images", count=12)
    (tmp_path / "recipe.toml").write_text(recipe_text(tmp_path / "images", str(tiny_base)), "utf-8")
    session = prepare(load_recipe(tmp_path / "recipe.toml"), Run(tmp_path / "run"), ignore_events)
    plan = describe(session, first_step=1, timing=Timing(1.0, 1)).data
    held = plan["held_out"]
    assert len(held) == 2 and plan["images_used"] == 10 and plan["validation_every"] == 100
    assert session.validation is not None and list(session.validation.names) == held
    shown = {record.name for record in session.loop.feed.records}
    assert len(shown) == 10 and not shown & set(held)


def test_measurements_that_are_lost_or_changed_are_not_made_up_and_the_best_is_not_guessed(
    recipe: Path, tmp_path: Path
) -> None:
    """A resume used to measure where it went on from and call that step 0."""
    changed = load_recipe(recipe, changes=("validation.every=2", "samples.prompts=[]"))
    train(changed, tmp_path / "run")
    run, heard = Run(tmp_path / "run"), list[Event]()
    assert checkpoint_of(run, "best")[1] in (2, 4)
    whole = {row["step"]: row for row in run.measurements()}
    path = run.folder / "validation.jsonl"
    path.write_text(path.read_text("utf-8").replace('"relative": ', '"relative": 1', 1), "utf-8")
    with pytest.raises(CheckpointError, match="its best checkpoint is not known; name one of 2, 4"):
        checkpoint_of(run, "best")
    path.unlink()
    (run.folder / "metrics.jsonl").unlink()
    shutil.rmtree(run.newest_checkpoint())
    train(run.folder, resume=True, on_event=heard.append)
    assert run.measurements() == [whole[2], whole[4]]
    told = "\n".join(one.text for one in heard if isinstance(one, Note))
    assert "warning: validation.jsonl is not as the run wrote it up to step 2" in told
    assert "metrics.jsonl lacks 2 steps up to 2" in told


def test_prompts_of_previews_can_be_changed_while_a_run_is_at_work(
    tmp_path: Path, tiny_base: Path, images: Path
) -> None:
    """Sheets in between show the new ones and say so; the last one and what is learned stay as they were."""
    samples = '[samples]\nprompts = ["a fox"]\nevery = 1\nsteps = 1\n'
    (recipe := tmp_path / "tiny.toml").write_text(recipe_text(images, str(tiny_base), steps=4) + samples)
    asked = ("a dog", "größer als ein Haus")

    def on_event(event: Event) -> None:
        if isinstance(event, PreviewsDrawn) and event.step == 1:
            ask_for_prompts(tmp_path / "changed", [*asked])

    for folder, listener in (("usual", ignore_events), ("changed", on_event)):
        train(
            load_recipe(recipe, changes=("training.checkpoint_every=1",)),
            tmp_path / folder,
            on_event=listener,
        )
    usual, changed = tmp_path / "usual", tmp_path / "changed"
    sheets = [f"previews/step_00000{step}.png" for step in range(5)]
    assert [prompts_on(changed / one) for one in sheets] == [None, None, asked, asked, None]
    assert [prompts_on(usual / one) for one in sheets] == [None] * 5
    assert [(usual / one).read_bytes() == (changed / one).read_bytes() for one in sheets] == [
        *(True, True, False, False, True)
    ]
    first, second = (load_file(next(one.glob("*.safetensors"))) for one in (usual, changed))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("asked", [[], ["a"] * 101, ["\ud800"]], ids=["none", "many", "half"])
def test_prompts_that_no_recipe_could_have_are_refused(tmp_path: Path, asked: list[str]) -> None:
    with pytest.raises(RecipeError):
        ask_for_prompts(tmp_path, asked)
    assert asked_prompts(tmp_path) is None


@pytest.mark.parametrize("content", ["", "[", "[1]", "{}", "[" * 9999, '"a"', "[]"])
def test_a_damaged_list_of_prompts_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "prompts.json").write_text(content)
    assert asked_prompts(tmp_path) is None
