"""Values that were derived by hand from sd-scripts' and diffusers' sources, met exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from migrations import EXAMPLES, taken

from lora_studio.recipe import Recipe

# 2 images in photos/ and in each of its folders
SD_SCRIPTS: dict[str, dict[str, Any]] = {
    "sd_scripts_style_sdxl.toml": {
        "training.epochs": 10.0,
        "training.batch_size": 4,
        "training.gradient_accumulation": 2,
        "training.learning_rate": 5e-5,  # unet_lr comes before learning_rate
        "training.warmup_steps": 0.05,
        "training.lr_schedule": "cosine",
        "training.lr_schedule_floor": 0.0,  # theirs ends at 0, ours at a tenth
        "training.optimizer": "adamw8bit",
        "training.optimizer_options": {"betas": (0.9, 0.99)},
        "training.weight_decay": 0.1,
        "training.checkpoint_every": 1,  # ceil(ceil(2 / 4) / 2) steps an epoch
        "adapter.rank": 32,
        "adapter.alpha": 16.0,  # scale 0.5
        "adapter.conv": True,
        "adapter.conv_rank": 16,
        "adapter.conv_alpha": 8.0,
        "adapter.text_encoder": False,
        "data.resolution": 1024,
        "data.max_upscale": 1.0,  # bucket_no_upscale
        "data.max_token_chunks": 3,  # 225 tokens
        "data.keep_tags": 1,
        "data.caption_dropout": 0.0,  # theirs; ours is 0.05
        "objective.snr_gamma": 5.0,
        "objective.noise_offset": 0.0357,
        "objective.multires_noise": 0.3,
    },
    "sd_scripts_subject.toml": {
        "training.steps": 1600,  # 4 images a step: 2 of the dog, 2 regularization images, as there on average
        "training.batch_size": 2,
        "training.learning_rate": 1e-4,
        "training.text_encoder_learning_rate": 5e-5,
        "training.optimizer": "lion",
        "training.weight_decay": 0.0,  # lion-pytorch's own
        "training.lr_schedule": "constant",
        "training.warmup_steps": 0,  # get_constant_schedule has none, whatever lr_warmup_steps says
        "adapter.rank": 16,
        "adapter.alpha": 1.0,  # scale 1/16
        "adapter.text_encoder": True,  # unless network_train_unet_only
        "base.dtype": "float16",
        "data.max_upscale": 16.0,
        "objective.snr_gamma": 0.0,  # none there; ours is 5
        "objective.noise_offset": 0.0,
    },
    "sd_scripts_dataset.toml": {
        "training.steps": 1600,  # the default of max_train_steps
        "training.learning_rate": 2e-6,  # the default of learning_rate
        "training.batch_size": 2,
        "adapter.rank": 4,  # networks.lora without a dim
        "adapter.alpha": 1.0,
        "data.resolution": 640,  # sqrt(768 x 512) = 627, in steps of 64
        "data.flip": 0.5,
        "data.caption_dropout": 0.1,
        "data.tag_dropout": 0.2,
        "base.dtype": "float32",  # mixed_precision no
    },
    "sd_scripts_lokr.sh": {
        "training.steps": 2000,
        "training.batch_size": 4,  # 2 on each of 2 processes
        "training.learning_rate": 1.0,
        "training.optimizer": "prodigy",
        "training.optimizer_options": {"d_coef": 2, "use_bias_correction": True, "safeguard_warmup": False},
        "training.weight_decay": 0.01,
        "adapter.kind": "lokr",
        "adapter.conv": False,  # preset attn-mlp
        "adapter.max_norm": 1.0,
        "objective.weighting": "debiased",
        "objective.timestep_range": (0.1, 0.9),
        "objective.input_perturbation": 0.1,
        "objective.loss": "huber",
        "objective.loss_delta": 0.05,
        "base.dtype": "bfloat16",  # of accelerate launch
    },
    "sd_scripts_flux.bat": {
        "training.epochs": 4.0,
        "training.checkpoint_every": 2,  # 2 images, 1 a step
        "training.learning_rate": 1e-4,
        "adapter.rank": 4,
        "adapter.alpha": 1.0,
        "adapter.text_encoder": False,
        "objective.density": "logit_normal",
        "objective.shift": 3.1582,
        "base.quantize": "torchao_float8",
    },
    "sd_scripts_adafactor.sh": {
        "training.steps": 500,  # 1000 of one image each, half of them of reg_data_dir: 500 of both
        "training.batch_size": 1,
        "training.optimizer": "adafactor",
        "training.weight_decay": 0.0,
        "training.lr_schedule": "constant",
        "training.warmup_steps": 100,
        "training.max_grad_norm": 1e6,
        "training.text_encoder_learning_rate": 1e-5,
        "base.prediction_type": "v_prediction",
        "objective.snr_gamma": 0.0,
    },
    "sd_scripts_sd3.toml": {
        "training.steps": 800,
        "training.optimizer": "came_pytorch:CAME",
        "training.lr_schedule": "linear",
        "objective.density": "logit_normal",
        "objective.loss": "smooth_l1",
        "objective.loss_delta": 0.001,
        "objective.snr_gamma": 5.0,  # our default: of no use to flow matching
    },
}
DIFFUSERS: dict[str, dict[str, Any]] = {
    "diffusers_text_to_image.sh": {
        "training.epochs": 100.0,
        "training.batch_size": 1,
        "training.learning_rate": 1e-4,
        "training.warmup_steps": 0,
        "training.weight_decay": 0.01,
        "adapter.rank": 4,  # the script's default
        "adapter.alpha": 4.0,
        "data.flip": 0.5,
        "data.crop": "random",
        "objective.snr_gamma": 0.0,
        "objective.noise_offset": 0.0,
    },
    "diffusers_text_to_image_sdxl.sh": {
        "training.steps": 1500,
        "training.batch_size": 4,  # 2 on each of 2 processes
        "training.gradient_accumulation": 4,
        "training.learning_rate": 1.6e-4,  # scale_lr: 1e-5 x 4 x 2 x 2
        "training.text_encoder_learning_rate": 1.6e-4,
        "training.optimizer": "adamw8bit",
        "training.lr_schedule_floor": 0.0,
        "training.warmup_steps": 100,
        "adapter.alpha": 16.0,
        "data.crop": "centre",
        "objective.snr_gamma": 5.0,
        "objective.noise_offset": 0.05,
        "base.vae": "madebyollin/sdxl-vae-fp16-fix",
    },
    "diffusers_dreambooth.sh": {
        "training.steps": 500,
        "training.batch_size": 1,
        "training.lr_schedule": "linear",
        "training.warmup_steps": 500,  # the script's default
        "training.weight_decay": 0.02,
        "training.optimizer_options": {"betas": (0.9, 0.99)},
        "data.regularization_images.count": 200,
        "data.regularization_images.prompt": "a photo of dog",
        "data.regularization_images.weight": 0.5,
        "data.regularization_images.per_image": 1.0,
        "data.instance_prompt": "a photo of sks dog",
    },
    "diffusers_dreambooth_sdxl.sh": {
        "training.steps": 500,
        "training.gradient_accumulation": 4,
        "training.learning_rate": 1.0,
        "training.text_encoder_learning_rate": 1.0,
        "training.optimizer_options": {
            "use_bias_correction": True,
            "safeguard_warmup": True,
            "betas": (0.9, 0.99),
        },
        "training.weight_decay": 0.01,
        "adapter.kind": "dora",
        "adapter.rank": 8,
        "adapter.alpha": 4.0,  # the default of --lora_alpha: scale 0.5
        "data.repeats": 2,
        "objective.snr_gamma": 5.0,
    },
    "diffusers_dreambooth_flux.sh": {
        "training.steps": 500,
        "training.weight_decay": 1e-4,
        "adapter.rank": 16,
        "adapter.alpha": 8.0,  # scale 0.5
        "objective.density": "logit_normal",
        "objective.shift": 1.0,  # FLUX.1's own schedule is not shifted while the script trains
        "data.resolution": 512,
    },
    "diffusers_dreambooth_sd3.sh": {
        "training.steps": 500,
        "training.learning_rate": 4e-4,
        "training.weight_decay": 1e-4,
        "objective.density": "logit_normal",
        "objective.shift": "auto",  # 3, as the base's scheduler says
    },
}


def value_of(recipe: Recipe, option: str) -> Any:
    value: Any = recipe
    for part in option.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", [*SD_SCRIPTS, *DIFFUSERS])
def test_what_was_derived_by_hand_is_met(name: str, images: Path) -> None:
    recipe = taken(name, images).recipe
    expected = (SD_SCRIPTS | DIFFUSERS)[name]
    found = {option: value_of(recipe, option) for option in expected}
    for option, value in expected.items():
        if isinstance(value, float):
            assert math.isclose(found[option], value, rel_tol=1e-9), (option, found[option])
        else:
            assert found[option] == value, (option, found[option])


def test_all_examples_of_both_are_in_the_table() -> None:
    names = {one.name for one in EXAMPLES.glob("sd_scripts*")} | {
        one.name for one in EXAMPLES.glob("diffusers*")
    }
    assert names == set(SD_SCRIPTS | DIFFUSERS)


@pytest.mark.parametrize(
    ("name", "patterns"),
    [
        ("diffusers_text_to_image.sh", ["*.ff.net.*", "*.proj_in", "*.proj_out"]),
        ("diffusers_dreambooth_flux.sh", ["*.proj_mlp", "single_transformer_blocks.*.proj_out"]),
    ],
)
def test_layers_that_the_scripts_leave_alone_are_left_out(
    name: str, patterns: list[str], images: Path
) -> None:
    layers = taken(name, images).recipe.adapter.layers
    assert [one.pattern for one in layers] == patterns and all(one.train is False for one in layers)


def test_the_other_trainers_steps_rates_and_scales(images: Path) -> None:
    recipe = taken("onetrainer_sd15.json", images).recipe
    assert math.isclose(
        recipe.training.learning_rate, 2e-4 * math.sqrt(8), rel_tol=1e-9
    )  # scaler BOTH: 2 x 4
    assert math.isclose(recipe.training.text_encoder_learning_rate, 5e-5 * math.sqrt(8), rel_tol=1e-9)
    assert recipe.training.warmup_steps == 10  # 40 micro-batches, 4 in a step
    assert [(one.pattern, one.stop_at) for one in recipe.adapter.layers] == [("text_encoder.*", 0.5)]
    recipe = taken("ai_toolkit_sd15.yaml", images).recipe
    assert (recipe.training.steps, recipe.training.checkpoint_every) == (1000, 250)  # 4 micro-batches a step
    recipe = taken("simpletuner_lokr.json", images).recipe
    assert (recipe.data.repeats, recipe.data.resolution) == (10, 1024)  # 9 more; a megapixel
    recipe = taken("kohya_ss_standard.json", images).recipe
    assert recipe.training.warmup_steps == 0.1 and recipe.objective.multires_noise == 0.0
    assert recipe.samples.negative_prompt == "blurry" and recipe.samples.steps == 28
