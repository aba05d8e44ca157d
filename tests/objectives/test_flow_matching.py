"""Flow matching against diffusers' scheduler, and in the loop with a family of the test."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from processes import AtStep, interrupt
from safetensors import safe_open
from tiny import recipe_text
from torch import Tensor

from lora_studio.errors import BaseModelError, Interrupted, RecipeError
from lora_studio.families import FAMILIES
from lora_studio.families.base import Conditioning, FileTraits, ModelFamily, Parts, ProbeInputs, Tokenizers
from lora_studio.families.flow_schedule import read_shift
from lora_studio.families.loading import load_base
from lora_studio.families.noise_schedule import is_flow
from lora_studio.families.unet import StableDiffusion15
from lora_studio.objectives.base import ObjectiveOptions
from lora_studio.objectives.flow_matching import FlowMatching
from lora_studio.objectives.sigmas import DynamicShift, FlowSchedule
from lora_studio.objectives.timesteps import DrawPosition
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.finish import BINS, Finished, count_draws
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.session import train

LATENTS = torch.randn(8, 4, 6, 10, generator=torch.Generator().manual_seed(0))
PLAIN = FlowMatching(FlowSchedule())

# ---- what is learned at a sigma

SCHEDULER = FlowMatchEulerDiscreteScheduler(shift=3.0)


def test_mix_and_target_equal_diffusers() -> None:
    places = [0, 1, 100, 400, 600, 900, 990, 998]
    noise, timesteps = torch.randn(LATENTS.shape, generator=generator("n")), SCHEDULER.timesteps[places]
    noisy = PLAIN.noise_at(LATENTS, noise, SCHEDULER.sigmas[places])
    torch.testing.assert_close(noisy.latents, SCHEDULER.scale_noise(LATENTS, timesteps, noise))
    assert torch.equal(noisy.timestep, SCHEDULER.sigmas[places]) and torch.equal(noisy.weight, torch.ones(8))
    for row, place in enumerate(
        places
    ):  # a step along the target arrives where the scheduler's next sigma is
        one = slice(row, row + 1)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        stepped = scheduler.step(noisy.target[one], timesteps[row], noisy.latents[one]).prev_sample
        following = SCHEDULER.sigmas[place + 1].view(1)
        torch.testing.assert_close(stepped, PLAIN.noise_at(LATENTS[one], noise[one], following).latents)


def test_noise_is_drawn_as_diffusion_draws_it() -> None:
    noisy = PLAIN.noise(LATENTS, generator("k"), DrawPosition(1, 3))
    noise = torch.randn(LATENTS.shape, generator=generator("k"))
    torch.testing.assert_close(noisy.target, noise - LATENTS)
    assert torch.equal(noisy.timestep, PLAIN.shares(LATENTS.shape, generator("k"), DrawPosition(1, 3)))
    again, other = (PLAIN.noise(LATENTS, generator(key)) for key in ("k", "l"))
    assert torch.equal(again.latents, noisy.latents) and not torch.equal(again.latents, other.latents)


def test_draws_depend_on_no_image_and_rows_can_be_cut() -> None:
    position, options = DrawPosition(7, 5), {"timesteps": "low_variance", "input_perturbation": 0.1}
    objective = FlowMatching(FlowSchedule(shift=DynamicShift()), **options)  # type: ignore[arg-type]
    noisy = objective.noise(LATENTS, generator("m"), position)
    swapped = objective.noise(torch.cat([LATENTS[:3], 7 * LATENTS[3:]]), generator("m"), position)
    assert torch.equal(noisy.timestep, swapped.timestep)
    assert torch.equal(noisy.latents[:3], swapped.latents[:3]) and torch.equal(
        noisy.target[:3], swapped.target[:3]
    )
    cut = noisy.rows(slice(2, 5))
    whole = (noisy.latents, noisy.timestep, noisy.target, noisy.weight)
    for part, tensor in zip((cut.latents, cut.timestep, cut.target, cut.weight), whole, strict=True):
        assert torch.equal(part, tensor[2:5])


def test_latents_see_more_noise_than_the_target_has_under_input_perturbation() -> None:
    plain, perturbed = (
        replace(PLAIN, input_perturbation=p).noise(LATENTS, generator("e")) for p in (0.0, 0.1)
    )
    assert torch.equal(plain.target, perturbed.target) and torch.equal(plain.timestep, perturbed.timestep)
    extra = (perturbed.latents - plain.latents) / plain.timestep.view(-1, 1, 1, 1)
    assert extra.std().item() == pytest.approx(0.1, rel=0.1)


def test_a_batch_has_the_weights_of_its_sigmas() -> None:
    noisy = FlowMatching(FlowSchedule(weighting="bell")).noise(LATENTS, generator("w"))
    assert torch.equal(noisy.weight, FlowSchedule(weighting="bell").weight_at(noisy.timestep))
    assert noisy.weight.dtype == torch.float32 and len(noisy.weight.unique()) == 8


# ---- options that mean nothing

REFUSED = {
    "weighting": ("debiased", "is 'debiased', .*signal-to-noise ratio; leave it out."),
    "snr_gamma": (1.0, r"is 1\.0, .*signal-to-noise ratio; leave it out, or set it to 0\."),
    "noise_offset": (0.1, r"is 0\.1, .*noise alone, .*; leave it out, or set it to 0\."),
    "multires_noise": (0.3, r"is 0\.3, .*noise alone, .*; leave it out, or set it to 0\."),
}


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_that_means_nothing_is_refused(option: str) -> None:
    value, words = REFUSED[option]
    with pytest.raises(RecipeError, match=rf"^objective\.{option} {words}$"):
        FlowMatching(FlowSchedule(), **{option: value})  # type: ignore[arg-type]


def test_all_of_them_are_said_at_once_and_what_is_off_is_none() -> None:
    with pytest.raises(RecipeError) as caught:
        FlowMatching(FlowSchedule(), **{name: value for name, (value, _) in REFUSED.items()})  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) == len(REFUSED)
    FlowMatching(FlowSchedule(), **(asdict(ObjectiveOptions()) | {"snr_gamma": 0.0}))


# ---- a family that learns so, in the loop


class Flow(StableDiffusion15):
    """SD1's parts, asked as a base of flow matching is: shifted as its scheduler says, at 1000 sigma."""

    file_traits: ClassVar[dict[str, FileTraits]] = {
        "epsilon": FileTraits("sd_v1_flow", False, "stable-diffusion-v1-flow/lora", "")
    }

    def __init__(self, parts: Parts, tokenizers: Tokenizers, *, source: str, scheduler: Any) -> None:
        super().__init__(parts, tokenizers, source=source)
        self.scheduler, self.shift = dict(scheduler), read_shift(scheduler)

    @classmethod
    def recognises(cls, configurations: dict[str, dict[str, object]]) -> bool:
        return is_flow(configurations["scheduler"])

    def objective(self, options: ObjectiveOptions) -> FlowMatching:  # type: ignore[override]
        return FlowMatching(FlowSchedule(shift=self.shift), **asdict(options))

    def denoise(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        geometry: Tensor,
    ) -> Tensor:
        return super().denoise(latents, 1000 * timestep, conditioning, geometry)

    def probe_inputs(self) -> ProbeInputs:
        return super().probe_inputs()._replace(timestep=torch.tensor([0.15, 0.7]))


