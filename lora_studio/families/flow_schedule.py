"""How a base's own scheduler shifts the sigmas of flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from lora_studio.errors import BaseModelError
from lora_studio.families.noise_schedule import is_flow
from lora_studio.objectives.sigmas import DynamicShift, StaticShift

FLOW_KEYS = (
    *("shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
    *("time_shift_type", "shift_terminal"),
)
"""All of its configuration that says how."""


def read_shift(scheduler: Mapping[str, object]) -> StaticShift | DynamicShift:
    """How a flow-matching scheduler's configuration shifts sigmas, for families that are trained with that.

    Raises BaseModelError for another scheduler, for what only diffusion has (a prediction type, zero terminal
    SNR), and for a dynamic shift that is not exponential.
    """
    name = str(scheduler.get("_class_name", "without a name"))
    if not is_flow(scheduler):
        raise BaseModelError(f"the base's scheduler ({name}) is not one of flow matching.")
    for key, off in (("prediction_type", "flow_prediction"), ("rescale_betas_zero_snr", False)):
        if (value := scheduler.get(key) or off) != off:
            raise BaseModelError(
                f"the base's scheduler ({name}) has {key} = {value!r}, which means nothing in flow matching; "
                "take it out of scheduler/scheduler_config.json."
            )
    if not scheduler.get("use_dynamic_shifting"):
        return StaticShift(cast(float, scheduler.get("shift", 1.0)))
    if (kind := scheduler.get("time_shift_type", "exponential")) != "exponential":
        raise BaseModelError(
            f"the base's scheduler has time_shift_type = {kind!r} in scheduler/scheduler_config.json; "
            "supported: exponential."
        )
    line = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    return DynamicShift(*(cast(int, scheduler.get(key, usual)) for key, usual in line.items()))
