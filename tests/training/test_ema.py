"""The mean of the weights: the formula, and that it leaves the weights alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.errors import CheckpointError
from lora_studio.lora_file.lora_file import open_lora
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.training.finish import Finished
from lora_studio.training.loop.state import ADAPTERS, EMA, Ema, decay_at
from lora_studio.training.session import train


def adapters(rank: int = 2) -> AdapterSet:
    parts = {"unet": torch.nn.ModuleDict({"a": torch.nn.Linear(6, 5)})}
    options = AdapterOptions("lora", rank=rank, alpha=2, seed=1)
    return inject(parts, {"unet": ("a",)}, options, canonical_path=lambda part, path: path)


def test_it_is_the_weighted_sum_of_all_values_with_a_decay_that_warms_up() -> None:
    own = adapters()
    ema, up = Ema(own, 0.9), own.layers[0].tensors["up"]
    expected = up.detach().double()
    for update in range(1, 200):
        with torch.no_grad():
            up.copy_(torch.randn(up.shape, generator=generator(update)))
        ema.update(update)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * up.detach().double()
    torch.testing.assert_close(ema.state()["unet.a.up"].double(), expected, atol=1e-6, rtol=0)


def test_the_decay_begins_small_and_ends_as_asked() -> None:
    assert decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert decay_at(10**6, 0.999) == 0.999


def test_applied_shows_the_mean_and_gives_the_weights_back_even_after_an_error() -> None:
    own = adapters()
    ema, before = Ema(own, 0.9), own.state()
    with torch.no_grad():
        own.layers[0].tensors["up"].add_(1)
    trained = own.state()
    with pytest.raises(KeyError), ema.applied():
        assert all(torch.equal(value, before[key]) for key, value in own.state().items())
        raise KeyError
    assert all(torch.equal(value, trained[key]) for key, value in own.state().items())


def test_the_mean_of_other_adapters_is_refused() -> None:
    with pytest.raises(CheckpointError, match="does not fit these adapters"):
        Ema(adapters(), 0.9).load(Ema(adapters(rank=3), 0.9).state())


def test_the_exported_file_holds_the_mean_and_the_run_trains_as_without_it(
    tmp_path: Path, recipe_file: Path, finished: Finished
) -> None:
    from safetensors.torch import load_file

    changes = ("training.ema=0.9", 'export.dtype="float32"', "samples.prompts=[]")
    result = train(load_recipe(recipe_file, changes=changes), tmp_path / "run")
    assert isinstance(result, Finished)
    last = "checkpoints/step_000004"
    plain = load_file(finished.folder / last / ADAPTERS)
    weights, means = (load_file(tmp_path / "run" / last / name) for name in (ADAPTERS, EMA))
    assert all(torch.equal(weights[key], plain[key]) for key in plain)
    file = open_lora(result.lora_file)
    layers = [key.removesuffix(".up") for key in means if key.endswith(".up")]
    assert len(layers) == len(file.layers)
    for layer in layers:
        mean = means[f"{layer}.up"].flatten(1) @ means[f"{layer}.down"].flatten(1)  # alpha is the rank
        torch.testing.assert_close(file.delta("lora_" + layer.replace(".", "_")).flatten(1), mean)
        assert not torch.equal(means[f"{layer}.up"], weights[f"{layer}.up"])
