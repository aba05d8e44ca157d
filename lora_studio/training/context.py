"""What was trained: a base with adapters in it, and what is known of how; all that its files are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.data.batches import BatchPlan
from lora_studio.data.manifest import Manifest
from lora_studio.families.base import ModelFamily
from lora_studio.processes import Processes
from lora_studio.recipe import Recipe
from lora_studio.runs import Run
from lora_studio.training.machine import Machine


@dataclass
class TrainedRun:
    """In training or after it."""

    recipe: Recipe
    run: Run
    machine: Machine
    family: ModelFamily
    base_fingerprint: str
    manifest: Manifest
    adapters: AdapterSet
    processes: Processes
    batches: BatchPlan
    inputs: Mapping[str, str]  # option -> sha256 of the LoRA file that it names
