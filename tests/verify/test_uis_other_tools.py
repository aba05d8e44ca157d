"""How each UI loads what other tools write: names, kinds and numbers, as its own loader was observed to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference_files import keys_and_shapes, reference_tensors
from safetensors.torch import save_file
from ui_files import FIRST, LETTERS, Tensors, as_loha, as_lokr, as_peft, look, only, renamed, small, with_dora

from lora_studio.families.layer_names.spellings import place_of
from lora_studio.verify import verify
from lora_studio.verify.uis.table import UIS

ATTENTION = "down_blocks_1_attentions_0_transformer_blocks_0_attn1"
CONV = "lora_unet_down_blocks_1_resnets_0_conv1"
NORM = "lora_unet_down_blocks_1_attentions_0_norm"


def dotted(tensors: Tensors, stem: Callable[[str, str], str], ends: tuple[str, str]) -> Tensors:
    """By part and diffusers path, without alphas, which nothing of such names has."""
    found = {}
    for key, one in tensors.items():
        name, _, end = key.partition(".")
        if end != "alpha":
            part, path = place_of(name) or ("", "")
            found[stem(part, path) + ends["up" in end]] = one
    return found


def processors(tensors: Tensors, *, start: str = "unet.") -> Tensors:
    def stem(part: str, path: str) -> str:
        assert "attn" in path and part == "unet"
        return start + re.sub(r"\.(to_\w+)(?:\.0)?$", r".processor.\1_lora", path)

    return dotted(tensors, stem, (".down.weight", ".up.weight"))


def comfy(base: str) -> Tensors:
    """As ComfyUI's node writes differences of two checkpoints: with changes of biases and norms."""
    found = {}
    for key, one in only(
        base, "_down_blocks_1_attentions_0_", "lora_te_text_model_encoder_layers_1_"
    ).items():
        name, _, end = key.partition(".")
        if end == "alpha":
            continue
        part, path = place_of(name) or ("", "")
        if part == "unet":
            stem = "diffusion_model.input_blocks.4.1." + path.partition("attentions.0.")[2]
        else:
            stem = f"text_encoders.clip_l.transformer.{path}"
        found[f"{stem}.{end}"] = one
    found["diffusion_model.input_blocks.4.1.norm.diff"] = torch.ones(640)
    found["diffusion_model.input_blocks.4.1.proj_out.diff_b"] = torch.ones(640)
    found["text_encoders.clip_l.transformer.text_model.final_layer_norm.diff"] = torch.ones(768)
    return found


def whole(*, factored: bool, alpha: float = 1.0) -> Tensors:
    """LoKr of every kind of layer that `small` has."""
    found = as_lokr(small("SD1"))
    for name in {key.partition(".")[0] for key in found}:
        w2_a, w2_b = found[f"{name}.lokr_w2_a"], found[f"{name}.lokr_w2_b"]
        found[f"{name}.alpha"] = torch.tensor(alpha)
        if not factored:
            found[f"{name}.lokr_w2"] = w2_a @ w2_b
            del found[f"{name}.lokr_w2_a"], found[f"{name}.lokr_w2_b"]
    return found


def layer(tensors: Tensors, name: str, **ends: torch.Tensor) -> Tensors:
    """With the layer made of these tensors instead."""
    kept = {key: one for key, one in tensors.items() if key.partition(".")[0] != name}
    return kept | {f"{name}.{end.replace('__', '.')}": one for end, one in ends.items()}


def with_mid(tensors: Tensors, *, dora: bool = False) -> Tensors:
    ends = {"lora_down__weight": torch.ones(1, 320, 1, 1), "lora_mid__weight": torch.ones(1, 1, 3, 3)}
    ends |= {"lora_up__weight": torch.ones(640, 1, 1, 1), "alpha": torch.tensor(0.5)}
    ends |= {"dora_scale": torch.ones(1, 320, 1, 1)} if dora else {}
    return layer(tensors, CONV, **ends)


