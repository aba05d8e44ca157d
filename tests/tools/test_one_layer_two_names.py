"""One layer under two legal names is one layer, in every tool: names are read once, when a file is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_files import dense, relative, write_random_lora
from safetensors.torch import load_file, save_file

from lora_studio.errors import StudioError
from lora_studio.families.loading import load_base
from lora_studio.lora_file.base_weights import open_weights
from lora_studio.lora_file.factors import RankLimit
from lora_studio.lora_file.lora_file import base_layers
from lora_studio.lora_file.open import open_plain, open_together, read_plain
from lora_studio.tools.combine import Term, combine, resize
from lora_studio.tools.compare import compare
from lora_studio.tools.convert import convert
from lora_studio.tools.inspect import inspect_file
from lora_studio.tools.merge_into import merge_into
from lora_studio.verify import verify

SDXL = {"ss_base_model_version": "sdxl_base_v1-0"}
BLOCK = ("lora_unet_input_blocks_4_1_", "lora_unet_down_blocks_1_attentions_0_")
INSIDE = {"transformer_blocks_0_attn1_to_q": (640, 640), "transformer_blocks_0_attn2_to_k": (640, 2048)}
TEXT = {"text_model_encoder_layers_0_mlp_fc1": (3072, 768)}
CROSS = {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (320, 768)}
# two spellings of the same layers, the names that UIs know, and what the file says
PAIRS: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], dict[str, str]]] = {
    "SDXL's UNet": (
        {BLOCK[0] + name: shape for name, shape in INSIDE.items()},
        {BLOCK[1] + name: shape for name, shape in INSIDE.items()},
        SDXL,
    ),
    "a text encoder": (
        CROSS | {"lora_te_" + name: shape for name, shape in TEXT.items()},
        CROSS | {"lora_te1_" + name: shape for name, shape in TEXT.items()},
        {},
    ),
    "the first of two text encoders": (
        {BLOCK[0] + "proj_in": (640, 640), "lora_te1_" + next(iter(TEXT)): (3072, 768)},
        {BLOCK[0] + "proj_in": (640, 640), "lora_te_" + next(iter(TEXT)): (3072, 768)},
        SDXL,
    ),
    "a file that does not tell its base": (
        {BLOCK[0] + name: shape for name, shape in INSIDE.items()},
        {BLOCK[1] + "transformer_blocks_0_attn1_to_q": (640, 640)},
        {},
    ),
}


def two(name: str, folder: Path) -> tuple[Path, Path]:
    own, other, said = PAIRS[name]
    return (
        write_random_lora(folder / "a.safetensors", shapes=own, seed=1, metadata=said or None),
        write_random_lora(folder / "b.safetensors", shapes=other, seed=2, metadata=said or None),
    )


def by_own_names(name: str, path: Path) -> dict[str, torch.Tensor]:
    """The dense changes of the second file by the first one's names."""
    endings = {one[-12:]: one for one in PAIRS[name][0]}
    return {endings[one[-12:]]: value for one, value in dense(path).items()}


@pytest.mark.parametrize("name", PAIRS)
def test_combine_adds_them_up(name: str, tmp_path: Path) -> None:
    first, second = two(name, tmp_path)
    out = tmp_path / "out.safetensors"
    files = open_together([first, second])
    report = combine([Term(files[0], 1.0), Term(files[1], 0.5)], out, method="concat", dtype="float32")
    found, added = dense(out), by_own_names(name, second)
    assert found.keys() == dense(first).keys() and report.layers == len(PAIRS[name][0])
    for one, change in dense(first).items():
        assert relative(found[one], change + (0.5 * added[one] if one in added else 0)) < 1e-6


@pytest.mark.parametrize("name", PAIRS)
def test_compare_sees_layers_that_both_have(name: str, tmp_path: Path) -> None:
    files = open_together([*two(name, tmp_path)])
    found = compare(*(Term(file, 1.0) for file in files))
    assert {one.name for one in found.shared} == by_own_names(name, files[1].path).keys()
    assert found.alone[1] == 0 and not any("no layer in common" in note for note in found.notes)


