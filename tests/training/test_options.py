"""No option is inert: each changes what is learned, drawn or written, or names the test that shows it.

Those of [data] are in test_data_options.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import image_folder, recipe_text
from torch import Tensor

from lora_studio.evaluate.previews import render
from lora_studio.recipe import options
from lora_studio.recipe.evaluate import EvaluateConfig
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.sweep import SweepConfig
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.finish.verified import job_of, paths_of, write_own
from lora_studio.training.loop.step_result import GradientWatch
from lora_studio.training.optimizers import OPTIMIZERS, needs_of
from lora_studio.training.prepare import Session, make_loop, prepare
from lora_studio.training.prepare.base_model import BuildContext, base_of, plan_adapters

State = dict[str, Tensor]

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
    "training.lr_schedule": ("linear", "constant"),
    "training.lr_schedule_floor": ("0.5",),
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
    "adapter.conv_rank": ("adapter.conv=true",),
    "adapter.conv_alpha": ("adapter.conv=true",),
}
"""What an option is of no use without."""

ANEW = {
    "objective.preservation": "0.9",
    "objective.masked_preservation": "0.5",
    "training.batch_size": "1",
    "training.gradient_accumulation": "2",
    "training.text_encoder_learning_rate": "1e-3",
    "adapter.kind": "dora",
    "adapter.rank": "2",
    "adapter.alpha": "2",
    "adapter.rslora": "true",
    "adapter.conv": "true",
    "adapter.conv_rank": "2",
    "adapter.conv_alpha": "2",
    "adapter.text_encoder": "true",
    "adapter.layers": '[{ pattern = "*attn2*", rank = 2 }]',
    "adapter.start": "pissa",
    "adapter.lora_plus_ratio": "4",
    "adapter.rank_dropout": "0.5",
    "adapter.module_dropout": "0.5",
    "adapter.max_norm": "1e-4",
}
"""Option -> a value with which another run is made ready, and its first steps learned."""

PREVIEWS = {
    "samples.prompts": '["a green tree"]',
    "samples.negative_prompt": "a red ball",
    "samples.seed": "1",
    "samples.steps": "3",
    "samples.guidance": "1",
}
EXPORTS = {
    "name": "other",
    "export.dtype": "float32",
    "export.title": "Another",
    "export.strength": "0.7",
    "export.tag_frequency": "true",
    "export.author": "Ada",
    "export.description": "Ink on paper",
    "export.license": "cc0-1.0",
    "export.tags": '["woodcut"]',
}
ELSEWHERE = {
    "adapter.blocks": "test_adapters.py",
    "adapter.init_from": "test_warm_start.py",
    "objective.density": "../families/test_z_image.py",
    "objective.shift": "../families/test_z_image.py",
    "objective.sigma_weighting": "../families/test_z_image.py",
    "base.model": "test_run_folder.py",
    "base.vae": "test_caches.py",
    "base.text_encoder": "../families/test_transformer_files.py",
    "base.distilled": "../families/test_transformer_files.py",
    "base.prediction_type": "../families/test_loading.py",
    "base.tokenizer": "../families/test_single_file.py",
    "base.allow_pickle": "../families/test_single_file.py",
    "base.dtype": "test_step.py",
    "base.training_adapter": "test_training_adapter.py",
    "base.loras": "test_warm_start.py",
    "base.quantize": "../quantization/test_quantizers.py",
    "base.vae_dtype": "test_caches.py",
    "export.sidecars": "../metadata/test_sidecars.py",
    **{f"evaluate.{option}": "test_evaluating.py" for option in EvaluateConfig.model_fields},
    **{f"sweep.{option}": "../sweep/test_trials.py" for option in SweepConfig.model_fields},
    **dict.fromkeys(("sweep.search", "sweep.stop_early"), "../sweep/test_search.py"),
    "export.checkpoint": "test_evaluating.py",
    "validation.count": "test_validation.py",
    "validation.fraction": "../data/test_validation.py",
    "validation.every": "test_validation.py",
    "machine.device": "test_machine.py",
    "machine.attention": "test_self_test.py",
    "machine.gradient_checkpointing": "test_machine.py",
    "machine.compile": "test_machine.py",
    "machine.channels_last": "test_machine.py",
    "machine.tf32": "test_machine.py",
    "machine.offload_blocks": "test_offload.py",
    "machine.shard_base": "test_processes.py",
    "samples.every": "test_validation.py",
    "tokens": "test_tokens.py",
    "tracking.to": "test_tracking.py",
    "tracking.project": "test_tracking.py",
    "tracking.run_name": "test_tracking.py",
    "tracking.words": "test_tracking.py",
    "training.epochs": "test_epochs.py",
    "training.loss_average": "test_feed.py",
    "training.max_skipped_steps": "test_faults.py",
    "training.checkpoint_every": "test_readings.py",
    "training.keep_checkpoints": "test_exact.py",
}
FIXED_BESIDE = ("training.lr_schedule=cosine", "training.warmup_steps=1", "samples.prompts=[]")


def test_every_option_is_tried() -> None:
    known = {name for name, _ in options() if not name.startswith("data.")}
    assert known == {*IN_THE_LOOP, *ANEW, *PREVIEWS, *EXPORTS, *ELSEWHERE}
    for option, test in ELSEWHERE.items():
        assert option.rpartition(".")[2] in (Path(__file__).parent / test).read_text("utf-8"), option


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """On images of which two fit into a batch each time: in a batch of one nothing is stratified."""
    folder = tmp_path_factory.mktemp("pairs")
    images = image_folder(folder / "images", count=10)
    (folder / "masks").mkdir()
    for path in images.iterdir():
        if path.suffix != ".txt":
            with Image.open(path) as image:
                mask = Image.new("L", image.size, 0)
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
def start(session: Session) -> State:
    return session.adapters.state()


def prepared(recipe_file: Path, folder: Path, *changes: str) -> Session:
    return prepare(load_recipe(recipe_file, changes=(*FIXED_BESIDE, *changes)), Run(folder), ignore_events)


def learned(session: Session, recipe_file: Path, *changes: str) -> State:
    """What three steps on the session's batches come to."""
    recipe = load_recipe(recipe_file, changes=(*FIXED_BESIDE, *changes))
    plan = plan_adapters(recipe, base_of(recipe, weights=False))
    context = BuildContext(
        *(recipe, session.run, session.machine, session.family, plan, ignore_events, session.processes)
    )
    loop = make_loop(context, session.adapters, session.loop.feed)
    loop.base_rates = [group["lr"] for group in loop.state.optimizer.param_groups]
    watch = GradientWatch(session.adapters)
    for step in (1, 2, 3):
        loop.train_step(step, watch)
    with loop.state.shown():
        return session.adapters.state()


