"""A base is in main memory once, in the run's dtype, from its files to the verified end."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import write_random_lora
from ready import prepared
from safetensors.torch import load_file, save_file
from tiny import recipe_text
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_studio.errors import BaseModelError, ExportMismatch
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.lora_file.lora_file import base_layers
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.training.finish import Finished
from lora_studio.training.loop.state import State
from lora_studio.training.prepare import base_model
from lora_studio.training.prepare.checks import check_recipe
from lora_studio.training.session import train

BFLOAT16 = "base.dtype=bfloat16"
CPU = torch.device("cpu")


def cast_copy(base: Path, folder: Path, dtype: torch.dtype) -> Path:
    """The base with weights of float16 numbers in files of `dtype`."""
    shutil.copytree(base, folder)
    for path in folder.rglob("*.safetensors"):
        tensors = {key: tensor.half().to(dtype) for key, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def halved(base_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The SDXL miniature in float16 files, and the same numbers in float32 ones."""
    folder = tmp_path_factory.mktemp("bases")
    made = {"float16": torch.float16, "float32": torch.float32}
    return {name: cast_copy(base_of("sdxl"), folder / name, dtype) for name, dtype in made.items()}


@pytest.fixture
def recipe_of(images: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def made(base: Path, *changes: str, extra: str = "") -> Recipe:
        path = tmp_path / "tiny.toml"
        path.write_text(recipe_text(images, str(base), steps=2, extra=extra), "utf-8")
        return load_recipe(path, changes=changes)

    return made


class LiveBytes(TorchDispatchMode):
    """Counts what operations allocate in main memory and have not freed; of mapped files what is in use."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set[int]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor) and one.device == CPU:
                self.count(one.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) not in self.known:
            self.known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.freed, key, storage.nbytes())

    def freed(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.now -= size


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_no_second_copy_is_made_while_a_half_precision_base_is_loaded(
    precision: str,
    halved: dict[str, Path],
    recipe_of: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside the weights in the run's dtype there is never more than a few tensors at a time."""
    monkeypatch.setattr("lora_studio.families.stored.MAPPED_BYTES", 1, raising=False)  # a window of a tensor
    recipe, dtype = recipe_of(halved["float16"], f"base.dtype={precision}"), getattr(torch, precision)
    check_recipe(recipe)  # which tries the machine once
    with LiveBytes() as live:
        family = check_recipe(recipe).family
        family.cast(dtype)
    weights = [one for part in family.parts.values() for one in part.parameters()]
    assert {one.dtype for one in family.parts["unet"].parameters()} == {dtype}
    assert live.peak <= sum(one.nbytes for one in weights) + 4 * max(one.numel() * 4 for one in weights)


def test_the_base_is_loaded_once_for_the_whole_run(
    halved: dict[str, Path], recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[bool]()

    def load(model: str, *, weights: bool = True, **how: Any) -> ModelFamily:
        asked.append(weights)
        return load_base(model, weights=weights, **how)

    monkeypatch.setattr(base_model, "load_base", load)
    result = train(recipe_of(halved["float16"], BFLOAT16), tmp_path / "run")
    assert isinstance(result, Finished) and result.report.ok
    assert result.report.checks["base_tensors"] > 100 and result.report.checks["probe_effect"] > 0
    assert asked.count(True) == 1


def test_a_run_is_the_same_whatever_dtype_the_files_have(
    halved: dict[str, Path], recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Bit for bit: what the base's files hold counts, exactly, and not how."""
    files = []
    for name, base in halved.items():
        result = train(recipe_of(base, BFLOAT16, "adapter.text_encoder=true"), tmp_path / name)
        assert isinstance(result, Finished) and result.lora_file is not None
        files.append(load_file(result.lora_file))
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(tensor, files[1][key]) for key, tensor in files[0].items())


def test_fingerprints_do_not_depend_on_the_dtype_in_memory(halved: dict[str, Path]) -> None:
    exact = load_base(str(halved["float32"]))
    for base in halved.values():
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            family = load_base(str(base), dtype=dtype)
            assert [family.fingerprint(part) for part in family.parts] == [
                exact.fingerprint(part) for part in exact.parts
            ]
            assert family.text_fingerprint() == exact.text_fingerprint()


def test_merged_loras_are_added_in_float32_before_the_cast(
    halved: dict[str, Path], recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    shapes = {
        name: layer.weight.shape for name, layer in base_layers(load_base(str(halved["float32"]))).items()
    }
    for seed, name in enumerate("ab"):
        write_random_lora(tmp_path / f"{name}.safetensors", shapes=shapes, seed=seed)
    loras = '[[base.loras]]\nfile = "a.safetensors"\n[[base.loras]]\nfile = "b.safetensors"\nstrength = 0.3\n'
    recipe = recipe_of(halved["float16"], extra=loras)
    exact, cast = (base_model.base_of(recipe, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    plain, changed = load_base(str(halved["float16"])), 0
    for part, module in exact.parts.items():
        dtype = cast.dtype_of(part)
        assert cast.fingerprint(part) == exact.fingerprint(part)
        for key, tensor in module.state_dict().items():
            assert torch.equal(cast.parts[part].state_dict()[key], tensor.to(dtype)), key
            changed += not torch.equal(plain.parts[part].state_dict()[key], tensor)
    assert changed > 100


def test_what_is_not_needed_any_more_is_dropped_and_read_again_for_the_probe(
    halved: dict[str, Path], recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    session = prepared(recipe_of(halved["float16"], BFLOAT16), tmp_path / "run")
    family, whole = session.family, load_base(str(halved["float16"]), dtype=torch.bfloat16)
    there = {name: not next(part.parameters()).is_meta for name, part in family.parts.items()}
    assert there == {"unet": True, "vae": False, "text_encoder": False, "text_encoder_2": False}
    fingerprint = family.fingerprint("text_encoder")
    with family.placed(*family.parts):
        for name in ("vae", "text_encoder", "text_encoder_2"):
            own = family.parts[name].state_dict()
            assert all(torch.equal(own[key], one) for key, one in whole.parts[name].state_dict().items())
        assert torch.equal(family.encode_text(["a"])["text"], whole.encode_text(["a"])["text"])
    assert family.fingerprint("text_encoder") == fingerprint == whole.fingerprint("text_encoder")
    drawn = prepared(recipe_of(halved["float16"], "samples.prompts=['zwx']"), tmp_path / "drawn").family
    assert not any(one.is_meta for part in drawn.parts.values() for one in part.parameters())


def test_a_dropped_part_whose_file_was_replaced_is_one_sentence(
    halved: dict[str, Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(halved["float16"], tmp_path / "base"))
    family = load_base(str(base))
    family.drop("vae")
    file = base / "vae/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes())
    with pytest.raises(BaseModelError, match="was changed or taken away while the run needed it"):
        family.place(CPU, "vae")


@pytest.mark.parametrize("quantize", ["none", "bnb_nf4"])
def test_a_frozen_weight_that_changed_while_training_is_told(
    quantize: str,
    halved: dict[str, Path],
    recipe_of: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a layer without an adapter, by a little, which a probe alone may not see."""
    changes = ("base.quantize=" + quantize, "training.checkpoint_every=1")
    recipe = recipe_of(halved["float16"], *changes)
    unspoiled = train(recipe, tmp_path / "good")
    assert isinstance(unspoiled, Finished) and unspoiled.report.ok
    shown = State.shown

    def spoil(state: State) -> Any:
        part = state.adapters.layers[0].module
        bias = next(one for one in _unet_of(part).parameters() if not one.requires_grad and one.ndim == 1)
        bias.data[0] += 1e-2
        return shown(state)

    holder = list[ModelFamily]()

    def keep(model: str, **how: Any) -> ModelFamily:
        holder.append(load_base(model, **how))
        return holder[-1]

    def _unet_of(part: object) -> torch.nn.Module:
        return holder[0].parts["unet"]

    monkeypatch.setattr(base_model, "load_base", keep)
    monkeypatch.setattr(State, "shown", spoil)
    with pytest.raises(ExportMismatch, match="1 tensors of the frozen base are not what its files have"):
        train(recipe, tmp_path / "spoiled")