def test_resize_and_convert_write_the_names_that_uis_know(tmp_path: Path) -> None:
    _, second = two("SDXL's UNet", tmp_path)
    wanted = {BLOCK[0] + name for name in INSIDE}
    out = tmp_path / "out.safetensors"
    resize(open_plain(second), out, RankLimit(rank=2))
    assert dense(out).keys() == wanted
    convert(second, "kohya", out=tmp_path / "again.safetensors")
    assert dense(tmp_path / "again.safetensors").keys() == wanted


def test_a_base_takes_them_by_any_of_its_names(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Into a miniature of two text encoders, by diffusers' paths, and by kohya's."""
    base = base_of("sdxl")
    family = load_base(str(base))
    layers = base_layers(family)
    part, path = "unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    own, other = family.ui_name(part, path), f"lora_unet_{path.replace('.', '_')}"
    said = {"ss_base_model_version": "sdxl_base_v1-0"}
    shape = tuple(layers[own].weight.shape)
    written = []
    for name in (own, other):
        file = write_random_lora(tmp_path / f"{len(name)}.safetensors", shapes={name: shape}, metadata=said)
        assert list(read_plain(file, "adapter.init_from").layers) == [own]
        out = tmp_path / f"merged_{len(name)}"
        merge_into(open_weights(str(base)), [Term(open_plain(file), 1.0)], out)
        written.append((out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())
    before = (base / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert written[0] == written[1] != before


def doubled(folder: Path, *, alike: bool) -> Path:
    """A layer by both names in one file, in float32 and in float16."""
    first, second = two("SDXL's UNet", folder)
    tensors = load_file(first)
    more = {key.replace(*BLOCK): one.half().float() for key, one in tensors.items()}
    if alike:
        tensors = {key: one.half() for key, one in tensors.items()}
    else:
        more = load_file(second)
    path = folder / "both.safetensors"
    save_file(tensors | more, path, metadata=SDXL)
    return path


def test_of_equal_contents_one_is_taken_and_that_is_said(tmp_path: Path) -> None:
    path = doubled(tmp_path, alike=True)
    file = open_plain(path)
    assert file.layers.keys() == {BLOCK[0] + name for name in INSIDE}
    assert any("2 layers twice" in note and BLOCK[0] in note and BLOCK[1] in note for note in file.notes)
    out = tmp_path / "out.safetensors"
    report = resize(file, out, RankLimit(rank=4), dtype="float32")
    assert any("2 layers twice" in note for note in report.notes)
    for name, change in dense(out).items():
        assert relative(change, dense(path)[name]) < 1e-5
    assert any("2 layers twice" in note for note in convert(path, "kohya", out=out, force=True).notes)
    told = verify(path)
    assert told.ok and any("the same contents" in note for note in told.notes)


def test_different_contents_are_refused_with_both_names(tmp_path: Path) -> None:
    path = doubled(tmp_path, alike=False)
    both = f"{BLOCK[1]}.* and {BLOCK[0]}"
    for read in (open_plain, lambda one: convert(one, "kohya"), lambda one: read_plain(one, "base.loras[0]")):
        with pytest.raises(StudioError, match=both):
            read(path)
    told = verify(path)
    assert not told.ok and any("different contents" in fault and BLOCK[1] in fault for fault in told.faults)
    assert any("2 layers twice in it" in note for note in inspect_file(path).notes)


def test_a_layer_by_kohyas_and_by_pefts_name_is_one(tmp_path: Path) -> None:
    name = next(iter(CROSS))
    tensors = load_file(write_random_lora(tmp_path / "a.safetensors", shapes=CROSS))
    stem = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    down, up = (tensors[f"{name}.lora_{end}.weight"] for end in ("down", "up"))
    path = tmp_path / "both.safetensors"
    save_file(tensors | {f"{stem}.lora_A.weight": down / 2, f"{stem}.lora_B.weight": up.clone()}, path)
    with pytest.raises(StudioError, match=f"{name} and {stem}"):  # alpha / rank is in one of them alone
        open_plain(path)
    assert not verify(path).ok