def as_whole(*, biases: bool = False, nowhere: bool = False) -> Tensors:
    """Of every layer of `small` its difference from the base."""
    found = {}
    for key, one in small("SD1").items():
        name, _, end = key.partition(".")
        if end == "lora_up.weight":
            down = small("SD1")[f"{name}.lora_down.weight"]
            found[f"{name}.diff"] = (one.flatten(1) @ down.flatten(1)).view(len(one), *down.shape[1:])
            if biases and (nowhere or not name.endswith(("to_q", "to_k", "to_v"))):
                found[f"{name}.diff_b"] = torch.ones(len(one))
    return found


def turned(**more: torch.Tensor) -> Tensors:
    return {
        f"{key.partition('.')[0]}.{end}": one
        for key, up in small("SD1").items()
        if key.endswith("lora_up.weight")
        for end, one in ({"oft_blocks": torch.full((4, len(up) // 4, len(up) // 4), 0.1)} | more).items()
    }


GLORA = {"a1__weight": torch.ones(768, 1), "a2__weight": torch.ones(1, 768)}
GLORA |= {"b1__weight": torch.ones(320, 1), "b2__weight": torch.ones(1, 768), "alpha": torch.tensor(1.0)}
TUCKER = {"lokr_w1": torch.ones(2, 2), "lokr_w2_a": torch.ones(1, 320), "lokr_w2_b": torch.ones(1, 160)}
TUCKER |= {"lokr_t2": torch.ones(1, 1, 3, 3), "alpha": torch.tensor(1.0)}
OUTSIDE = {
    "conv_in": (320, 4, 3, 3),
    "conv_out": (4, 320, 3, 3),
    "time_embedding_linear_1": (1280, 320),
    "add_embedding_linear_1": (1280, 2816),
    "add_embedding_linear_2": (1280, 1280),
}


def lcm_layout() -> Tensors:
    """SDXL by diffusers' names, with what lies outside of its blocks."""
    found = renamed(only("SDXL", "input_blocks_4_1_"), "input_blocks_4_1", "down_blocks_1_attentions_0")
    for name, (out, *rest) in OUTSIDE.items():
        found[f"lora_unet_{name}.lora_down.weight"] = torch.ones(1, *rest)
        found[f"lora_unet_{name}.lora_up.weight"] = torch.ones(out, 1, *(1 for _ in rest[1:]))
        found[f"lora_unet_{name}.alpha"] = torch.tensor(0.5)
    return found


def alpha_of(tensors: Tensors, part_of_name: str, alpha: float) -> Tensors:
    return {
        key: torch.tensor(alpha) if key.endswith("alpha") and part_of_name in key else one
        for key, one in tensors.items()
    }


def text_by_peft(base: str, part: str, prefix: str, *, strip: bool) -> Tensors:
    names = only(base, f"{prefix}text_model_encoder_layers_1_")

    def stem(_: str, path: str) -> str:
        return f"{part}.{path.removeprefix('text_model.') if strip else path}"

    return dotted(names, stem, (".lora_A.weight", ".lora_B.weight"))


def peft(parts: str) -> Tensors:
    return {key: one for key, one in as_peft(small("SD1")).items() if re.search(parts, key)}


# base, what the file is, then c(ompletely), p(artly), n(ot at all) or ? in the order of UIS
CASES: dict[str, tuple[str, Callable[[], Tensors], str]] = {
    # strengths
    "another alpha in attention": ("SD1", lambda: alpha_of(small("SD1"), "attn1", 0.125), "cccccpc"),
    "another alpha in attention XL": ("SDXL", lambda: alpha_of(small("SDXL"), "attn1", 0.125), "cccccpc"),
    "another alpha in feed-forward": ("SD1", lambda: alpha_of(only("SD1", "unet_mid"), "_ff_", 2), "ccccccc"),
    "another alpha in a text encoder": ("SD1", lambda: alpha_of(small("SD1"), "mlp_fc1", 2), "cccccpc"),
    "one alpha missing": (
        "SD1",
        lambda: {key: one for key, one in small("SD1").items() if key != f"{FIRST['SD1']}.alpha"},
        "cccccpc",
    ),
    # names
    "PEFT's, little attention": ("SD1", lambda: peft("proj|ff|attn1.to_[qk]"), "pnpnpcn"),
    "PEFT's, much attention": ("SD1", lambda: peft("."), "pnnnpcn"),
    "PEFT's, no attention": ("SD1", lambda: peft("proj_|ff"), "cncnpcn"),
    "PEFT's with alpha": (
        "SD1",
        lambda: peft("proj_|ff") | {"unet.down_blocks.1.attentions.0.proj_in.alpha": torch.tensor(1.0)},
        "cncnpnn",
    ),
    "PEFT's text encoder": (
        "SD1",
        lambda: text_by_peft("SD1", "text_encoder", "lora_te_", strip=False),
        "cncnpcn",
    ),
    "PEFT's text encoder without text_model": (
        "SD1",
        lambda: text_by_peft("SD1", "text_encoder", "lora_te_", strip=True) | peft("ff"),
        "pnpnpcn",
    ),
    "PEFT's second text encoder without text_model": (
        "SDXL",
        lambda: (
            text_by_peft("SDXL", "text_encoder", "lora_te1_", strip=False)
            | text_by_peft("SDXL", "text_encoder_2", "lora_te2_", strip=True)
        ),
        "pnpnpnn",
    ),
    "attention processors": ("SD1", lambda: processors(only("SD1", ATTENTION)), "c?c??c?"),
    "attention processors without unet.": (
        "SD1",
        lambda: processors(only("SD1", ATTENTION), start=""),
        "c?c??n?",
    ),
    "ComfyUI's": ("SD1", lambda: comfy("SD1"), "c?c??n?"),
    "LyCORIS'": ("SD1", lambda: renamed(only("SD1", "unet_mid"), "^lora_unet_", "lycoris_"), "c?c??n?"),
    "with an adapter's name": (
        "SD1",
        lambda: renamed(peft("ff"), r"\.weight$", ".default.weight"),
        "???????",
    ),
    "LCM's of SDXL": ("SDXL", lcm_layout, "cpccppp"),
    # kinds
    "LoKr of whole matrices": ("SD1", lambda: whole(factored=False), "cccccnn"),
    "LoKr of whole matrices with an endless alpha": (
        "SD1",
        lambda: whole(factored=False, alpha=float("inf")),
        "cccccnn",
    ),
    "LoKr of factors": ("SD1", lambda: whole(factored=True), "cccncnn"),
    "LoKr with a core": ("SD1", lambda: layer(small("SD1"), CONV, **TUCKER), "pcn??np"),
    "LoRA in three parts": ("SD1", lambda: with_mid(small("SD1")), "cccc?nn"),
    "DoRA in three parts": ("SD1", lambda: with_mid(small("SD1"), dora=True), "ccccpnn"),
    "whole differences": ("SD1", as_whole, "cccc?nn"),
    "whole differences with biases": ("SD1", lambda: as_whole(biases=True), "cccc?nn"),
    "biases where there are none": ("SD1", lambda: as_whole(biases=True, nowhere=True), "cccn?nn"),
    "norms": (
        "SD1",
        lambda: layer(small("SD1"), NORM, w_norm=torch.ones(640), b_norm=torch.ones(640)),
        "cccc?n?",
    ),
    "diagonal OFT": ("SD1", turned, "ccnn?n?"),
    "diagonal OFT with a constraint": ("SD1", lambda: turned(alpha=torch.tensor(0.1)), "p?nn?n?"),
    "diagonal OFT without one, as a number": ("SD1", lambda: turned(alpha=torch.tensor(0.0)), "ccnn?n?"),
    "diagonal OFT, rescaled": ("SD1", lambda: turned(rescale=torch.ones(4)), "p?nn?n?"),
    "GLoRA": ("SD1", lambda: layer(small("SD1"), FIRST["SD1"], **GLORA), "c?c??n?"),
    "a weight that is set": (
        "SD1",
        lambda: layer(small("SD1"), FIRST["SD1"], set_weight=torch.ones(320, 768)),
        "cn?n?n?",
    ),
    "LoHa with DoRA": ("SD1", lambda: with_magnitudes(as_loha(small("SD1"))), "pccnpnn"),
    "DoRA": ("SD1", lambda: with_dora(small("SD1"), outputs=False), "ccccppp"),
    # numbers and companions
    "float8": (
        "SD1",
        lambda: {
            key: one if key.endswith("alpha") else one.to(torch.float8_e4m3fn)
            for key, one in small("SD1").items()
        },
        "cccc?cc",
    ),
    "all of it float8": (
        "SD1",
        lambda: {key: one.to(torch.float8_e5m2) for key, one in small("SD1").items()},
        "cccc?cc",
    ),
    "float64": ("SD1", lambda: {key: one.double() for key, one in small("SD1").items()}, "???????"),
    "a scalar": ("SD1", lambda: small("SD1") | {f"{FIRST['SD1']}.scalar": torch.tensor(1.0)}, "cccc?n?"),
    "many bundled embeddings": (
        "SD1",
        lambda: small("SD1") | {f"bundle_emb.{n}.string_to_param.*": torch.ones(1, 768) for n in range(13)},
        "pcnppnp",
    ),
}


def with_magnitudes(loha: Tensors) -> Tensors:
    """Of every layer's inputs."""
    magnitudes = {
        key.replace("hada_w1_b", "dora_scale"): torch.ones(1, one.shape[1])
        for key, one in loha.items()
        if key.endswith("hada_w1_b")
    }
    return loha | magnitudes


@pytest.mark.parametrize("case", CASES)
def test_what_other_tools_write_is_valid_and_judged_for_every_ui(case: str, tmp_path: Path) -> None:
    base, make, expected = CASES[case]
    report = look(make(), base, tmp_path / "file.safetensors")
    assert base in str(report.checks["made_for"])
    assert {one.ui: LETTERS[one.loads] for one in report.uis} == dict(zip(UIS, expected, strict=True)), [
        (one.ui, reason.what, reason.consequence) for one in report.uis for reason in one.reasons
    ]
    assert report.ok == bool({"c", "?"} & set(expected)), report.faults


def test_another_strength_names_the_command_that_mends_it(tmp_path: Path) -> None:
    report = look(alpha_of(small("SD1"), "attn1", 0.125), "SD1", tmp_path / "file.safetensors")
    (reason,) = report.uis[UIS.index("diffusers")].reasons
    assert "wrong strength" in reason.consequence and "`lora-studio convert` writes one" in reason.consequence
    names = {key.partition(".")[0] for key in small("SD1") if "attn1" in key}
    assert f"{len(names)} layers with another alpha" in reason.what and set(reason.keys) <= names


def test_one_fault_of_many_layers_is_one_line(tmp_path: Path) -> None:
    whole_numbers = {
        key: one if key.endswith("alpha") else one.to(torch.int16)
        for key, one in reference_tensors("SD1").items()
    }
    report = look(whole_numbers, "SD1", tmp_path / "file.safetensors")
    count = len({key.partition(".")[0] for key in keys_and_shapes("SD1")})
    assert not report.ok and len(report.faults) <= 3
    assert any(f"{count} layers, first" in fault and "int16" in fault for fault in report.faults)


def test_a_number_that_is_not_finite_counts_where_it_is_used(tmp_path: Path) -> None:
    endless = alpha_of(small("SD1"), "attn1", float("inf"))
    report = look(endless, "SD1", tmp_path / "file.safetensors")
    assert not report.ok and any("not finite" in fault for fault in report.faults)


def test_a_file_of_another_kind_than_the_base_is_judged_by_its_own(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(small("SDXL"), path, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    alone, beside = verify(path), verify(path, base="pocket")
    assert beside.uis == alone.uis and {one.loads for one in alone.uis} == {"completely"}
    (fault,) = beside.faults
    assert "are not in the base" in fault and "the file is for SDXL" in fault
