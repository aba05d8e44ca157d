"""What the other trainers do unless they are told otherwise, as their sources say; odd files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lora_studio.errors import RecipeError
from lora_studio.recipe.migrate import Migrated, MigrationInputs, migrate

LYCORIS = 'network_module = "lycoris.kohya"\nnetwork_dim = 16\nnetwork_alpha = 8\n'
KOHYA = 'network_module = "networks.lora"\nnetwork_dim = 16\nnetwork_alpha = 8\n'


def made(text: str, images: Path, name: str = "a.toml", **inputs: str) -> Migrated:
    path = images.parent / name
    path.write_text(text, "utf-8")
    return migrate([path], MigrationInputs(images=images, base="pocket", **inputs), folder=images.parent)


def left_out(found: Migrated) -> list[str]:
    return [one.pattern for one in found.recipe.adapter.layers if not one.train]


@pytest.mark.parametrize(
    ("settings", "rank", "alpha"),
    [  # sd-scripts' networks/lora.py: 1 if it is not given; LyCORIS' kohya.py: that of the other layers
        (KOHYA + 'network_args = ["conv_dim=4"]', 4, 1.0),
        (LYCORIS + 'network_args = ["conv_dim=4"]', 4, 8.0),
        (LYCORIS + 'network_args = ["conv_dim=4", "conv_alpha=2"]', 4, 2.0),
        (LYCORIS, None, None),
    ],
)
def test_the_alpha_of_convolutions(
    settings: str, rank: int | None, alpha: float | None, images: Path
) -> None:
    adapter = made(settings, images).recipe.adapter
    assert adapter.conv or adapter.kind == "locon"
    assert (adapter.conv_rank, adapter.conv_alpha) == (rank, alpha)


@pytest.mark.parametrize(
    ("preset", "conv", "encoder", "patterns"),
    [  # LyCORIS' config.py
        ("full", True, True, []),
        ("attn-mlp", False, True, []),
        ("unet-only", True, False, []),
        ("unet-transformer-only", False, False, []),
        ("unet-convblock-only", True, False, ["*.attentions.*"]),
        (
            "attn-only",
            False,
            True,
            ["*.ff.net.*", "*.proj_in", "*.proj_out", "text_encoder*.fc1", "text_encoder*.fc2"],
        ),
    ],
)
def test_presets_of_lycoris(
    preset: str, conv: bool, encoder: bool, patterns: list[str], images: Path
) -> None:
    found = made(LYCORIS + f'network_args = ["algo=loha", "preset={preset}"]', images)
    adapter = found.recipe.adapter
    assert (adapter.conv, adapter.text_encoder, left_out(found)) == (conv, encoder, patterns)


def test_no_convolutions_are_asked_for_by_a_dimension_of_0(images: Path) -> None:
    adapter = made(LYCORIS + 'network_args = ["algo=lokr", "conv_dim=0"]', images).recipe.adapter
    assert (adapter.kind, adapter.conv) == ("lokr", False)


def test_a_preset_of_ones_own_is_named(images: Path) -> None:
    found = made(LYCORIS + 'network_args = ["preset=mine.toml"]', images)
    assert any(one.key.endswith("preset") and one.fate == "not supported" for one in found.draft.fates)


@pytest.mark.parametrize(
    ("script", "alpha"),
    [  # --lora_alpha has been there since June 2025 (diffusers 11723, 11739), with a default of 4
        ("train_dreambooth_lora_flux.py", 4.0),
        ("train_dreambooth_lora_sdxl.py", 4.0),
        ("train_dreambooth_lora.py", 16.0),
        ("train_text_to_image_lora.py", 16.0),
    ],
)
def test_alpha_of_diffusers_scripts(script: str, alpha: float, images: Path) -> None:
    found = made(f"python {script} --rank 16 --max_train_steps 5", images, "a.sh")
    assert found.recipe.adapter.alpha == alpha
    assert any("before June 2025" in note for note in found.draft.notes) == (alpha == 4)


def one_trainer(**settings: Any) -> str:
    return json.dumps({"training_method": "LORA", "base_model_name": "x/y", "epochs": 60, **settings})


@pytest.mark.parametrize(
    ("settings", "stops"),
    [  # TrainConfig.default_values: text encoders are trained for 30 epochs
        ({}, {"text_encoder.*": 0.5}),
        ({"text_encoder": {"weight_dtype": "FLOAT_16"}}, {"text_encoder.*": 0.5}),
        ({"text_encoder": {"train": True, "stop_training_after": 6}}, {"text_encoder.*": 0.1}),
        ({"text_encoder": {"train": True, "stop_training_after": None}}, {}),
        ({"text_encoder": {"train": False}}, None),
        ({"train_text_encoder": True, "train_text_encoder_epochs": 15}, {"text_encoder.*": 0.25}),
        ({"train_text_encoder": False, "train_text_encoder_epochs": 15}, None),
        (
            {"model_type": "STABLE_DIFFUSION_XL_10_BASE"},
            {"text_encoder.*": 0.5, "text_encoder_2.*": 0.5},
        ),
        ({"model_type": "FLUX_DEV_1"}, None),
    ],
)
def test_text_encoders_of_onetrainer(
    settings: dict[str, Any], stops: dict[str, float] | None, images: Path
) -> None:
    adapter = made(one_trainer(**settings), images, "a.json").recipe.adapter
    assert adapter.text_encoder == (stops is not None)
    assert {one.pattern: one.stop_at for one in adapter.layers} == (stops or {})


@pytest.mark.parametrize(
    ("scaler", "size"), [("NONE", 1), ("BATCH", 2), ("GRADIENT_ACCUMULATION", 8), ("BOTH", 16)]
)
def test_onetrainer_multiplies_rates_by_the_root(scaler: str, size: int, images: Path) -> None:
    """BaseModelSetup.create_param_groups."""
    text = one_trainer(
        learning_rate=1e-4, batch_size=2, gradient_accumulation_steps=8, learning_rate_scaler=scaler
    )
    rate = made(text, images, "a.json").recipe.training.learning_rate
    assert math.isclose(rate, 1e-4 * math.sqrt(size))


def ai_toolkit(train: dict[str, Any], network: dict[str, Any] | None = None) -> str:
    process = {
        "type": "sd_trainer",
        "network": network or {"type": "lora"},
        "train": train,
        "model": {"name_or_path": "x/y"},
    }
    return json.dumps({"job": "extension", "config": {"name": "a", "process": [process]}})


def test_network_and_optimizer_of_ai_toolkit(images: Path) -> None:
    """toolkit/config_modules.py and toolkit/optimizer.py."""
    recipe = made(ai_toolkit({"optimizer": "adamw8bit"}), images, "a.json").recipe
    assert (recipe.adapter.rank, recipe.adapter.alpha) == (4, 1.0)
    assert (recipe.training.steps, recipe.training.learning_rate) == (1000, 1e-6)
    assert (recipe.training.weight_decay, recipe.training.optimizer_options) == (0.01, {"eps": 1e-6})
    network = {"type": "lora", "linear": 8, "alpha": 2, "conv": 4}
    adapter = made(ai_toolkit({}, network), images, "a.json").recipe.adapter
    assert (adapter.rank, adapter.alpha, adapter.conv_rank, adapter.conv_alpha) == (8, 2.0, 4, 4.0)


@pytest.mark.parametrize(("said", "rate"), [(1e-4, 1.0), (0.5, 0.5)])
def test_prodigys_rate_in_ai_toolkit_is_at_least_a_tenth(said: float, rate: float, images: Path) -> None:
    found = made(ai_toolkit({"optimizer": "prodigy", "lr": said}), images, "a.json")
    assert found.recipe.training.learning_rate == rate


def simple_tuner(**settings: Any) -> str:
    return json.dumps({"model_family": "sdxl", "data_backend_config": "gone.json", **settings})


def test_defaults_of_simpletuner(images: Path) -> None:
    """Its field registry, and lora_alpha in models/common.py: the rank."""
    found = made(simple_tuner(lora_rank=8), images, "a.json")
    recipe = found.recipe
    assert (recipe.adapter.rank, recipe.adapter.alpha) == (8, 8.0)
    assert (recipe.training.lr_schedule, recipe.training.warmup_steps) == ("constant", 0)
    assert (recipe.training.learning_rate, recipe.training.batch_size) == (4e-7, 4)
    assert any("a tenth of a LoRA's inputs" in note for note in found.draft.notes)


def test_gradients_of_simpletuner_are_clipped_by_value(images: Path) -> None:
    fates = {
        method: {
            one.key: one.fate
            for one in made(simple_tuner(max_grad_norm=2, **method_of), images, "a.json").draft.fates
        }["max_grad_norm"]
        for method, method_of in (("", {}), ("norm", {"grad_clip_method": "norm"}))
    }
    assert fates == {"": "another meaning", "norm": "exactly"}


def test_odd_files_are_read_as_their_trainers_would(images: Path) -> None:
    """A mark at the start, line ends of Windows, comments and last commas, anchors, quotes over lines."""
    plain = one_trainer(lora_rank=8)
    odd = "\ufeff// mine\r\n" + plain.replace('"lora_rank"', '/* of "it" */ "lora_rank"')[:-1] + ",\r\n}\r\n"
    assert made(odd, images, "a.json").recipe.adapter == made(plain, images, "b.json").recipe.adapter
    held = one_trainer(samples=[{"prompt": "a // b /* c */, }"}])[:-1] + ",}"
    assert made(held, images, "c.json").recipe.samples.prompts == ("a // b /* c */, }",)
    text = (
        "job: extension\nbase: &base {steps: 7, batch_size: 2}\nconfig:\n  name: a\n  process:\n"
        "  - type: sd_trainer\n    train: {<<: *base, steps: 9}\n    model: {name_or_path: x/y}\n"
    )
    training = made(text.replace("\n", "\r\n"), images, "a.yaml").recipe.training
    assert (training.steps, training.batch_size) == (9, 2)
    command = (
        "export R=8\r\naccelerate launch \\\r\n  train_network.py \\\r\n  --network_dim=$R \\\r\n"
        "  --output_name \"my file\" --max_train_steps 1_000 \\\r\n  --caption_extension='.txt'\r\n"
    )
    recipe = made(command, images, "a.sh").recipe
    assert (recipe.adapter.rank, recipe.name, recipe.training.steps) == (8, "my_file", 1000)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"training_method": "LORA", "lora_rank": 4, "lora_rank": 8}'),
        ("a.yaml", "job: x\nconfig: {process: [{lora_rank: 1, lora_rank: 2}]}"),
    ],
)
def test_a_key_that_is_there_twice_is_a_sentence(name: str, text: str, images: Path) -> None:
    with pytest.raises(RecipeError, match="has the key lora_rank twice; keep one of them"):
        made(text, images, name)


def test_what_is_asked_for_beside_the_settings_comes_first(images: Path) -> None:
    text = KOHYA + 'pretrained_model_name_or_path = "C:/gone.safetensors"\noutput_name = "theirs"\n'
    found = made(text, images, name="a.toml")
    fates = {one.key: one.fate for one in found.draft.fates}
    assert fates["pretrained_model_name_or_path"] == "not needed" and fates["output_name"] == "exactly"
    assert (found.recipe.base.model, found.recipe.name) == ("pocket", "theirs")
