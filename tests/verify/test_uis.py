"""How each UI loads full-size files with something unusual, against the table of what was observed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference_files import keys_and_shapes, reference_tensors
from safetensors.torch import save_file
from ui_files import (
    FIRST,
    LETTERS,
    Tensors,
    as_loha,
    as_lokr,
    as_peft,
    each,
    look,
    numbered,
    only,
    other_names,
    renamed,
    small,
    with_dora,
    without,
)

from lora_studio.families.layer_names import OWN, PUBLISHED, PublishedBase
from lora_studio.verify import verify
from lora_studio.verify.uis.table import UIS, Loss, UiFinding, table

TEXT = "lora_te1_text_model_encoder_layers_1_"
OUTSIDE: Tensors = {
    "lora_unet_conv_in.lora_down.weight": torch.ones(1, 4, 3, 3),
    "lora_unet_conv_in.lora_up.weight": torch.ones(320, 1, 1, 1),
    "lora_unet_conv_in.alpha": torch.tensor(1.0),
}
UNET_CONV = "output_blocks_2_2_conv"
# base, what the file is, then c(ompletely), p(artly), n(ot at all) or ? in the order of UIS
CASES: dict[str, tuple[str, Callable[[], Tensors], str]] = {
    "whole 1": ("SD1", lambda: reference_tensors("SD1"), "ccccccc"),
    "whole 2": ("SD2", lambda: reference_tensors("SD2"), "ccccpcc"),  # text-encoder attention: its gap
    "whole XL": ("SDXL", lambda: reference_tensors("SDXL"), "ccccccc"),
    "UNet only": ("SD1", lambda: only("SD1", "unet_mid"), "ccccccc"),
    "text encoder only 1": ("SD1", lambda: only("SD1", "lora_te_"), "ccccccc"),
    "text encoder only XL": ("SDXL", lambda: only("SDXL", "lora_te1_"), "cccnccc"),
    "no alpha": ("SD1", lambda: without(small("SD1"), "alpha"), "ccccccc"),
    "integer alpha": ("SD1", lambda: each(small("SD1"), "alpha", lambda a: a.ceil().long()), "ccccccc"),
    "alpha of shape [1]": ("SD1", lambda: each(small("SD1"), "alpha", lambda a: a[None]), "ccccccn"),
    "alpha 0": ("SD1", lambda: small("SD1") | {f"{FIRST['SD1']}.alpha": torch.tensor(0.0)}, "ppppppp"),
    "1x1 convolution as 2-D": (
        "SD1",
        lambda: {key: one.flatten(1) if "proj_in.lora" in key else one for key, one in small("SD1").items()},
        "cccccnn",
    ),
    "linear as 4-D": (
        "SD1",
        lambda: {
            key: one[..., None, None] if "attn1_to_q.lora" in key else one
            for key, one in small("SD1").items()
        },
        "cccccnn",
    ),
    "projections of SD2 as 4-D": (
        "SD2",
        lambda: {
            key: one[..., None, None] if "proj_in.lora" in key else one
            for key, one in only("SD2", "unet_mid").items()
        },
        "ccccccc",
    ),
    "q and v only 1": (
        "SD1",
        lambda: {
            k: v for k, v in small("SD1").items() if "self_attn" not in k or re.search(r"_[qv]_proj", k)
        },
        "ccccpnc",
    ),
    "q and v only XL": (
        "SDXL",
        lambda: {
            k: v for k, v in small("SDXL").items() if "self_attn" not in k or re.search(r"_[qv]_proj", k)
        },
        "cpccpnc",
    ),
    "one layer renamed": (
        "SD1",
        lambda: renamed(small("SD1"), "down_blocks_1_attentions_0_proj_in", "nothing"),
        "ppppppp",
    ),
    "an up missing": ("SD1", lambda: without(small("SD1"), f"{FIRST['SD1']}.lora_up.weight"), "pnpnpnp"),
    "stray alpha": ("SD1", lambda: small("SD1") | {"lora_unet_x.alpha": torch.tensor(1.0)}, "cccncnc"),
    "extra tensor": ("SD1", lambda: numbered(small("SD1"), 1), "cccncnc"),
    "13 extra tensors": ("SD1", lambda: numbered(small("SD1"), 13), "ccnncnc"),
    "bundled embedding": (
        "SD1",
        lambda: small("SD1") | {"bundle_emb.word.string_to_param.*": torch.ones(1, 768)},
        "pcpppnp",
    ),
    "PEFT's names": ("SD1", lambda: as_peft(small("SD1")), "pnnnpcn"),
    "lora_A": (
        "SD1",
        lambda: renamed(renamed(without(small("SD1"), "alpha"), "lora_down", "lora_A"), "lora_up", "lora_B"),
        "cccncnn",
    ),
    "te1 in SD1": ("SD1", lambda: renamed(small("SD1"), "lora_te_", "lora_te1_"), "cccpccp"),
    "te1 in SD2": ("SD2", lambda: renamed(small("SD2"), "lora_te_", "lora_te1_"), "cpcppcp"),
    "te in XL": ("SDXL", lambda: renamed(small("SDXL"), "lora_te1_", "lora_te_"), "cpcncpp"),
    "original names 1": (
        "SD1",
        lambda: other_names(only("SD1", "down_blocks_1_attentions_0"), "SD1"),
        "cccncnn",
    ),
    "diffusers' names XL": (
        "SDXL",
        lambda: other_names(only("SDXL", "input_blocks_4_1_"), "SDXL"),
        "ccccccc",
    ),
    "diffusers' names XL, upsampler": (
        "SDXL",
        lambda: other_names(only("SDXL", "input_blocks_4_1_", UNET_CONV), "SDXL"),
        "cpccccc",
    ),
    "both namings XL": (
        "SDXL",
        lambda: other_names(only("SDXL", "input_blocks_4_1_", "input_blocks_5_1_"), "SDXL"),
        "cccn?pc",
    ),
    "no cross-attention": (
        "SD1",
        lambda: {k: v for k, v in only("SD1", "unet").items() if "attn1" in k},
        "cccnccc",
    ),
    "LoHa": ("SD1", lambda: as_loha(small("SD1")), "cccccnn"),
    "LoKr 1": ("SD1", lambda: as_lokr(small("SD1")), "cccncnn"),
    "LoKr XL": ("SDXL", lambda: as_lokr(small("SDXL")), "cccccnn"),
    "dora_scale along the inputs": ("SD1", lambda: with_dora(small("SD1"), outputs=False), "ccccppp"),
    "dora_scale along the outputs": ("SD1", lambda: with_dora(small("SD1"), outputs=True), "pnpnppp"),
    "conv_in": ("SD1", lambda: small("SD1") | OUTSIDE, "ccccpcp"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_row_of_the_table(case: str, tmp_path: Path) -> None:
    base, make, expected = CASES[case]
    report = look(make(), base, tmp_path / "file.safetensors")
    assert report.checks["made_for"] == base
    assert {one.ui: LETTERS[one.loads] for one in report.uis} == dict(zip(UIS, expected, strict=True)), [
        (one.ui, reason.what, reason.consequence) for one in report.uis for reason in one.reasons
    ]
    assert all(one.reasons for one in report.uis if one.loads != "completely")


@pytest.mark.parametrize("layout", PUBLISHED, ids=lambda one: one.title)
def test_the_layers_of_published_bases_are_those_of_the_lists(layout: PublishedBase) -> None:
    own = {name: place.shape for name, place in layout.places.items() if place.how == OWN}
    listed: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in keys_and_shapes(layout.title).items():
        name, _, end = key.partition(".")
        listed.setdefault(name, {})[end] = shape
    expected = {n: (one["lora_up.weight"][0], *one["lora_down.weight"][1:]) for n, one in listed.items()}
    assert {name: own.get(name) for name in expected} == expected
    convolutions = [name for name in own.keys() - expected.keys() if len(own[name]) == 2]
    assert all("emb_proj" in name for name in convolutions), convolutions  # two lists have no residual blocks


DROPPED = {"ComfyUI": "with a warning", "A1111": "without a word", "diffusers": "dropped"}
# the file, whether it is whole, what is the matter, and what UIs do about it
NEGATIVE: dict[str, tuple[Callable[[], Tensors], bool, str, dict[str, str]]] = {
    "a renamed key": (
        lambda: renamed(small("SD1"), "down_blocks_1_attentions_0_proj_in", "nothing"),
        False,
        "1 layer named like none of SD1, first lora_unet_nothing",
        DROPPED,
    ),
    "a missing alpha": (
        lambda: without(small("SD1"), f"{FIRST['SD1']}.alpha"),
        True,
        f"1 layer without alpha, first {FIRST['SD1']}",
        dict.fromkeys(UIS, "read as alpha = rank"),
    ),
    "PEFT's names in a kohya file": (
        lambda: only("SD1", "lora_te_", "down_blocks_0") | as_peft(only("SD1", "down_blocks_1")),
        False,
        "24 layers by PEFT's names among others",
        {"A1111": "without a word", "InvokeAI": "refuses the file", "diffusers": "refuses the file"},
    ),
    "a module's path": (
        lambda: renamed(small("SD1"), "lora_te_text_model_", "lora_te_"),
        False,
        "6 layers named after a module's path without text_model",
        DROPPED,
    ),
    "many keys of such names": (
        lambda: renamed(small("SD1"), "lora_te_text_model_", "lora_te_"),
        False,
        "more than 12 keys are unknown",
        {"Forge": "refuses the file", "diffusers": "stops with an error"},
    ),
    "zeroed ups": (
        lambda: each(small("SD1"), "lora_up.weight", torch.zeros_like),
        False,
        "all zero",
        dict.fromkeys(UIS, "they do nothing"),
    ),
    "NaN": (
        lambda: small("SD1") | {f"{FIRST['SD1']}.lora_up.weight": torch.full((320, 1), torch.nan)},
        False,
        f"1 layer not finite, first {FIRST['SD1']}",
        dict.fromkeys(UIS, "black or noise"),
    ),
    "names of the larger base on the smaller": (
        lambda: other_names(only("SD1", "down_blocks_1_attentions_0"), "SD1"),
        True,
        "12 layers of the UNet by the original checkpoint's names",
        {"InvokeAI": "dropped", "diffusers": "stops with an error", "kohya": "dropped"},
    ),
}


@pytest.mark.parametrize("case", NEGATIVE)
def test_what_is_wrong_is_named_for_every_ui_that_minds(case: str, tmp_path: Path) -> None:
    make, whole, what, consequences = NEGATIVE[case]
    report = look(make(), "SD1", tmp_path / "file.safetensors")
    assert report.ok == whole, report.faults
    said = {one.ui: [r.consequence for r in one.reasons if what in r.what] for one in report.uis}
    for ui, words in consequences.items():
        assert any(words in consequence for consequence in said[ui]), (ui, said)


@pytest.mark.parametrize("row", table())
def test_every_row_can_be_said_and_is_of_uis_that_there_are(row: str) -> None:
    said = UiFinding(row, ["a.layer", "another"]).in_words("SD1")
    assert said and not re.search("[{}]", said)
    does = table()[row].does
    assert does and does.keys() <= set(UIS) and all(loss in Loss and words for loss, words in does.values())


def test_a_file_says_what_is_lost_and_where(tmp_path: Path) -> None:
    """Layer names, their number and the consequence stand in every reason."""
    tensors = renamed(small("SD1"), "down_blocks_1_attentions_0_proj_in", "nothing")
    report = look(tensors, "SD1", tmp_path / "file.safetensors")
    (reason,) = report.uis[UIS.index("A1111")].reasons
    assert reason.what == "1 layer named like none of SD1, first lora_unet_nothing"
    assert reason.consequence == "dropped without a word" and reason.keys == ("lora_unet_nothing",)


def test_no_metadata_and_that_of_another_base_are_said(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(small("SDXL"), path)
    assert '"Unknown"' in verify(path).uis[UIS.index("A1111")].reasons[0].consequence
    report = look(small("SDXL"), "SD1", path)
    assert report.ok and "card" in report.uis[UIS.index("A1111")].reasons[0].consequence


@pytest.mark.parametrize(
    ("tensors", "loads"),
    [
        ({"emb_params": torch.ones(2, 768)}, "completely"),
        ({"emb_params": torch.ones(2, 1024)}, "completely"),
        ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, "completely"),
        ({"clip_l": torch.ones(2, 768)}, "not at all"),
        ({"emb_params": torch.ones(2, 1280)}, "not at all"),
    ],
)
def test_embeddings_are_known_by_keys_and_widths(tensors: Tensors, loads: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "word.safetensors")
    report = verify(tmp_path / "word.safetensors")
    tried = {one.ui: one.loads for one in report.uis if one.ui in ("ComfyUI", "A1111", "InvokeAI")}
    assert set(tried.values()) == {loads} and len(tried) == 3