EXTRA = """
[objective]
preservation = 0.4
[validation]
count = 1
every = 1
"""
DYNAMIC = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    **{"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 4},
}


@pytest.fixture
def flow_recipe(tiny_base: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of three steps on a base that only the test's family recognises."""
    monkeypatch.setattr(FAMILIES, "entries", {"flow": f"{__name__}:Flow"} | FAMILIES.entries)
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    write_scheduler(base, DYNAMIC)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(images, str(base), steps=3, extra=EXTRA), "utf-8")
    return path


def write_scheduler(base: Path, config: dict[str, Any]) -> None:
    (base / "scheduler/scheduler_config.json").write_text(json.dumps(config), "utf-8")


def test_the_loop_asks_the_base_at_the_sigmas_that_are_drawn_and_validates_at_even_ones(
    flow_recipe: Path, tmp_path: Path
) -> None:
    session = prepare(load_recipe(flow_recipe), Run(tmp_path / "run"), ignore_events)
    assert isinstance(session.family, Flow) and isinstance(session.loop.objective, FlowMatching)
    seen: list[tuple[Tensor, bool]] = []
    denoise = session.family.denoise

    def listen(latents: Tensor, timestep: Tensor, *rest: Any) -> Tensor:
        seen.append((timestep, torch.is_grad_enabled()))
        return denoise(latents, timestep, *rest)

    session.family.denoise = listen  # type: ignore[method-assign]
    session.loop.run(1)
    trained = torch.cat([timestep for timestep, learns in seen if learns])
    asked = torch.cat([timestep for timestep, learns in seen if not learns])
    assert set(asked.tolist()) < set(trained.tolist())  # for preservation, in the window's passes
    draws = count_draws(session.loop)
    assert list(draws.drawn) == torch.histc(trained, BINS, 0, 1).int().tolist()
    assert sum(draws.wanted) == pytest.approx(len(trained), rel=1e-5)
    assert wanted_of_each_size(session) == pytest.approx(draws.wanted, abs=1e-3)
    del seen[:]
    assert session.validation is not None
    session.validation.measure_base()
    sigmas = torch.cat([timestep for timestep, _ in seen])
    torch.testing.assert_close(sigmas, (torch.arange(8) + 0.5) / 8)
    session.run.close()


