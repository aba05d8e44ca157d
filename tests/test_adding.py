"""The measure of the design: a kind and a family are added in their own files and a row of a table, no more.

The contract tests of their rooms then run over them untouched.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from added import GAIN_FILE, Gelu
from diffusers import DiffusionPipeline
from tiny import SD15_LAYERS, recipe_text

from lora_studio.adapters import ADAPTERS
from lora_studio.families import FAMILIES
from lora_studio.families.loading import load_base
from lora_studio.lora_file.convertible import read_places
from lora_studio.lora_file.kinds import KINDS
from lora_studio.recipe.load import load_recipe
from lora_studio.training.finish import Finished
from lora_studio.training.finish.export import ExportRequest, export_run
from lora_studio.training.session import train

BaseOf = Callable[[str], Path]


def contract(room: str) -> ModuleType:
    """A room's contract tests, as a module of its own."""
    path = Path(__file__).parent / room / "test_contract.py"
    spec = spec_from_file_location(f"contract_of_{room}", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def promises(module: ModuleType, about: set[str], given: set[str]) -> list[str]:
    """The tests of one of `about` that need nothing else but what is given."""
    tests = {name: one for name, one in vars(module).items() if name.startswith("test_")}
    needed = {name: set(inspect.signature(one).parameters) for name, one in tests.items()}
    return [name for name, needs in needed.items() if needs & about and needs <= about | given]


KIND, FAMILY = contract("adapters"), contract("families")
OF_KIND = promises(KIND, {"kind"}, set())
OF_FAMILY = promises(FAMILY, {"name", "family"}, {"pipeline", "base_of", "images", "tmp_path"})


@pytest.fixture
def added_kind(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(ADAPTERS.entries, "gain", "added:GAIN")
    monkeypatch.setattr("lora_studio.lora_file.kinds.KINDS", KINDS)
    KINDS.append(GAIN_FILE)
    monkeypatch.setattr(KIND, "SEEDLESS", (*KIND.SEEDLESS, "gain"))
    return "gain"


@pytest.fixture(autouse=True)
def _kinds_as_they_were() -> Any:
    before = list(KINDS)
    yield
    KINDS[:] = before


def test_there_are_contracts_to_keep() -> None:
    assert len(OF_KIND) >= 8 and len(OF_FAMILY) >= 10


@pytest.mark.parametrize("promise", OF_KIND)
def test_an_added_kind_keeps_the_contract(promise: str, added_kind: str) -> None:
    getattr(KIND, promise)(added_kind)


def test_a_run_with_an_added_kind_ends_with_a_file_that_is_read_again(
    added_kind: str, tiny_base: Path, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(images, str(tiny_base), steps=2), "utf-8")
    changes = ("adapter.kind=gain", "adapter.rank=24", "training.learning_rate=1e-2")
    result = train(load_recipe(path, changes=changes), tmp_path / "run")
    assert isinstance(result, Finished) and result.report.ok, result
    (made,) = export_run(result.folder, ExportRequest(targets=("native",), dtype="float32"))
    assert made.report.ok, made.report.faults
    (file,) = made.made.paths
    layers, base = read_places(file).layers, load_base(str(tiny_base))
    assert len(layers) == SD15_LAYERS
    for place, layer in layers.items():
        weight = base.layer(*place).weight
        gain = torch.diag(layer.tensors["gain"].float().flatten())
        assert layer.kind is GAIN_FILE and gain.any()
        torch.testing.assert_close(layer.delta(weight).flatten(1), gain @ weight.flatten(1))


@pytest.fixture(scope="module")
def gelu_base(base_of: BaseOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(base_of("sd15"), tmp_path_factory.mktemp("gelu") / "base"))
    config = folder / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"act_fn": "gelu"}), "utf-8")
    return folder


@pytest.fixture
def added_family(base_of: BaseOf, gelu_base: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the contract's tests are given."""
    monkeypatch.setattr(FAMILIES, "entries", {"gelu": "added:Gelu"} | FAMILIES.entries)
    monkeypatch.setitem(FAMILY.BASES, "gelu", shutil.copytree)
    traits = ("sd_v1_gelu", False, "stable-diffusion-v1-gelu/lora", "epsilon", FAMILY.STABILITY)
    monkeypatch.setitem(FAMILY.TRAITS, "gelu", traits)
    monkeypatch.setitem(FAMILY.CARDS, "gelu", "GELU")
    monkeypatch.setitem(FAMILY.SHAPES, "gelu", FAMILY.SHAPES["sd15"])
    return {"name": "gelu", "base_of": lambda name: gelu_base if name == "gelu" else base_of(name)}


@pytest.mark.parametrize("promise", OF_FAMILY)
def test_an_added_family_keeps_the_contract(
    promise: str, added_family: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    test = getattr(FAMILY, promise)
    given = added_family | {"images": images, "tmp_path": tmp_path}
    wanted = inspect.signature(test).parameters
    folder = given["base_of"]("gelu")
    if "family" in wanted:
        given["family"] = load_base(str(folder))
        assert type(given["family"]) is Gelu
    if "pipeline" in wanted:
        given["pipeline"] = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        given["pipeline"].set_progress_bar_config(disable=True)
    test(**{name: given[name] for name in wanted})
