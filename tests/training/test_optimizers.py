"""Optimizers: the right update, the same bits after a resume, and nothing changed by a bad step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gradients import on_gradient
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.training import TrainingConfig
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.loop.state import Counters, State, load_state, state_files
from lora_studio.training.loop.step_result import FIRST_STEPS, GradientWatch
from lora_studio.training.optimizers import (
    OPTIMIZERS,
    Group,
    adafactor,
    adamw,
    adamw8bit,
    lion,
    needs_of,
    prodigy,
)
from lora_studio.training.optimizers.choose import make_optimizer, optimizer_bytes
from lora_studio.training.prepare import prepare


def adapters() -> AdapterSet:
    parts = {"unet": torch.nn.ModuleDict({"a": torch.nn.Linear(6, 5), "b": torch.nn.Linear(3, 2200)})}
    options = AdapterOptions("lora", rank=2, alpha=2, seed=1)
    return inject(parts, {"unet": ("a", "b")}, options, canonical_path=lambda part, path: path)


DOTTED = ("torch.optim:NAdam", "torch.optim:Adafactor")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """An optimizer, if the package it is in is there."""
    found: str = request.param
    if found not in DOTTED and (package := needs_of(OPTIMIZERS[found]).package):
        pytest.importorskip(package)
    return found


def groups_of(own: AdapterSet) -> list[Group]:
    return [{"params": own.parameters("unet"), "lr": 1e-2}]


def optimizer_of(own: AdapterSet, name: str) -> torch.optim.Optimizer:
    return make_optimizer(TrainingConfig(optimizer=name, weight_decay=0.1), groups_of(own))


def steps(own: AdapterSet, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    """Optimizer steps with gradients that are keyed by the step."""
    for number in numbers:
        for key, parameter in own.named_parameters().items():
            parameter.grad = torch.randn(parameter.shape, generator=generator(number, key))
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", [*OPTIMIZERS.names(), *DOTTED], indirect=True)
def test_an_optimizer_goes_on_from_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Weights and all that it keeps; one layer is large enough for moments of 8 bits."""
    straight, stopped, resumed = adapters(), adapters(), adapters()
    third = optimizer_of(straight, name)
    steps(straight, third, range(1, 7))
    first, second = optimizer_of(stopped, name), optimizer_of(resumed, name)
    steps(stopped, first, range(1, 4))
    for file, content in state_files(State(stopped, first, counters=Counters(step=3))).items():
        (tmp_path / file).write_bytes(content)
    assert load_state(tmp_path, State(resumed, second)) == 3
    steps(resumed, second, range(4, 7))
    assert state_files(State(resumed, second)) == state_files(State(straight, third))
    with State(resumed, second).shown(), State(straight, third).shown():
        expected, found = straight.state(), resumed.state()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", OPTIMIZERS.names(), indirect=True)
@pytest.mark.parametrize("trained", [False, True])
def test_the_plans_memory_is_what_an_optimizer_keeps_at_most(name: str, trained: bool) -> None:
    """Prodigy keeps one number of a tensor that begins as zero, as `up` does."""
    own = adapters()
    for number, parameter in enumerate(own.named_parameters().values() if trained else ()):
        parameter.data = torch.randn(parameter.shape, generator=generator("trained", number))
    optimizer = optimizer_of(own, name)
    steps(own, optimizer, range(1, 2))
    states = [optimizer.state[one] for one in own.named_parameters().values()]
    kept = sum(v.nbytes for state in states for v in state.values() if isinstance(v, Tensor))
    planned = optimizer_bytes(TrainingConfig(optimizer=name), own)
    assert planned == kept or (name == "prodigy" and not trained and planned > kept)


def test_adamw_is_the_papers_update_to_rounding() -> None:
    """arXiv 1711.05101, algorithm 2, in float64."""
    start = torch.randn(40, 30, generator=generator("start"))
    parameter, expected = torch.nn.Parameter(start.clone()), start.double()
    optimizer = adamw([{"params": [parameter], "lr": 1e-2}], weight_decay=0.1)
    first = second = torch.zeros_like(expected)
    for step in range(1, 21):
        gradient = torch.randn(start.shape, generator=generator(step))
        parameter.grad = gradient
        optimizer.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.double() ** 2
        change = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        expected = expected - 1e-2 * (change + 0.1 * expected)
    torch.testing.assert_close(parameter.double(), expected, atol=2e-6, rtol=0)  # 20 roundings of float32