def wanted_of_each_size(session: Session) -> list[float]:
    """In closed form: shifted logit-normal, of each micro-batch's own number of tokens."""
    edges, wanted = [number / BINS for number in range(BINS + 1)], torch.zeros(BINS, dtype=torch.float64)
    sizes = [shape for step in (1, 2, 3) for shape in session.loop.feed.shapes_of(step)]
    assert len({shape[2:] for shape in sizes}) > 1
    for rows, _, height, width in sizes:
        mu = 0.5 + (height * width / 4 - 4) / 4092 * 0.65
        inside = (NormalDist(mu, 1).cdf(math.log(one / (1 - one))) for one in edges[1:-1])
        below = [0.0, *inside, 1.0]
        wanted += rows * torch.tensor([high - low for low, high in pairwise(below)], dtype=torch.float64)
    return wanted.tolist()


def test_a_steps_loss_is_that_of_diffusers_examples(flow_recipe: Path, tmp_path: Path) -> None:
    changes = ("objective.preservation=0",)
    session = prepare(load_recipe(flow_recipe, changes=changes), Run(tmp_path / "run"), ignore_events)
    batch, loop = session.loop.feed.micro_batch(1, 0), session.loop
    rng, position = loop.draw_of(1, 0)
    loss = loop.forward_backward(batch, rng, position).item()
    noise = torch.randn(batch.latents.shape, generator=loop.draw_of(1, 0)[0])
    sigmas = loop.objective.shares(batch.latents.shape, *loop.draw_of(1, 0)).view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * batch.latents + sigmas * noise
    assert batch.conditioning is not None
    with torch.no_grad(), session.adapters.disabled():
        predicted = session.family.parts["unet"](
            noisy, sigmas.flatten() * 1000, batch.conditioning["text"]
        ).sample
    assert loss == pytest.approx((predicted - (noise - batch.latents)).square().mean().item(), rel=1e-5)
    session.run.close()


def left_behind(result: Finished) -> dict[str, bytes]:
    names = ("tiny.safetensors", "validation.jsonl", "timesteps.json", "checkpoints/step_000003/state.json")
    return {name: (result.folder / name).read_bytes() for name in names}


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bytes(
    flow_recipe: Path, tmp_path: Path
) -> None:
    recipe, folder, base = load_recipe(flow_recipe), tmp_path / "stopped", tmp_path / "base"
    straight = train(recipe, tmp_path / "straight")
    assert isinstance(straight, Finished) and straight.report.ok
    rows = [json.loads(line) for line in (straight.folder / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and rows[0]["relative"] == pytest.approx(1)
    with safe_open(straight.lora_file, "pt") as file:
        said = file.metadata()
    assert said["modelspec.architecture"] == "stable-diffusion-v1-flow/lora"
    assert not {"ss_min_snr_gamma", "modelspec.prediction_type"} & set(said)

    with pytest.raises(Interrupted):
        train(recipe, folder, on_event=AtStep(1, interrupt))
    write_scheduler(base, DYNAMIC | {"max_shift": 0.9})
    with pytest.raises(RecipeError, match="noise"):
        train(folder, resume=True)
    write_scheduler(base, DYNAMIC)
    resumed = train(folder, resume=True)
    assert left_behind(resumed) == left_behind(straight)


@pytest.mark.parametrize("option", REFUSED)
def test_a_recipe_with_what_means_nothing_is_refused_before_any_image_is_read(
    flow_recipe: Path, tmp_path: Path, option: str
) -> None:
    value, words = REFUSED[option]
    changes = (f"objective.{option}={value}", f"data.images='{tmp_path / 'base'}'")
    with pytest.raises(RecipeError, match=rf"^objective\.{option} {words}$"):
        train(load_recipe(flow_recipe, changes=changes), tmp_path / "run")


def test_a_prediction_type_means_nothing_for_it_either(flow_recipe: Path, tmp_path: Path) -> None:
    family: ModelFamily = load_base(str(tmp_path / "base"))
    assert family.traits.prediction_type == ""
    words = r"^base\.prediction_type is 'v_prediction', .* flow matching .*; leave the option out\.$"
    with pytest.raises(BaseModelError, match=words):
        load_base(str(tmp_path / "base"), prediction="v_prediction")
