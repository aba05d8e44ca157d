"""inspect tells what files are, and its numbers are those of the changes multiplied out."""

from __future__ import annotations

import hashlib
import io
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from console import run
from PIL import Image
from reference_files import metadata, reference_tensors
from safetensors.torch import save_file
from torch import Tensor

from lora_studio.families.layer_names import block_of
from lora_studio.tools.inspect import inspect_file
from lora_studio.tools.plots import norm_plot

Tensors = dict[str, Tensor]
NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


def drawn(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


def lora() -> tuple[Tensors, Tensor]:
    down, up = drawn(4, 768), drawn(320, 4)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(6.0)}
    return tensors, 1.5 * up @ down


def locon() -> tuple[Tensors, Tensor]:
    down, up = drawn(2, 320, 3, 3), drawn(320, 2, 1, 1)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(-1.0)}
    return tensors, -0.5 * torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)


def tucker() -> tuple[Tensors, Tensor]:
    down, mid, up = drawn(3, 320, 1, 1), drawn(3, 3, 3, 3), drawn(320, 3, 1, 1)
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    return tensors, torch.einsum("or,rskl,si->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0])


def loha() -> tuple[Tensors, Tensor]:
    first, second = (drawn(320, 2), drawn(2, 768)), (drawn(320, 2) + 1, drawn(2, 768) - 1)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors = dict(zip(names, (*first, *second), strict=True)) | {"alpha": torch.tensor(1.0)}
    return tensors, 0.5 * (first[0] @ first[1]) * (second[0] @ second[1])


def lokr() -> tuple[Tensors, Tensor]:
    w1, a, b = drawn(8, 8), drawn(40, 2), drawn(2, 96)
    tensors = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(4.0)}
    return tensors, 2 * torch.kron(w1, a @ b)


def full() -> tuple[Tensors, Tensor]:
    return {"diff": drawn(320, 768)}, drawn(320, 768)


KINDS = {"lora": lora, "locon": locon, "loha": loha, "lokr": lokr, "full": full}


@pytest.mark.parametrize("kind", [*KINDS, "tucker"])
def test_kinds_are_known_and_norms_are_those_of_the_dense_change(kind: str, tmp_path: Path) -> None:
    tensors, change = (KINDS | {"tucker": tucker})[kind]()
    name = CONV if kind in ("locon", "tucker") else NAME
    path = tmp_path / "file.safetensors"
    save_file({f"{name}.{end}": one.contiguous() for end, one in tensors.items()}, path)
    facts = inspect_file(path)
    assert facts.kind == ("locon" if kind == "tucker" else kind) and facts.family == "SD1"
    assert facts.norms["down 0"] == pytest.approx(change.double().norm().item(), rel=1e-5)
    assert sum(facts.layers.values()) == 1


