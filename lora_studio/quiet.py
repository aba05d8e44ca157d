"""How loud the libraries below us are."""

from __future__ import annotations

import logging
import os


def quiet_libraries() -> None:
    """Our own progress bars only, and nothing from the network that was not asked for."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):  # each tells of kernels it has not got
        logging.getLogger(name).setLevel(logging.ERROR)
