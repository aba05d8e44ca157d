"""Options in the finished file's metadata: kohya's keys, as text, only where they were used."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from safetensors import safe_open

from lora_studio.data.manifest import Manifest, Record
from lora_studio.recipe import Recipe
from lora_studio.training.finish import Finished
from lora_studio.training.finish.file_facts import used_options

PLAIN = {"name": "a", "base": {"model": "secret/base"}, "data": {"images": "/secret", "caption_dropout": 0}}
OFF = {"warmup_steps": 0}
IMAGE = Record(path="/secret/a.png", name="a.png", caption="a secret", width=64, height=64)


def options_of(**sections: dict[str, object]) -> dict[str, str]:
    values = {**PLAIN, "training": OFF, **sections}
    values["data"] = {**PLAIN["data"], **sections.get("data", {})}  # type: ignore[dict-item]
    regularization_images = tuple(
        replace(IMAGE, role="prior", weight=0.5) for _ in range(3 * ("data" in sections))
    )
    return used_options(
        Recipe.model_validate(values), Manifest((IMAGE, *regularization_images)), latent_side=64
    )


def test_of_defaults_only_the_largest_gradient_is_said() -> None:
    assert options_of() == {"ss_max_grad_norm": "1"}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {"objective": {"loss": "huber", "loss_delta": 0.1}},
            {"ss_loss_type": "huber", "ss_huber_schedule": "constant", "ss_huber_c": "0.1"},
        ),
        (
            {"objective": {"multires_noise": 0.3, "input_perturbation": 0.1}},
            {
                "ss_multires_noise_iterations": "6",
                "ss_multires_noise_discount": "0.3",
                "ss_ip_noise_gamma": "0.1",
            },
        ),
        (
            {"data": {"caption_dropout": 0.05}},
            {"ss_num_reg_images": "3", "ss_prior_loss_weight": "0.5", "ss_caption_dropout_rate": "0.05"},
        ),
        ({"adapter": {"max_norm": 1.0}}, {"ss_scale_weight_norms": "1"}),
        (
            {"training": {**OFF, "optimizer_options": {"betas": (0.9, 0.99), "d_coef": 2, "log": "/secret"}}},
            {"ss_optimizer": "adamw(betas=(0.9, 0.99),d_coef=2)"},
        ),
        (
            {"training": {"warmup_steps": 20, "gradient_accumulation": 2}},
            {"ss_lr_warmup_steps": "20", "ss_gradient_accumulation_steps": "2"},
        ),
    ],
)
def test_what_is_used_stands_under_kohyas_names(
    sections: dict[str, dict[str, object]], expected: dict[str, str]
) -> None:
    found = options_of(**sections)
    assert found == {"ss_max_grad_norm": "1"} | expected
    assert "secret" not in str(found)


def test_arguments_of_the_network_are_a_table_of_strings() -> None:
    adapter = {"kind": "locon", "conv_rank": 8, "rank_dropout": 0.1, "lora_plus_ratio": 4}
    found = options_of(adapter=adapter)["ss_network_args"]
    assert json.loads(found) == {"conv_dim": "8", "rank_dropout": "0.1", "loraplus_lr_ratio": "4"}


def test_a_finished_file_has_them(finished: Finished) -> None:
    with safe_open(finished.lora_file, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_max_grad_norm"] == "1" and metadata["ss_lr_warmup_steps"] == "1"
    assert metadata["ss_network_args"] == "{}" and "ss_loss_type" not in metadata
    assert str(finished.folder.parent) not in str(metadata)
