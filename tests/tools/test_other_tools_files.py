"""Files of other tools put into plain LoRA: names, numbers and companions; what is left out is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_files import dense, relative, write_random_lora
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from lora_studio.cli import app
from lora_studio.errors import StudioError
from lora_studio.families.loading import load_base
from lora_studio.lora_file.factors import RankLimit
from lora_studio.lora_file.lora_file import base_layers
from lora_studio.lora_file.open import open_plain
from lora_studio.tools.combine import Term, combine, resize
from lora_studio.tools.convert import convert

Tensors = dict[str, Tensor]
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
QUERY = KEY.replace("to_k", "to_q")
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
SHAPES = {KEY: (640, 768), KEY.replace("to_k", "to_out_0"): (640, 640), TEXT: (768, 768)}
CONV = {"lora_unet_down_blocks_1_resnets_0_conv1": (640, 320, 3, 3)}
ORIGINAL = "diffusion_model.input_blocks.4.1.transformer_blocks.0"
IN_CLIP = "text_encoders.clip_l.transformer.text_model"


def stems(tensors: Tensors, names: dict[str, str], ends: tuple[str, str]) -> Tensors:
    """The plain LoRA by other names, alphas folded in."""
    found = {}
    for name, stem in names.items():
        down, up = (tensors[f"{name}.lora_{end}.weight"] for end in ("down", "up"))
        found |= {
            stem + ends[0]: down.clone(),
            stem + ends[1]: up * float(tensors[f"{name}.alpha"]) / len(down),
        }
    return found


KOHYA_ENDS, PROCESSOR_ENDS = (
    (".lora_down.weight", ".lora_up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)
COMFY = {
    KEY: f"{ORIGINAL}.attn2.to_k",
    KEY.replace("to_k", "to_out_0"): f"{ORIGINAL}.attn2.to_out.0",
    TEXT: f"{IN_CLIP}.encoder.layers.0.self_attn.q_proj",
    next(iter(CONV)): "diffusion_model.input_blocks.4.0.in_layers.2",
}
PROCESSORS = {
    KEY: f"{BLOCK}.attn2.processor.to_k",
    KEY.replace("to_k", "to_out_0"): f"{BLOCK}.attn2.processor.to_out",
}
FILES: dict[str, Callable[[Tensors], Tensors]] = {
    "ComfyUI's extraction": lambda t: stems(t, COMFY, KOHYA_ENDS),
    "ComfyUI's extraction with biases, norms and embeddings": lambda t: (
        stems(t, COMFY, KOHYA_ENDS)
        | {f"{ORIGINAL}.attn2.to_out.0.diff_b": torch.ones(640), f"{ORIGINAL}.norm1.diff": torch.ones(640)}
        | {f"{ORIGINAL}.norm1.diff_b": torch.ones(640), f"{IN_CLIP}.final_layer_norm.diff": torch.ones(768)}
        | stems(t, {TEXT: f"{IN_CLIP}.embeddings.token_embedding"}, KOHYA_ENDS)
    ),
    "LyCORIS' names": lambda t: {
        key.replace("lora_unet_", "lycoris_").replace("lora_te_", "lycoris_"): one for key, one in t.items()
    },
    "attention processors": lambda t: stems(
        t, {name: f"unet.{stem}" for name, stem in PROCESSORS.items()}, PROCESSOR_ENDS
    ),
    "attention processors without unet.": lambda t: stems(t, PROCESSORS, PROCESSOR_ENDS),
    "bundled embeddings": lambda t: t | {"bundle_emb.word.string_to_param.*": torch.ones(2, 768)},
    "scalars": lambda t: t | {f"{KEY}.scalar": torch.tensor(1.0)},
    "changed norms": lambda t: t | {KEY.replace("attn2_to_k", "norm2.w_norm"): torch.ones(640)},
    "float64": lambda t: {key: one.double() for key, one in t.items()},
}


@pytest.mark.parametrize("what", FILES)
def test_it_is_the_same_change_by_the_names_that_uis_know(what: str, tmp_path: Path) -> None:
    """By convert, and by the tools that compute with it; nothing has to be skipped."""
    plain = write_random_lora(tmp_path / "plain.safetensors", shapes=SHAPES | CONV)
    source, out = tmp_path / "file.safetensors", tmp_path / "out.safetensors"
    tensors = FILES[what](load_file(plain))
    save_file({key: one.contiguous() for key, one in tensors.items()}, source)
    wanted = {
        name: one for name, one in dense(plain).items() if not what.startswith("attention") or "attn2" in name
    }
    converted = convert(source, "kohya", out=out, dtype="float32")
    assert {name for name, one in dense(out).items() if one.any()} == wanted.keys()
    assert all(relative(dense(out)[name], one) < 1e-5 for name, one in wanted.items())
    resize(open_plain(source), out, RankLimit(rank=4), dtype="float32")
    assert dense(out).keys() == wanted.keys()
    assert all(relative(dense(out)[name], one) < 1e-5 for name, one in wanted.items())
    combine(
        [Term(open_plain(source), 1.0), Term(open_plain(plain), -0.5)], out, method="concat", dtype="float32"
    )
    assert all(relative(dense(out)[name], one / 2) < 1e-5 for name, one in wanted.items())
    left_out = sum(word in what for word in ("biases", "bundled", "scalars", "changed"))
    assert bool(converted.notes) == bool(left_out) and all("taken without" in one for one in converted.notes)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_widened(dtype: torch.dtype, tmp_path: Path) -> None:
    source, out = tmp_path / "file.safetensors", tmp_path / "out.safetensors"
    narrow = {
        key: one.to(dtype) for key, one in load_file(write_random_lora(source, shapes=SHAPES | CONV)).items()
    }
    save_file(narrow, source)
    save_file({key: one.float() for key, one in narrow.items()}, tmp_path / "wide.safetensors")
    wanted = dense(tmp_path / "wide.safetensors")
    for write in (
        lambda: convert(source, "kohya", out=out, dtype="float32", force=True),
        lambda: resize(open_plain(source), out, RankLimit(rank=4), dtype="float32"),
    ):
        write()
        assert all(relative(dense(out)[name], one) < 1e-5 for name, one in wanted.items())


def test_an_alpha_that_is_not_used_may_be_anything(tmp_path: Path) -> None:
    """LyCORIS writes the dimension that was asked for, which float16 cannot hold."""
    torch.manual_seed(0)
    w1, w2 = torch.randn(8, 8), torch.randn(80, 96)
    source, out = tmp_path / "file.safetensors", tmp_path / "out.safetensors"
    save_file({f"{KEY}.lokr_w1": w1, f"{KEY}.lokr_w2": w2, f"{KEY}.alpha": torch.tensor(torch.inf)}, source)
    assert convert(source, "kohya", out=out, dtype="float32").left_out < 1e-3
    assert relative(dense(out)[KEY], torch.kron(w1, w2).double()) < 1e-3


def test_unknown_tensors_are_refused_by_every_verb_and_left_out_when_asked(tmp_path: Path) -> None:
    plain = write_random_lora(tmp_path / "plain.safetensors", shapes=SHAPES)
    source, out = tmp_path / "file.safetensors", tmp_path / "out.safetensors"
    save_file(load_file(plain) | {"something.else": torch.ones(3)}, source)
    verbs = {
        "convert": ["convert", source, "--to", "kohya", "--dtype", "float32"],
        "combine": ["combine", source, plain, "--dtype", "float32"],
        "resize": ["resize", source, "--rank", "4", "--dtype", "float32"],
    }
    for verb, words in verbs.items():
        command = [*map(str, words), "-o", str(out), "--force"]
        refused = CliRunner().invoke(app, command)
        said = " ".join(str(refused.exception).split())
        assert isinstance(refused.exception, StudioError) and "something.else" in said, verb
        assert "--skip-unknown" in said and not out.exists(), verb
        done = CliRunner().invoke(app, [*command, "--skip-unknown"])
        assert done.exit_code == 0 and "something.else" in done.output.replace("\n", ""), done.output
        factor = 2 if verb == "combine" else 1
        assert all(relative(dense(out)[name], factor * one) < 1e-5 for name, one in dense(plain).items())
        out.unlink()


def test_a_weight_that_replaces_the_bases_needs_the_base_or_is_left_out(
    tiny_base: Path, tmp_path: Path
) -> None:
    layers = base_layers(load_base(str(tiny_base)))
    name, other = [one for one in layers if one.endswith("attentions_0_proj_in")][:2]
    weight, shape = layers[name].weight, tuple(layers[other].weight.shape)
    new = torch.randn_like(weight)
    source, out = tmp_path / "file.safetensors", tmp_path / "out.safetensors"
    plain = load_file(write_random_lora(source, shapes={other: shape}))
    save_file(plain | {f"{name}.set_weight": new}, source)
    with pytest.raises(StudioError, match=r"--base BASE.*--skip-unknown"):
        convert(source, "kohya", out=out)
    assert f"{name}.set_weight" in convert(source, "kohya", out=out, skip_unknown=True).notes[0]
    assert dense(out).keys() == {other}
    convert(source, "kohya", out=out, base=str(tiny_base), dtype="float32", force=True)
    assert relative(dense(out)[name].flatten(1), (new - weight).double().flatten(1)) < 1e-3