def test_what_depends_on_the_base_is_said_to(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensors = {f"{NAME}.{end}": one for end, one in lora()[0].items()}
    save_file(tensors | {f"{NAME}.dora_scale": torch.ones(1, 768)}, path)
    assert inspect_file(path).kind == "dora" and inspect_file(path).norms == {"down 0": None}


@pytest.mark.parametrize(
    ("base", "layers", "parts"),
    [
        ("SD1", "", {"te": 72, "unet": 192}),
        ("SD2", "lora_te_", {"te": 138}),
        ("SDXL", "_4_1_", {"unet": 44}),
        ("SDXL", "encoder_layers_0_", {"te1": 6, "te2": 6}),
    ],
)
def test_bases_and_parts_are_told_from_the_header(
    base: str, layers: str, parts: dict[str, int], tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    save_file(reference_tensors(base, layers=layers), path, metadata=metadata(base))
    facts = inspect_file(path)
    assert facts.family == base and facts.layers == parts
    assert facts.ranks == (1, 1) and facts.alphas == (0.5, 0.5) and facts.dtypes == ("float16", "float32")


@pytest.mark.parametrize(
    ("tensors", "kind", "family", "note"),
    [
        ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, "embedding", "SDXL", "2 vectors"),
        ({"emb_params": torch.ones(3, 1024)}, "embedding", "SD2", "3 vectors"),
        ({"unet.mid.attn.to_q.down": torch.ones(2, 2)}, "other", "not known", "it is"),
        ({"encoder.down.0.weight": torch.ones(2)}, "other", "not known", "it is a VAE alone"),
    ],
)
def test_files_that_are_no_lora_are_told_as_what_they_are(
    tensors: Tensors, kind: str, family: str, note: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    save_file(tensors, path)
    facts = inspect_file(path)
    assert (facts.kind, facts.family) == (kind, family) and note in facts.notes[0]


def test_a_whole_base_is_a_checkpoint(tmp_path: Path) -> None:
    names = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight")
    text = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    path = tmp_path / "file.safetensors"
    save_file({name: torch.ones(1, 4, 1, 1) for name in (*names, text)}, path)
    facts = inspect_file(path)
    assert facts.kind == "checkpoint" and "1.x" in facts.family


def test_hashes_are_those_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({f"{NAME}.{end}": one for end, one in lora()[0].items()}, path, metadata={"a": "b"})
    content = path.read_bytes()
    behind = content[8 + int.from_bytes(content[:8], "little") :]
    hashes = inspect_file(path).hashes
    assert hashes["AutoV2"] == hashlib.sha256(content).hexdigest()[:10]
    assert hashes["sshs_model_hash"] == hashlib.sha256(behind).hexdigest()
    assert hashes["AutoV3"] == hashes["sshs_model_hash"][:12]
    save_file({f"{NAME}.{end}": one for end, one in lora()[0].items()}, path, {"sshs_model_hash": "0" * 64})
    assert any("another sshs_model_hash" in note for note in inspect_file(path).notes)


@pytest.mark.parametrize(
    ("said", "triggers"),
    [
        (
            {"modelspec.trigger_phrase": "zwx", "ss_tag_frequency": '{"f": {"cat": 1, "dog": 2}}'},
            ("zwx", "dog", "cat"),
        ),
        ({"ss_tag_frequency": '{"f": {"zwx": 3}, "g": {"zwx ": 2, "hat": 4}}'}, ("zwx", "hat")),
        ({"ss_tag_frequency": "[["}, ()),
        ({"ss_tag_frequency": "[1]", "modelspec.trigger_phrase": "zwx"}, ("zwx",)),
    ],
)
def test_trigger_words_stand_in_the_metadata(
    said: dict[str, str], triggers: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"emb_params": torch.ones(1, 768)}, path, metadata=said)
    facts = inspect_file(path)
    assert facts.triggers[: len(triggers)] == triggers and len(facts.triggers) <= len(triggers) + 1


def test_blocks_have_the_names_of_the_base() -> None:
    names = {
        NAME: "down 0",
        "lora_unet_mid_block_resnets_0_conv1": "mid",
        "lora_unet_middle_block_1_proj_in": "mid",
        "lora_unet_output_blocks_11_1_proj_in": "output 11",
        "lora_te2_text_model_encoder_layers_31_mlp_fc1": "te2 layer 31",
        "lora_unet_conv_in": "other",
        "anything": "other",
    }
    assert {name: block_of(name) for name in names} == names


def test_the_plot_has_a_bar_for_every_block() -> None:
    """In a band of the image where nothing but bars is dark blue."""
    norms = {"down 0": 1.0, "mid": 2.0, "up 1": None, "up 2": 1.5}
    image = Image.open(io.BytesIO(norm_plot(norms, "a $b file"))).convert("RGB")
    width, height = image.size
    row = [image.getpixel((x, int(height * 0.7))) for x in range(width)]
    blue = [pixel == (31, 78, 156) for pixel in row]
    assert sum(now and not before for before, now in pairwise(blue)) == 3


def test_the_command_says_all_of_it_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plot = tmp_path / "one.safetensors", tmp_path / "plot.png"
    save_file(reference_tensors("SD1", layers="down_blocks_0"), path, metadata=metadata("SD1"))
    code, out, _ = run(["inspect", str(path), "--out", str(plot)], capsys)
    assert code == 0 and all(word in out for word in ("SD1", "AutoV3", "down 0", "InvokeAI", "completely"))
    before = plot.read_bytes()
    code, _, err = run(["inspect", str(path), "--out", str(plot)], capsys)
    assert code == 2 and "is there already" in err and plot.read_bytes() == before
    assert run(["inspect", str(path), "--out", str(plot), "--force"], capsys)[0] == 0
    code, out, _ = run(["inspect", str(path), "--json"], capsys)
    assert code == 0 and json.loads(out)["ranks"] == [1, 1]


def test_a_damaged_file_is_named_in_the_table_of_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(reference_tensors("SD1", layers="down_blocks_0"), tmp_path / "good.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:1000])
    (tmp_path / "note.txt").write_text("not a LoRA")
    code, out, _ = run(["inspect", str(tmp_path)], capsys)
    assert code == 0 and "7 of 7" in out and "damaged" in out and "cut.safetensors" in out
    code, out, _ = run(["inspect", str(tmp_path), "--json"], capsys)
    damaged, good = json.loads(out)
    assert "error" in damaged and good["kind"] == "lora"
    assert run(["inspect", str(tmp_path / "cut.safetensors")], capsys)[0] == 2


def test_what_cannot_be_inspected_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, arguments in (
        ("there is no file", [str(tmp_path / "none")]),
        ("there is no .safetensors file", [str(tmp_path)]),
        ("is for one file", [str(tmp_path), "--out", str(tmp_path / "a.png")]),
    ):
        code, _, err = run(["inspect", *arguments], capsys)
        assert code == 2 and words in err and len(err.splitlines()) == 1
