"""verify tells valid files from invalid ones, whatever is wrong with them."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SD15_LAYERS
from torch import Tensor

from lora_studio.errors import StudioError
from lora_studio.families.loading import load_base
from lora_studio.lora_file.lora_file import ENDINGS, base_layers, open_lora
from lora_studio.lora_file.write import write_lora
from lora_studio.verify import check_against_base, check_file, check_rules, verify
from lora_studio.verify.trained import ask_merged, run_probe

FIRST = "lora_unet_down_blocks_0_attentions_0_proj_in"


def tensor_block(content: bytes) -> bytes:
    """A safetensors file without its header."""
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.fixture(scope="module")
def good_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A whole LoRA file for the miniature with random values, made without the trainer."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, module in base_layers(load_base(str(tiny_base))).items():
        if "attentions" not in name:
            continue
        weight: Tensor = module.weight  # type: ignore[assignment]
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, *weight.shape[1:]) * 0.1
        tensors[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], 2, *([1] * (weight.ndim - 2))) * 0.1
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    write_lora(path, tensors, dtype="float16", describe=lambda block: {"ss_base_model_version": "sd_v1"})
    return path


@pytest.mark.parametrize("name", ["good", "good.ckpt", "good.SAFETENSORS"])
def test_what_a_file_is_called_does_not_matter(
    good_file: Path, tiny_base: Path, tmp_path: Path, name: str
) -> None:
    """diffusers takes one of any other name for a pickle."""
    report = verify(Path(shutil.copyfile(good_file, tmp_path / name)), base=str(tiny_base))
    effect = verify(good_file, base=str(tiny_base)).checks["probe_effect"]
    assert report.ok and report.checks["probe_effect"] == effect


def changed(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(source)
    change(tensors)
    path = folder / "changed.safetensors"
    save_file(tensors, path)
    return path


def test_a_whole_file_is_whole_and_diffusers_agrees_with_the_merged_weights(
    good_file: Path, tiny_base: Path
) -> None:
    report = verify(good_file, base=str(tiny_base))
    assert report.ok, report.faults
    assert report.checks["keys_mapped"] == f"{SD15_LAYERS} of {SD15_LAYERS}"
    assert report.checks["probe_effect"] > 0
    assert report.checks["probe_difference_share"] < 1e-3  # float32 both: only the order of sums differs


Change = Callable[[dict[str, Tensor]], object]
FAULTS: dict[str, tuple[Change, str]] = {
    "missing up": (lambda t: t.pop(f"{FIRST}.lora_up.weight"), "lora_up.weight is missing"),
    "alpha 0": (lambda t: t.update({f"{FIRST}.alpha": torch.tensor(0.0)}), "1 layer with alpha 0"),
    "many alphas": (lambda t: t.update({f"{FIRST}.alpha": torch.ones(2)}), "it must be one number"),
    "not finite": (lambda t: t[f"{FIRST}.lora_down.weight"].fill_(float("nan")), "not finite"),
    "endless alpha": (lambda t: t[f"{FIRST}.alpha"].fill_(float("inf")), "not finite"),
    "all zero": (lambda t: [v.zero_() for k, v in t.items() if "lora_up" in k], "every layer is zero"),
    "renamed layer": (
        lambda t: [
            t.update({k.replace(FIRST, "lora_unet_nothing"): t.pop(k)}) for k in list(t) if FIRST in k
        ],
        f"1 of {SD15_LAYERS} layers is not in the base, first lora_unet_nothing",
    ),
    "wrong shape": (
        lambda t: t.update({f"{FIRST}.lora_down.weight": torch.ones(2, 7, 1, 1)}),
        "changes a weight of",
    ),
    "wrong rank": (
        lambda t: t.update({f"{FIRST}.lora_down.weight": torch.ones(3, 48, 1, 1)}),
        "do not fit together",
    ),
    "integers": (
        lambda t: t.update({f"{FIRST}.lora_down.weight": torch.ones(2, 16, 1, 1).long()}),
        "lora_down.weight has dtype int64",
    ),
    "another kind of tensors": (
        lambda t: [t.update({f"model.{k}": t.pop(k)}) for k in list(t)],
        "no UI loads all of it: no layer of a LoRA in it",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_found_and_named(name: str, good_file: Path, tmp_path: Path, tiny_base: Path) -> None:
    change, words = FAULTS[name]
    report = verify(changed(good_file, tmp_path, change), base=str(tiny_base))
    assert not report.ok and any(words in fault for fault in report.faults), report.faults


# what some UIs mind, so that a file from elsewhere is whole, and one of our own is not what it should be
BREACHES: dict[str, tuple[Change, str]] = {
    "missing alpha": (lambda t: t.pop(f"{FIRST}.alpha"), "alpha is missing"),
    "integer alpha": (lambda t: t.update({f"{FIRST}.alpha": torch.tensor(1)}), "alpha is int64"),
    "alpha of one dimension": (
        lambda t: t.update({f"{FIRST}.alpha": torch.ones(1)}),
        "kohya does not load all of it",
    ),
    "stray key": (
        lambda t: t.update({"something.else": torch.ones(1)}),
        "InvokeAI does not load all of it: 1 key of no layer, first something.else",
    ),
    "no cross-attention": (
        lambda t: [t.pop(k) for k in list(t) if "attn2_to_k" in k or "attn2_to_v" in k],
        "no cross-attention",
    ),
    "a linear layer as a convolution": (
        lambda t: [t.update({k: t[k][..., None, None]}) for k in list(t) if "attn1_to_q.lora" in k],
        "diffusers does not load all of it",
    ),
}


@pytest.mark.parametrize("name", BREACHES)
def test_what_some_ui_minds_is_whole_from_elsewhere_but_no_file_of_our_own(
    name: str, good_file: Path, tmp_path: Path, tiny_base: Path
) -> None:
    change, words = BREACHES[name]
    file = open_lora(changed(good_file, tmp_path, change))
    report = check_file(file)
    check_against_base(file, load_base(str(tiny_base)), report)
    assert report.ok, report.faults
    check_rules(file, report)
    assert any(words in fault for fault in report.faults), report.faults


def test_a_file_that_keeps_the_rules_has_no_fault(good_file: Path, tiny_base: Path) -> None:
    file = open_lora(good_file)
    report = check_file(file)
    check_against_base(file, load_base(str(tiny_base)), report)
    check_rules(file, report)
    assert report.ok and {one.loads for one in report.uis} == {"completely"}
    assert report.checks["share_of_layers_not_zero"] == 1 and report.checks["scale"] == [0.5]


def test_a_file_that_diffusers_cannot_load_is_not_given_to_it(
    good_file: Path, tmp_path: Path, tiny_base: Path
) -> None:
    report = verify(changed(good_file, tmp_path, BREACHES["stray key"][0]), base=str(tiny_base))
    assert report.ok and "left out" in report.checks["probe"]


def test_tensors_are_read_when_they_are_asked_for(good_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "soon_gone.safetensors"
    path.write_bytes(good_file.read_bytes())
    file = open_lora(path)
    path.unlink()
    assert len(file.layers) == SD15_LAYERS and set(file.layers[FIRST].tensors) == set(ENDINGS)
    with pytest.raises(StudioError, match="cannot be read"):
        file.layers[FIRST].tensors["alpha"]


def test_a_wrong_scale_is_caught_by_the_probe(good_file: Path, tmp_path: Path, tiny_base: Path) -> None:
    """What PEFT names with a separate alpha suffer: the loader's scale is not the file's."""
    from lora_studio.verify import VerifyReport
    from lora_studio.verify.trained import ProbeOutput, ask_diffusers, compare_probe

    family = load_base(str(tiny_base))
    file = open_lora(good_file)
    halved = open_lora(
        changed(good_file, tmp_path, lambda t: [v.mul_(0.5) for k, v in t.items() if "alpha" in k])
    )
    expected = ask_merged(halved, family)
    report = VerifyReport("x")
    compare_probe(ask_diffusers(file.path, family), ProbeOutput(expected.tuned, expected.effect), report)
    assert "differs by" in report.faults[0]


def test_the_probe_leaves_the_base_as_it_was(good_file: Path, tiny_base: Path) -> None:
    family = load_base(str(tiny_base))
    before = run_probe(family)
    ask_merged(open_lora(good_file), family)
    assert torch.equal(run_probe(family), before)


def test_without_a_base_the_file_alone_is_looked_at(good_file: Path) -> None:
    report = verify(good_file)
    assert report.ok and "not known" in str(report.checks["base"]) and "keys_mapped" not in report.checks


def test_a_file_does_not_choose_what_is_downloaded_or_opened(good_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "named.safetensors"
    save_file(load_file(good_file), path, metadata={"lora_studio.base": "somebody/anything"})
    assert "not known" in str(verify(path).checks["base"])


@pytest.mark.parametrize(
    ("keep", "words"), [(0, "but empty"), (7, "is cut short"), (100, "is cut short"), (5000, "is cut short")]
)
def test_a_file_cut_short_is_faulty_in_one_sentence(
    good_file: Path, tmp_path: Path, keep: int, words: str
) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(good_file.read_bytes()[:keep])
    report = verify(path)
    assert not report.ok and len(report.faults) == 1 and words in report.faults[0]


def test_the_same_tensors_give_the_same_bytes_with_sorted_metadata(tmp_path: Path) -> None:
    tensors = {"a.alpha": torch.tensor(1.0), "b.alpha": torch.arange(3.0)}
    describe = {f"key{i}": str(i) for i in range(20)}
    contents = []
    for name in ("one", "two"):
        path = tmp_path / name
        write_lora(path, tensors, dtype="float16", describe=lambda block: dict(describe))
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    (length,) = struct.unpack("<Q", contents[0][:8])
    header = json.loads(contents[0][8 : 8 + length])
    assert list(header["__metadata__"]) == sorted(describe) and length % 8 == 0
    assert torch.equal(load_file(tmp_path / "one")["b.alpha"], torch.arange(3.0).half())


def test_the_model_hash_is_that_of_everything_behind_the_header(good_file: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def describe(block: bytes) -> dict[str, str]:
        seen.append(hashlib.sha256(block).hexdigest())
        return {"any": "metadata"}

    path = tmp_path / "hashed.safetensors"
    write_lora(path, load_file(good_file), dtype="float16", describe=describe)
    assert seen == [hashlib.sha256(tensor_block(path.read_bytes())).hexdigest()]
    assert seen == [hashlib.sha256(tensor_block(good_file.read_bytes())).hexdigest()]


def test_values_that_do_not_fit_into_float16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="do not fit into float16"):
        write_lora(tmp_path / "x", {"a.alpha": torch.tensor(1e6)}, dtype="float16", describe=lambda block: {})
    assert not (tmp_path / "x").exists()