def test_adamw_is_one_call_for_all_tensors_on_the_cpu() -> None:
    own = adapters()
    assert optimizer_of(own, "adamw").param_groups[0]["fused"]


def test_the_groups_that_an_optimizer_was_made_from_stay_as_they_were() -> None:
    own = adapters()
    groups = [{"params": own.parameters("unet"), "lr": 1e-2}]
    adamw(groups, weight_decay=0.1)
    assert groups[0].keys() == {"params", "lr"}


def three_steps(build, start: Tensor, *, rate: float) -> Tensor:  # type: ignore[no-untyped-def]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = build([{"params": [parameter], "lr": rate}], weight_decay=0.1)
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in range(3):
        parameter.grad = torch.randn(start.shape, generator=generator("gradient", step))
        optimizer.step()
    return parameter.detach()


def test_lion_is_the_papers_update() -> None:
    """arXiv 2302.06675, algorithm 2, in float64."""
    start = torch.randn(12, 7, generator=generator("start"))
    expected, mean = start.double(), torch.zeros(12, 7, dtype=torch.float64)
    for step in range(3):
        gradient = torch.randn(start.shape, generator=generator("gradient", step)).double()
        expected = expected - 1e-2 * ((0.9 * mean + 0.1 * gradient).sign() + 0.1 * expected)
        mean = 0.99 * mean + 0.01 * gradient
    torch.testing.assert_close(three_steps(lion, start, rate=1e-2).double(), expected, atol=1e-6, rtol=0)


def test_adafactor_is_the_papers_update_at_a_rate_of_our_own() -> None:
    """arXiv 1804.04235, algorithm 4 with sec. 6's clipping, in float64."""
    start = torch.randn(12, 7, generator=generator("start"))
    expected = start.double()
    rows, columns = torch.zeros(12, 1, dtype=torch.float64), torch.zeros(1, 7, dtype=torch.float64)
    for step in range(1, 4):
        gradient = torch.randn(start.shape, generator=generator("gradient", step - 1)).double()
        kept = 1 - step**-0.8
        square = gradient**2 + 1e-30
        rows = kept * rows + (1 - kept) * square.sum(1, keepdim=True)
        columns = kept * columns + (1 - kept) * square.sum(0, keepdim=True)
        update = gradient / (rows @ columns / rows.sum()).sqrt()
        update = update / max(1.0, update.square().mean().sqrt().item())
        expected = expected - 1e-2 * (update + 0.1 * expected)
    torch.testing.assert_close(three_steps(adafactor, start, rate=1e-2).double(), expected, atol=1e-6, rtol=0)


def test_prodigys_first_rates_are_the_papers() -> None:
    """arXiv 2306.06101, algorithm 3: a rate that only grows, from the path and the gradients so far."""
    pytest.importorskip("prodigyopt")
    start = torch.randn(12, 7, generator=generator("start"))
    parameter = torch.nn.Parameter(start.clone())
    optimizer = prodigy([{"params": [parameter], "lr": 1.0}], weight_decay=0.0, use_bias_correction=False)
    beta3, d, r, s = 0.999**0.5, 1e-6, 0.0, torch.zeros(12, 7, dtype=torch.float64)
    for _ in range(30):  # of |x - 1|: the gradients agree, so that the rate grows
        gradient = (parameter.detach() - 1).sign().double()
        r = beta3 * r + (1 - beta3) * d**2 * (gradient * (start - parameter.detach()).double()).sum().item()
        s = beta3 * s + (1 - beta3) * d**2 * gradient
        d = max(d, r / s.abs().sum().item())
        parameter.grad = gradient.float()
        optimizer.step()
        assert optimizer.param_groups[0]["d"] == pytest.approx(d, rel=1e-2)
    assert d > 2e-6


