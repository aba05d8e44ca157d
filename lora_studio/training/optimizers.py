"""Optimizers by name. All get (groups, weight_decay=...) with a learning rate in each group."""

from __future__ import annotations

import torch

from lora_studio.registry import Registry

OPTIMIZERS: Registry[type[torch.optim.Optimizer]] = Registry("optimizer", {"adamw": "torch.optim:AdamW"})