def differ(one: State, other: dict[str, Tensor]) -> bool:
    return one.keys() != other.keys() or any(not torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def usual(session: Session, start: State, recipe_file: Path) -> State:
    found = learned(session, recipe_file)
    session.adapters.load(start)
    assert not differ(learned(session, recipe_file), found)  # so that a difference is the option's
    return found


@pytest.mark.parametrize(
    ("option", "value"), [(name, value) for name, values in IN_THE_LOOP.items() for value in values]
)
@pytest.mark.filterwarnings("ignore")  # what bitsandbytes' import says
def test_an_option_changes_what_is_learned_from_the_same_batches(
    option: str, value: str, session: Session, start: State, usual: object, recipe_file: Path
) -> None:
    if value in OPTIMIZERS.names() and (package := needs_of(OPTIMIZERS[value]).package):
        pytest.importorskip(package)
    session.adapters.load(start)
    before = usual
    if option in BESIDE:
        before = learned(session, recipe_file, *BESIDE[option])
        session.adapters.load(start)
    found = learned(session, recipe_file, *BESIDE.get(option, ()), f"{option}={value}")
    assert differ(before, found)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def learned_anew(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Callable[..., State]:
    """What the first steps of a run of its own come to."""

    @cache
    def learn(*changes: str) -> State:
        session = prepared(recipe_file, tmp_path_factory.mktemp("anew"), *changes)
        try:
            return learned(session, recipe_file, *changes)
        finally:
            session.run.close()

    return learn


@pytest.mark.parametrize("option", ANEW)
def test_an_option_changes_what_a_run_of_its_own_learns(
    option: str, learned_anew: Callable[..., State]
) -> None:
    beside = BESIDE.get(option, ())
    assert differ(learned_anew(*beside), learned_anew(*beside, f"{option}={ANEW[option]}"))


@pytest.mark.parametrize("option", PREVIEWS)
def test_an_option_changes_the_previews(option: str, session: Session, recipe_file: Path) -> None:
    usual = ('samples.prompts=["a red ball"]', "samples.steps=2", "data.resolution=16")
    drawn = [
        [
            image.tobytes()
            for image in render(session.family, load_recipe(recipe_file, changes=changes).samples, side=16)
        ]
        for changes in (usual, (*usual, f"{option}={PREVIEWS[option]}"))
    ]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("option", EXPORTS)
def test_an_option_changes_the_file(option: str, session: Session, recipe_file: Path) -> None:
    def written(*changes: str) -> bytes:
        changed = replace(session, recipe=load_recipe(recipe_file, changes=changes))
        return paths_of(write_own(changed, job_of(changed, session.run.folder)))[0].read_bytes()

    assert written() != written(f"{option}={EXPORTS[option]}")
