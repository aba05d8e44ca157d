"""A frozen denoiser that is spread over the processes, for bases too large for one device."""

from __future__ import annotations

import torch

from lora_studio.errors import RecipeError
from lora_studio.families.base import ModelFamily, innermost_blocks
from lora_studio.processes import Processes
from lora_studio.quantization import NONE
from lora_studio.recipe import Recipe


def is_sharded(recipe: Recipe, processes: Processes) -> bool:
    """Whether the recipe's base is spread. Raises RecipeError for what does not go with it."""
    if not recipe.machine.shard_base or processes.count == 1:
        return False
    for option in ("preservation", "masked_preservation"):
        if getattr(recipe.objective, option):
            raise RecipeError(
                f"machine.shard_base and objective.{option} do not go together: all processes have to run "
                "the base at once, and an image that asks it makes only its own run it once more; leave one "
                "out."
            )
    if recipe.base.quantize != NONE or recipe.machine.compile:
        raise RecipeError(
            "machine.shard_base goes neither with base.quantize nor with machine.compile; leave one out."
        )
    return True


def shard(family: ModelFamily, processes: Processes, device: torch.device, dtype: torch.dtype) -> None:
    """Leave 1/count of every weight of the denoiser on each process's device, in `dtype`.

    FSDP2 (torch.distributed.fsdp.fully_shard) gathers a block's weights while it runs and lets them go again.
    The weights go to the device block by block, so that it never holds all of them. Adapters put into the
    layers afterwards are none of FSDP's business: they stay whole on every process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.count,))
    denoiser = family.parts[family.denoiser]
    family.pinned_parts = frozenset({family.denoiser})  # FSDP2 keeps references to its shards
    if next(denoiser.parameters()).dtype != dtype:
        denoiser.to(dtype)
    for block in [*innermost_blocks(denoiser), denoiser]:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
