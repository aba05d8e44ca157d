"""What a recipe may ask of an optimizer, and in which words it is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from ready import prepared
from tiny import recipe_text

from lora_studio.errors import RecipeError
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.training import TrainingConfig
from lora_studio.training.optimizers import OPTIMIZERS, Group, needs, needs_of
from lora_studio.training.optimizers.choose import (
    make_optimizer,
    optimizer_faults,
    trial_faults,
)


def training(**values: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"lr_schedule": "constant"} | values)


def recipe(training: TrainingConfig, **sections: object) -> Recipe:
    values = {"name": "a", "base": {"model": "pocket"}, "data": {"images": "a"}, "training": training}
    return Recipe.model_validate(values | sections)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": "adamx"}, r"unknown optimizer 'adamx'; did you mean 'adamw'\?"),
        ({"optimizer": "schedule_free", "lr_schedule": "cosine"}, 'set training.lr_schedule = "constant"'),
        ({"optimizer": "schedule_free", "ema": 0.9}, "averages the weights itself; leave ema out"),
        ({"optimizer_options": {"beta": [0.9, 0.99]}}, "has 'beta', which 'adamw' does not know; did you"),
        ({"optimizer_options": {"lr": 1}}, r"has 'lr'; set training\.learning_rate instead"),
        ({"optimizer": "torch.optim:NAdm"}, r"cannot be imported \(.*NAdm.*\); write it as \"module:Class\""),
        ({"optimizer": "no_such:Adam"}, "cannot be imported .*no_such"),
        ({"optimizer": "torch:float32"}, r"is not a subclass of torch\.optim\.Optimizer"),
        ({"optimizer": "torch.optim:Rprop"}, r"has no weight decay; set training\.weight_decay = 0"),
    ],
)
def test_what_does_not_go_with_an_optimizer_is_one_sentence(values: dict[str, object], words: str) -> None:
    (fault,) = faults_of(recipe(training(**values)))
    assert re.search(words, fault), fault


def faults_of(recipe: Recipe) -> list[str]:
    return optimizer_faults(recipe.training, recipe.adapter, recipe.tokens)


TOKEN = {"token": "zwx", "start": "fox"}


@pytest.mark.parametrize("name", ["schedule_free", "schedulefree:AdamWScheduleFree"])
@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"tokens": [TOKEN]},
            r"size tokens\.keep_norm would spoil .*; set keep_norm = false in \[\[tokens\]\], or",
        ),
        (
            {"adapter": {"max_norm": 1}},
            r"size adapter\.max_norm would spoil .*; set adapter\.max_norm = 0, or take",
        ),
        (
            {"tokens": [TOKEN], "adapter": {"max_norm": 1}},
            r"set keep_norm = false in \[\[tokens\]\] and adapter\.max_norm = 0, or take another optimizer\.",
        ),
    ],
)
def test_what_holds_the_size_of_weights_does_not_go_with_a_mean_of_the_optimizers_own(
    name: str, sections: dict[str, object], words: str
) -> None:
    """Shown is x = y + (y - z) (1 / beta1 - 1): where y alone is scaled, z departs from it without end."""
    pytest.importorskip("schedulefree")
    (fault,) = faults_of(recipe(training(optimizer=name), **sections))
    assert re.search(words, fault), fault
    free = {"tokens": [TOKEN | {"keep_norm": False}]}
    assert faults_of(recipe(training(optimizer=name), **free)) == []
    assert faults_of(recipe(training(), **sections)) == []


def test_an_optimizer_that_is_not_installed_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lora_studio.training.optimizers.choose.find_spec", lambda name: None)
    (fault,) = faults_of(recipe(training(optimizer="prodigy", learning_rate=1)))
    assert fault.endswith("needs the package prodigyopt, which is not installed; run: pip install prodigyopt")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": "torch.optim:LBFGS", "weight_decay": 0}, "does not work on this machine .*closure"),
        ({"optimizer_options": {"betas": [2.0, 0.9]}}, r"cannot be made with .*betas.*Invalid beta"),
        ({"optimizer_options": {"betas": [0.9]}}, r"cannot be made with these .*optimizer_options, .*betas"),
        (
            {"optimizer": "lion", "optimizer_options": {"betas": [0.9]}},
            r"does not work with these training\.optimizer_options, .*betas.*; correct them, or leave",
        ),
        (
            {"optimizer_options": {"eps": 1e29}, "weight_decay": 0},
            "does not work with these .*eps.* its steps change nothing",
        ),
        (
            {"optimizer": "torch.optim:SGD", "learning_rate": 1e-30, "optimizer_options": {"momentum": 0.9}},
            "does not work on this machine .*: its steps change nothing",
        ),
        ({"optimizer": "torch.optim:SGD", "learning_rate": 1e-30}, "its steps change nothing"),
        ({"optimizer": "refused:Listing"}, "keeps a list .past., which no checkpoint can hold"),
    ],
)
def test_an_optimizer_that_fails_in_a_trial_is_refused(
    values: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "refused", sys.modules[__name__])
    (fault,) = trial_faults(training(**values), torch.device("cpu"))
    assert re.search(words, fault), fault


class Listing(torch.optim.SGD):
    """Keeps what JSON and safetensors cannot hold."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step()
        self.state[self.param_groups[0]["params"][0]]["past"] = [1, 2]


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_optimizer_of_the_table_passes_its_trial(name: str) -> None:
    if package := needs_of(OPTIMIZERS[name]).package:
        pytest.importorskip(package)
    values = {"optimizer": name, "learning_rate": 1.0 if name == "prodigy" else 1e-3}
    assert faults_of(recipe(training(**values))) == []
    assert trial_faults(training(**values), torch.device("cpu")) == []


