"""No option of [objective] and [training] is inert: each changes what is learned, or names a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import picture_folder, recipe_text
from torch import Tensor

from lora_studio.recipe import load_recipe
from lora_studio.recipe_changes import options
from lora_studio.run import Run
from lora_studio.training.build import Session, prepare
from lora_studio.training.build_loop import make_loop
from lora_studio.training.events import nobody
from lora_studio.training.gradients import GradientWatch
from lora_studio.training.optimizers import NEEDS

IN_THE_LOOP = {
    "objective.weighting": ("debiased",),
    "objective.snr_gamma": ("1",),
    "objective.noise_offset": ("0.1",),
    "objective.timesteps": ("uniform", "low_variance"),
    "objective.timestep_range": ("[0.0, 0.5]",),
    "objective.timestep_bias": ("1.0", "-1.0"),
    "objective.multires_noise": ("0.3",),
    "objective.input_perturbation": ("0.1",),
    "objective.loss": ("huber", "smooth_l1"),
    "objective.loss_delta": ("0.2",),
    "training.steps": ("7",),
    "training.learning_rate": ("3e-4",),
    "training.optimizer": ("adamw8bit", "adafactor", "lion", "schedule_free", "torch.optim:NAdam"),
    "training.optimizer_options": ("{ betas = [0.5, 0.9] }",),
    "training.weight_decay": ("0.5",),
    "training.schedule": ("linear", "constant"),
    "training.schedule_floor": ("0.5",),
    "training.warmup_steps": ("3", "0.5"),
    "training.max_grad_norm": ("1e-9",),
    "training.ema": ("0.5",),
    "training.seed": ("2",),
}
"""Option -> values that the same batches are learned with."""

BESIDE = {
    "objective.masked_preservation": ("data.masks=masks",),
    "objective.loss_delta": ("objective.loss=huber",),
    "training.text_encoder_learning_rate": ("adapter.text_encoder=true",),
}
"""What an option is of no use without."""

IN_THE_BATCHES = {
    "objective.preservation": ("0.9",),
    "objective.masked_preservation": ("0.5",),
    "training.batch_size": ("1",),
    "training.accumulation": ("2",),
    "training.text_encoder_learning_rate": ("1e-3",),
}
ELSEWHERE = {
    "tokens": "test_tokens.py, each of its options",
    "training.max_bad_steps": "test_faults.py, test_readings.py",
    "training.checkpoint_every": "test_resume.py, test_readings.py",
    "training.keep_checkpoints": "test_exact.py, test_holdout.py",
}
FIXED_BESIDE = ("training.schedule=cosine", "training.warmup_steps=1", "preview.prompts=[]")


def test_every_option_is_tried() -> None:
    known = {name for name, _ in options() if name.partition(".")[0] in ("objective", "tokens", "training")}
    assert known == {*IN_THE_LOOP, *IN_THE_BATCHES, *ELSEWHERE}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """On pictures of which two fit into a batch each time: in a batch of one nothing is stratified."""
    folder = tmp_path_factory.mktemp("pairs")
    images = picture_folder(folder / "pictures", count=10)
    (folder / "masks").mkdir()
    for path in images.iterdir():
        if path.suffix != ".txt":
            with Image.open(path) as picture:
                mask = Image.new("L", picture.size, 0)
            mask.paste(255, (16, 16, 48, 48))
            mask.save(folder / "masks" / f"{path.stem}.png")
    (folder / "tiny.toml").write_text(recipe_text(images, str(tiny_base)), "utf-8")
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Iterator[Session]:
    session = prepared(recipe_file, tmp_path_factory.mktemp("run"))
    yield session
    session.run.close()


@pytest.fixture(scope="module")
def start(session: Session) -> dict[str, Tensor]:
    return session.adapters.state()


def prepared(recipe_file: Path, folder: Path, *changes: str) -> Session:
    return prepare(load_recipe(recipe_file, changes=(*FIXED_BESIDE, *changes)), Run(folder), nobody)


def learned(session: Session, recipe_file: Path, *changes: str) -> dict[str, Tensor]:
    """What three steps on the session's batches come to."""
    recipe = load_recipe(recipe_file, changes=(*FIXED_BESIDE, *changes))
    loop = make_loop(
        *(recipe, session.run, session.machine, session.family, session.adapters),
        *(session.loop.feed, nobody, session.processes),
    )
    loop.base_rates = [group["lr"] for group in loop.state.optimizer.param_groups]
    watch = GradientWatch(session.adapters)
    for step in (1, 2, 3):
        loop._step(step, watch)
    with loop.state.shown():
        return session.adapters.state()


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def usual(session: Session, start: dict[str, Tensor], recipe_file: Path) -> dict[str, Tensor]:
    found = learned(session, recipe_file)
    session.adapters.load(start)
    assert not differ(learned(session, recipe_file), found)  # so that a difference is the option's
    return found


@pytest.mark.parametrize(
    ("option", "value"), [(name, value) for name, values in IN_THE_LOOP.items() for value in values]
)
@pytest.mark.filterwarnings("ignore")  # what bitsandbytes' import says
def test_an_option_changes_what_is_learned_from_the_same_batches(
    option: str, value: str, session: Session, start: dict[str, Tensor], usual: object, recipe_file: Path
) -> None:
    if value in NEEDS:
        pytest.importorskip(NEEDS[value].package)
    session.adapters.load(start)
    before = usual
    if option in BESIDE:
        before = learned(session, recipe_file, *BESIDE[option])
        session.adapters.load(start)
    found = learned(session, recipe_file, *BESIDE.get(option, ()), f"{option}={value}")
    assert differ(before, found)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", IN_THE_BATCHES)
def test_an_option_of_batches_changes_what_is_learned(option: str, tmp_path: Path, recipe_file: Path) -> None:
    found = []
    for number, changes in enumerate([(), (f"{option}={IN_THE_BATCHES[option][0]}",)]):
        both = (*BESIDE.get(option, ()), *changes)
        session = prepared(recipe_file, tmp_path / str(number), *both)
        found.append(learned(session, recipe_file, *both))
        session.run.close()
    assert differ(*found)
