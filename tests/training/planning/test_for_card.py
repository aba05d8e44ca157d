"""A plan for a GPU that is not here, against what can be counted in another way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from console import run as command
from torch import nn
from write_what_fits import FOUND, PAGE, inputs_hash, key, page, preset, presets, read

from lora_studio.errors import RecipeError
from lora_studio.families.base import innermost_blocks
from lora_studio.families.loading import load_base
from lora_studio.families.loading.published import published_base
from lora_studio.recipe.load import recipe_from
from lora_studio.training.planning.cards import Card, find_card, known_cards, memory_bytes
from lora_studio.training.planning.counting import LiveBytes, Work
from lora_studio.training.planning.for_card import (
    CONTEXT,
    GAPS,
    CardPlan,
    plan_for,
    step_seconds,
    usable_memory,
)
from lora_studio.training.planning.offloading import Offloading
from lora_studio.training.planning.simulation import Phase, Simulation
from lora_studio.training.planning.simulation.pretending import make_fake, pretending
from lora_studio.training.planning.simulation.quantized import BITS, in_fewer_bits

GIB = 2**30
SMALL = {"name": "small", "base": {"model": "pocket"}, "data": {"images": "none", "resolution": 64}}


def small_plan(card: str = "T4", memory_gib: float | None = None, **sections: object) -> CardPlan:
    values = {**SMALL, "training": {"batch_size": 2}, "validation": {"count": 1}, **sections}
    return plan_for(recipe_from(values, folder=Path("/")), card, memory_gib=memory_gib)


@pytest.fixture(scope="module")
def planned() -> CardPlan:
    return small_plan("RTX 4060", samples={"prompts": ["a red ball", "a blue cat"]})


def test_every_phase_of_a_run_is_there(planned: CardPlan) -> None:
    names = ["encoding images", "encoding captions", "training", "validation", "previews"]
    assert [one.name for one in planned.phases] == [*names, "verifying the file"]
    assert planned.fits and not planned.changes
    assert planned.fullest.peak == max(one.peak for one in planned.phases)


def test_a_phases_weights_are_those_of_the_parts_that_it_needs(planned: CardPlan) -> None:
    from lora_studio.families.loading import load_base

    parts = load_base("pocket").parts
    numbers = {name: sum(one.numel() for one in part.parameters()) for name, part in parts.items()}
    phases = {one.name: one for one in planned.phases}
    assert phases["training"].weights["unet"] == pytest.approx(2 * numbers["unet"], rel=0.001)
    assert set(phases["training"].weights) == {"unet"}
    assert phases["encoding images"].weights == pytest.approx({"vae": 4 * numbers["vae"]}, rel=0.001)
    learned = phases["training"].learned
    assert learned["optimizer"] == pytest.approx(2 * learned["adapters"], rel=0.01)
    assert planned.main_memory > 2 * sum(numbers.values())


@pytest.mark.slow
def test_checkpointing_keeps_less_and_computes_more(planned: CardPlan) -> None:
    less = small_plan("RTX 4060", machine={"gradient_checkpointing": True})
    assert less.peak("training") < planned.peak("training")
    assert sum(less.work.flops.values()) > 1.2 * sum(planned.work.flops.values())


@pytest.mark.slow
def test_more_micro_batches_take_time_and_no_memory() -> None:
    counts = (1, 2, 8)
    one, two, eight = (
        small_plan(training={"batch_size": 1, "gradient_accumulation": count}) for count in counts
    )
    assert one.peak("training") < two.peak("training") == eight.peak("training")  # beside gradients
    assert sum(eight.work.flops.values()) == pytest.approx(4 * sum(two.work.flops.values()))
    of_micro_batch = two.work.launches - one.work.launches  # with the addition of gradients
    assert eight.work.launches == one.work.launches + 7 * of_micro_batch  # and one optimizer step


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"adapter": {"kind": "none"}, "tokens": [{"token": "zwx", "start": "star"}]},
        {"adapter": {"text_encoder": True, "conv": True}, "machine": {"channels_last": True}},
        {"adapter": {"kind": "full"}, "training": {"batch_size": 1, "learning_rate": 1e-6}},
        {"adapter": {"kind": "dora"}, "training": {"ema": 0.99, "optimizer": "adafactor"}},
        {"base": {"model": "pocket", "quantize": "bnb_nf4"}, "training": {"optimizer": "adamw8bit"}},
        {
            "objective": {"preservation": 0.5},
            "data": {**SMALL["data"], "trigger": "zwx", "class_words": "dog"},
        },  # type: ignore[dict-item]
        {"data": {**SMALL["data"], "regularization_images": {"count": 2, "prompt": "a dog"}}},  # type: ignore[dict-item]
    ],
    ids=["token", "text encoder", "full", "dora", "quantised", "preservation", "regularization"],
)
def test_every_way_to_train_is_planned(sections: dict[str, object]) -> None:
    found = small_plan(**sections)
    assert found.peak("training") > 0 and found.precision == "float16"  # of a T4


def offloadable(dtype_bytes: int) -> list[int]:
    """Bytes of the pocket base's blocks: weights of their own; keys and values of the text lie together."""
    unet = load_base("pocket").parts["unet"]
    return [
        sum(
            dtype_bytes * one.numel()
            for name, one in block.named_parameters()
            if one.dim() > 1 and not name.startswith(("attn2.to_k", "attn2.to_v"))
        )
        for block in innermost_blocks(unet)
    ]