def test_prodigy_takes_one_rate_for_all() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in (1.0, 0.5)]
    with pytest.raises(RecipeError, match=r"several factors on it: 0\.5, 1; make them equal"):
        make_optimizer(training(optimizer="prodigy", weight_decay=0), groups)


@needs("sign_sgd_of_no_package", own_schedule=True)
def sign_sgd(groups: list[Group], *, weight_decay: float, momentum: float = 0.0) -> torch.optim.Optimizer:
    """Steps of the learning rate along the gradients' signs: what a new optimizer of the table looks like."""

    class SignSgd(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for tensor in group["params"]:
                    if tensor.grad is not None:
                        tensor.grad.sign_()
            super().step()

    return SignSgd(groups, momentum=momentum, weight_decay=weight_decay)


@pytest.fixture
def with_sign_sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "a_new_optimizer", sys.modules[__name__])
    monkeypatch.setitem(OPTIMIZERS.entries, "sign_sgd", "a_new_optimizer:sign_sgd")


@pytest.mark.usefixtures("with_sign_sgd")
def test_an_optimizer_that_is_added_to_the_table_alone_trains(
    tmp_path: Path, tiny_base: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_studio.training.optimizers.choose.find_spec", lambda name: True)
    (tmp_path / "tiny.toml").write_text(recipe_text(images, str(tiny_base), steps=2), "utf-8")
    changes = (
        *("training.optimizer=sign_sgd", "training.lr_schedule=constant", "training.warmup_steps=0"),
        *("training.weight_decay=0", "training.learning_rate=1e-3", "samples.prompts=[]"),
    )
    session = prepared(load_recipe(tmp_path / "tiny.toml", changes=changes), tmp_path / "run")
    before = session.adapters.state()
    assert session.loop.run(1)
    session.run.close()
    moved = [(after - before[key]).abs() for key, after in session.adapters.state().items()]
    steps = torch.cat([one.flatten() for one in moved]) / 1e-3
    # each of two steps moves a number by the rate or, where it has no gradient, not at all
    assert torch.allclose(steps, steps.round(), atol=1e-3) and steps.max() == pytest.approx(2, abs=1e-3)


@pytest.mark.usefixtures("with_sign_sgd")
def test_what_an_added_optimizer_needs_is_asked_of_a_recipe() -> None:
    (fault,) = faults_of(recipe(training(optimizer="sign_sgd")))
    assert "needs the package sign_sgd_of_no_package, which is not installed" in fault
    (fault,) = faults_of(recipe(training(optimizer="sign_sg")))
    assert "did you mean 'sign_sgd'?" in fault
