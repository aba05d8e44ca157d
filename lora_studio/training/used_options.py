"""What of a recipe stands in the LoRA file under kohya's names, where it is not the default.

The names and forms of sd-scripts' train_network.py; what it takes as network_args is a table of strings.
Where it has no name for an option there is none here. Its huber is a smooth form of ours.
"""

from __future__ import annotations

import json

from lora_studio.data.manifest import Manifest
from lora_studio.noises import MOST_LEVELS
from lora_studio.recipe import Recipe


def used_options(recipe: Recipe, manifest: Manifest, *, latent_side: int) -> dict[str, str]:
    """Key -> value of all options that are used; no path, name or caption. `latent_side`: the longer one."""
    objective, training = recipe.objective, recipe.training
    is_huber, class_pictures = objective.loss != "l2", manifest.of_role("prior")
    weights = {record.weight for record in class_pictures}
    levels = min(MOST_LEVELS, max(1, latent_side.bit_length() - 1))  # halved down to a single number
    values: dict[str, str | int | float] = {
        "ss_loss_type": objective.loss if is_huber else "",
        "ss_huber_schedule": "constant" if is_huber else "",
        "ss_huber_c": objective.loss_delta if is_huber else 0,
        "ss_multires_noise_iterations": levels if objective.multires_noise else 0,
        "ss_multires_noise_discount": objective.multires_noise,
        "ss_ip_noise_gamma": objective.input_perturbation,
        "ss_num_reg_images": len(class_pictures),
        "ss_prior_loss_weight": weights.pop() if len(weights) == 1 else 0,
        "ss_scale_weight_norms": recipe.adapter.max_norm,
        "ss_caption_dropout_rate": recipe.data.caption_dropout,
        "ss_caption_tag_dropout_rate": recipe.data.tag_dropout,
        "ss_lr_warmup_steps": training.warmup,
        "ss_gradient_accumulation_steps": training.accumulation if training.accumulation > 1 else 0,
        "ss_max_grad_norm": training.max_grad_norm,
    }
    texts = {key: value if isinstance(value, str) else f"{value:g}" for key, value in values.items() if value}
    if arguments := _network_arguments(recipe):
        texts["ss_network_args"] = json.dumps(arguments)
    if options := _optimizer_arguments(recipe):
        texts["ss_optimizer"] = f"{training.optimizer}({options})"
    return texts


def _network_arguments(recipe: Recipe) -> dict[str, str]:
    adapter = recipe.adapter
    values = {
        "conv_dim": adapter.conv_rank,
        "conv_alpha": adapter.conv_alpha,
        "rank_dropout": adapter.rank_dropout,
        "module_dropout": adapter.module_dropout,
        "loraplus_lr_ratio": adapter.lora_plus_ratio if adapter.lora_plus_ratio != 1 else None,
    }
    return {name: f"{value:g}" for name, value in values.items() if value}


def _optimizer_arguments(recipe: Recipe) -> str:
    """Numbers and switches only: a text may be a path."""
    options = recipe.training.optimizer_options
    shown = {name: value for name, value in options.items() if not isinstance(value, str)}
    return ",".join(f"{name}={value}" for name, value in shown.items())