def test_blocks_in_main_memory_free_what_they_take_but_for_two(planned: CardPlan) -> None:
    sizes, prompts = offloadable(2), {"prompts": ["a red ball", "a blue cat"]}
    found = small_plan("RTX 4060", samples=prompts, machine={"offload_blocks": 5})
    waiting = [sizes[number * len(sizes) // 5] for number in range(5)]
    peaks = {one.name: one.peak for one in planned.phases}
    for one in found.phases:
        freed = sum(sorted(waiting)[:3]) if "unet" in one.weights else 0
        assert one.peak == peaks[one.name] - freed
    assert found.copied == 2 * sum(waiting)  # forward and backward
    assert f"5 of {len(sizes)} blocks" in dict(found.rows)["offload"]
    assert found.to_json()["offload_blocks"] == 5
    assert not planned.offloading.blocks and "offload" not in dict(planned.rows)


def test_auto_is_the_fewest_blocks_with_which_all_phases_fit() -> None:
    """Ten blocks of 10 bytes of a denoiser of 120; with n of them 10 n - 20 are freed."""
    phases = (Phase("training", {"unet": 120}, {}, 50), Phase("encoding images", {"vae": 90}, {}, 0))
    whole = Simulation(phases, Work(), "unet", {"unet": Offloading([10] * 10, 0)})
    found = [whole.fitting(usable) for usable in (170, 169, 150, 100, 90, 10)]
    assert [one.blocks["unet"].blocks for one in found] == [0, 3, 4, 9, 10, 10]
    assert [one.fullest.peak for one in found] == [170, 160, 150, 100, 90, 90]


def test_auto_has_no_more_blocks_of_a_text_encoder_wait_than_captions_need() -> None:
    """Four blocks of 20 bytes of a text encoder of 100, with 10 of what is computed; two are there."""
    phases = (Phase("encoding captions", {"text": 100}, {}, 10), Phase("training", {"dit": 60}, {}, 10))
    blocks = {"dit": Offloading([10] * 5, 0), "text": Offloading([20] * 4, 0)}
    whole = Simulation(phases, Work(), "dit", blocks)
    found = [whole.fitting(usable) for usable in (110, 90, 70, 60)]
    assert [one.blocks["text"].blocks for one in found] == [0, 3, 4, 4]
    assert [one.blocks["dit"].blocks for one in found] == [0, 0, 0, 3]


def test_a_step_takes_as_long_as_its_copies_or_its_computing() -> None:
    """25 GB/s at best, 6 at worst."""
    idle, busy = Work(), Work()
    busy.flops[torch.bfloat16] = 10**15
    card = find_card("RTX 4090")
    found = step_seconds(idle, card, tf32=True, copied=50 * 10**9)
    assert found is not None and (found.low, found.high) == pytest.approx((2.0, 50 / 6))
    alone = step_seconds(busy, card, tf32=True)
    assert step_seconds(busy, card, tf32=True, copied=10**9) == alone


@pytest.mark.slow
def test_what_does_not_fit_is_changed_until_it_does() -> None:
    plan = small_plan("cuda", 0.6)
    assert not plan.fits and plan.changes and plan.changes[-1].peak < plan.fullest.peak
    assert plan.usable == round((0.6 * GIB - CONTEXT) * (1 - GAPS))


@pytest.mark.slow
def test_the_command_says_it_as_json_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.toml"
    path.write_text(
        'name = "small"\nbase.model = "pocket"\n[data]\nimages = "none"\nresolution = 64', "utf-8"
    )
    code, out, _ = command(["plan", str(path), "--for", "RTX 4060", "--memory", "1", "--json"], capsys)
    data = json.loads(out)
    assert code == 0 and data["fits"] and data["card"]["memory_gib"] == 8 and data["memory"] == GIB
    assert data["seconds_per_step"]["low"] > 0
    assert {one["name"] for one in data["phases"]} >= {"training", "verifying the file"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_is_told_in_words(planned: CardPlan) -> None:
    rows = dict(planned.rows)
    assert "it fits" in rows["memory"] and "unet" in rows["training"] and " a step; " in rows["time"]
    assert "2 of 64x64" in rows["note"]  # the images are not there


def test_the_page_of_what_fits_is_of_todays_presets_and_of_what_was_simulated() -> None:
    text = PAGE.read_text("utf-8")
    assert inputs_hash() in text, "write it again: make what-fits"
    assert text.splitlines() == list(page(json.loads(FOUND.read_text("utf-8"))))
    assert [name for name in presets() if f"| {name} |" not in text] == []


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("flux2_klein_8gb", 8),
        ("z_image_8gb", 8),
        ("flux2_klein_9b_12gb", 12),
        ("flux1_12gb", 12),
        ("krea2_16gb", 16),
        ("qwen_image_24gb", 24),
    ],
)
def test_a_preset_for_a_size_of_memory_fits_it_in_every_phase(name: str, gib: int) -> None:
    """As simulated for the page; what it names is not what was left out there."""
    recipe = preset(name)
    whole = read(json.loads(FOUND.read_text("utf-8"))[key(recipe)])
    fitted = whole.fitting(usable_memory(gib * GIB)) if recipe.machine.offload_blocks == "auto" else whole
    assert len(fitted.phases) >= 6 and recipe.data.resolution == 1024
    assert [one.name for one in fitted.phases if one.peak > usable_memory(gib * GIB)] == []


@pytest.mark.parametrize(
    ("name", "memory", "found"),
    [
        ("NVIDIA GeForce RTX 4060", None, "RTX 4060"),
        ("4090", None, "RTX 4090"),
        ("rtx 4060 ti", 16, "RTX 4060 Ti 16GB"),
        ("A100", 80, "A100 80GB"),
        ("gtx 1060", None, "GTX 1060 6GB"),
    ],
)
def test_a_card_is_found_by_its_usual_names(name: str, memory: float | None, found: str) -> None:
    assert find_card(name, memory_gib=memory).name == found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("RTX 4095", "RTX 4090"),
        ("A100", "name one of them"),
        ("cuda", "--memory 8"),
        ("banana", "--for cuda"),
    ],
)
def test_an_unknown_card_is_one_sentence_with_a_way_out(name: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_card(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("memory", [math.nan, math.inf, 1e308, 1e30, -1.0, 0.0])
def test_no_plan_is_made_for_a_memory_that_nothing_has(memory: float) -> None:
    with pytest.raises(RecipeError, match=r"--memory is .*; it must be above 0 and at most 10000 \(GiB\)"):
        memory_bytes(memory)


def test_bfloat16_is_chosen_where_the_card_has_it() -> None:
    halves = {name: card.precision for name, card in known_cards().items()}
    assert halves["T4"] == halves["RTX 2080 Ti"] == halves["V100 16GB"] == torch.float16
    assert halves["RTX 3060 12GB"] == halves["A100 40GB"] == halves["RTX 5090"] == torch.bfloat16


def test_products_are_counted_and_timed() -> None:
    with pretending(), Work() as work:
        torch.zeros(64, 32, dtype=torch.bfloat16) @ torch.zeros(32, 16, dtype=torch.bfloat16)
    assert work.flops == {torch.bfloat16: 2 * 64 * 32 * 16}
    work.flops[torch.bfloat16], work.launches, work.bytes = 10**12, 0, 0
    card = Card("one", 8, (8, 0), bandwidth_gbs=1000, matrix_tflops=10, float32_tflops=1)
    seconds = step_seconds(work, card, tf32=True)
    assert seconds is not None and (seconds.low, seconds.high) == pytest.approx((1 / 6, 0.4))


def test_norms_give_float32_under_autocast_as_on_cuda() -> None:
    with pretending(), torch.autocast("cpu", torch.bfloat16):
        x = torch.zeros(1, 32, 8, 8, dtype=torch.bfloat16)
        assert F.group_norm(x, 8).dtype == F.layer_norm(x, (8,)).dtype == torch.float32
        assert F.interpolate(x, scale_factor=2.0).dtype == x.softmax(-1).dtype == torch.float32
        assert F.silu(x).dtype == F.linear(x, torch.zeros(4, 8)).dtype == torch.bfloat16


def test_a_quantised_layer_keeps_its_bits_and_makes_a_whole_weight_for_a_moment() -> None:
    network = nn.Sequential(nn.Linear(512, 1024))
    with pretending():
        make_fake(network)
        in_fewer_bits(network, ["0"], "bnb_nf4", torch.bfloat16)
        with LiveBytes() as live:
            network(torch.zeros(1, 512, dtype=torch.bfloat16))
    weight = network[0].weight
    assert weight.nbytes == pytest.approx(512 * 1024 * (0.5 + 1 / 64), rel=0.001)  # and its scales' scales
    assert 2 * 512 * 1024 <= live.peak <= 2.02 * 512 * 1024
    assert set(BITS) == {"bnb_int8", "bnb_nf4", "torchao_int8", "torchao_float8"}


@pytest.mark.parametrize(
    ("model", "billions"),
    [  # parameters of the denoisers as their model cards and papers have them
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 0.860),
        ("stabilityai/stable-diffusion-2-1", 0.866),
        ("stabilityai/stable-diffusion-xl-base-1.0", 2.567),
        ("Tongyi-MAI/Z-Image", 6.155),
        ("black-forest-labs/FLUX.1-dev", 11.901),
        ("lodestones/Chroma1-HD", 8.900),
        ("black-forest-labs/FLUX.2-klein-base-4B", 3.876),
        ("krea/Krea-2-Raw", 12.820),
        ("stabilityai/stable-diffusion-3.5-medium", 2.243),
        ("circlestone-labs/Anima-Base-v1.0-Diffusers", 1.956),
        ("stabilityai/stable-diffusion-3.5-large", 8.057),
        ("Alpha-VLLM/Lumina-Image-2.0", 2.610),
    ],
)
def test_a_published_base_needs_no_file(model: str, billions: float) -> None:
    family = published_base(model)
    assert family is not None
    numbers = sum(one.numel() for one in family.parts[family.denoiser].parameters())
    assert numbers / 1e9 == pytest.approx(billions, abs=0.001)