def test_schedule_free_shows_the_mean_of_its_steps_and_gives_back_its_weights_bit_for_bit() -> None:
    """arXiv 2405.15682, eqs. 3 to 5: x is the mean of all z, y lies between them."""
    pytest.importorskip("schedulefree")
    own = adapters()
    optimizer = make_optimizer(TrainingConfig(optimizer="schedule_free", weight_decay=0), groups_of(own))
    before = {key: one.detach().double() for key, one in own.named_parameters().items()}
    means = {key: torch.zeros_like(one) for key, one in before.items()}
    squares = {key: torch.zeros_like(one) for key, one in before.items()}
    for step in range(1, 6):
        steps(own, optimizer, range(step, step + 1))
        for key, z in before.items():
            gradient = torch.randn(z.shape, generator=generator(step, key)).double()
            squares[key] = 0.999 * squares[key] + 0.001 * gradient**2
            before[key] = z - 1e-2 * gradient / ((squares[key] / (1 - 0.999**step)).sqrt() + 1e-8)
            means[key] = means[key] + (before[key] - means[key]) / step
    trained = own.state()
    with State(own, optimizer).shown():
        for key, shown in own.state().items():
            torch.testing.assert_close(shown.double(), means[key], atol=1e-5, rtol=0)
    assert all(torch.equal(one, trained[key]) for key, one in own.state().items())
    steps(own, optimizer, range(6, 7))  # it is in its training mode again


def test_adamw8bit_stays_near_adamw() -> None:
    pytest.importorskip("bitsandbytes")
    start = torch.randn(128, 64, generator=generator("start"))
    exact, coarse = (three_steps(one, start, rate=1e-2) for one in (adamw, adamw8bit))
    assert (coarse - exact).abs().mean() < 0.1 * (exact - start).abs().mean()


@pytest.mark.parametrize("name", [*OPTIMIZERS.names(), *DOTTED], indirect=True)
@pytest.mark.filterwarnings("ignore")
def test_a_bad_step_leaves_weights_and_optimizer_as_they_were(
    name: str, tmp_path: Path, recipe_file: Path
) -> None:
    rate = 1 if name == "prodigy" else 1e-3
    changes = (
        f"training.optimizer={name}",
        f"training.learning_rate={rate}",
        "training.lr_schedule=constant",
    )
    session = prepare(load_recipe(recipe_file, changes=changes), Run(tmp_path), ignore_events)
    loop, seen = session.loop, []
    loop.base_rates = [group["lr"] for group in loop.state.optimizer.param_groups]

    def poison(grad: Tensor) -> Tensor:
        seen.append(grad)
        return grad * float("nan") if len(seen) == 3 else grad

    on_gradient(session.adapters, session.adapters.layers[0].tensors["up"], poison)
    watch = GradientWatch(session.adapters)
    for step in (1, 2):
        loop.train_step(step, watch)
    before = state_files(loop.state)
    loop.train_step(3, watch)
    assert loop.state.counters.skipped == 1
    after = state_files(loop.state)
    tensors = [file for file in before if file.endswith(".safetensors")]
    assert all(before[file] == after[file] for file in tensors)
    kept = [json.loads(files["state.json"]).get("optimizer") for files in (before, after)]
    assert kept[0] == kept[1]
    loop.train_step(4, watch)
    assert state_files(loop.state)["adapters.safetensors"] != after["adapters.safetensors"]
    session.run.close()


def test_prodigys_rate_does_not_jump_when_something_stops() -> None:
    """Two alike tensors have the same estimate as one of them: that the other one stops changes nothing."""
    pytest.importorskip("prodigyopt")
    rates = []
    for stops in (False, True):
        draws = torch.Generator().manual_seed(3)
        two = [torch.nn.Parameter(torch.zeros(200)) for _ in range(2)]
        optimizer = prodigy([{"params": two, "lr": 1.0}], weight_decay=0.0)
        for step in range(60):
            grad = 0.05 * torch.randn(200, generator=draws) + 1
            two[1].requires_grad_(not stops or step < 20)
            for one in two:
                one.grad = grad.clone() if one.requires_grad else None
            optimizer.step()
        rates.append((optimizer.param_groups[0]["d"], optimizer.param_groups[0]["d_hat"]))
    assert rates[0][0] > 2e-6  # it had begun to grow
    assert rates[1] == pytest.approx(rates[0], rel=1e-4)


def test_a_long_warm_up_in_float16_is_not_taken_for_a_fault(tmp_path: Path, recipe_file: Path) -> None:
    class Enough(Exception):
        pass

    def after_step(step: int) -> bool:
        if step == FIRST_STEPS + 2:  # `up` is still so small that float16 has it as zero
            raise Enough
        return False

    changes = ("base.dtype=float16", "training.optimizer=prodigy", "training.learning_rate=1")
    changes += ("training.steps=400", "training.warmup_steps=150")
    session = prepare(load_recipe(recipe_file, changes=changes), Run(tmp_path), ignore_events)
    session.loop.after_step = after_step
    with pytest.raises(Enough):
        session.loop.run(1)
    session.run.close()
