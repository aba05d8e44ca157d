"""A base's own noise schedule and what it predicts, from its scheduler's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from lora_studio.errors import BaseModelError

if TYPE_CHECKING:
    from diffusers import DDIMScheduler
    from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]
PREDICTIONS = ("epsilon", "v_prediction")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

STABLE_DIFFUSION: Mapping[str, object] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""What every published Stable Diffusion was trained with; it says nothing of the prediction."""


@dataclass(frozen=True)
class NoiseSchedule:
    """How much noise each timestep has, and what the base predicts."""

    prediction: Prediction
    num_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    trained_betas: tuple[float, ...] = ()  # instead of the three above
    zero_terminal_snr: bool = False

    @property
    def alphas(self) -> Tensor:
        """[T] in 0..1, float32: the product of 1 - beta; at zero terminal SNR the last is exactly 0."""
        import torch

        alphas = torch.cumprod(1 - self._betas(), 0)
        if self.zero_terminal_snr:  # arXiv 2305.08891, algorithm 1
            root = alphas.sqrt()
            alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return alphas.float()

    def _betas(self) -> Tensor:
        """[T], float64."""
        import torch

        if self.trained_betas:
            return torch.tensor(self.trained_betas, dtype=torch.float64)
        if self.beta_schedule == "squaredcos_cap_v2":  # arXiv 2102.09672, eq. 17
            share = torch.linspace(0, 1, self.num_timesteps + 1, dtype=torch.float64)
            remains = torch.cos((share + 0.008) / 1.008 * torch.pi / 2) ** 2
            return (1 - remains[1:] / remains[:-1]).clamp(max=0.999)
        power = 2 if self.beta_schedule == "scaled_linear" else 1
        ends = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        return torch.linspace(*ends, self.num_timesteps, dtype=torch.float64) ** power

    def ddim(self) -> DDIMScheduler:
        """The scheduler for images that depend on their seed alone."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            num_train_timesteps=self.num_timesteps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule=self.beta_schedule,
            trained_betas=list(self.trained_betas) or None,
            prediction_type=self.prediction,
            rescale_betas_zero_snr=self.zero_terminal_snr,
            **drawing_options(zero_terminal_snr=self.zero_terminal_snr),
        )


def drawing_options(*, zero_terminal_snr: bool) -> dict[str, object]:
    # with zero terminal SNR drawing has to start at the last timestep: arXiv 2305.08891, sec. 3.3
    spacing = "trailing" if zero_terminal_snr else "leading"
    return {"timestep_spacing": spacing, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def read_schedule(scheduler: Mapping[str, object]) -> NoiseSchedule:
    """The schedule in a scheduler's configuration. Raises BaseModelError for noise that is none of DDPM's."""
    config = dict(scheduler)
    _refuse_other_noise(config)
    stated = config.get("prediction_type") or "epsilon"
    if stated not in PREDICTIONS:
        supported = ", ".join(PREDICTIONS)
        raise BaseModelError(f"the base predicts {stated!r}, as its scheduler says; supported: {supported}.")
    zero_terminal_snr = bool(config.get("rescale_betas_zero_snr"))
    if zero_terminal_snr and stated == "epsilon":
        raise BaseModelError(
            "the base's scheduler rescales its noise to zero terminal SNR, where epsilon says nothing about "
            "the image (arXiv 2305.08891), yet it is said to predict epsilon; correct prediction_type or "
            "rescale_betas_zero_snr in scheduler/scheduler_config.json."
        )
    betas = cast(float, config["beta_start"]), cast(float, config["beta_end"]), str(config["beta_schedule"])
    trained = tuple(cast(list[float], config.get("trained_betas") or ()))
    steps = cast(int, config.get("num_train_timesteps", 1000))
    return NoiseSchedule(cast(Prediction, stated), steps, *betas, trained, zero_terminal_snr)


def with_prediction(scheduler: Mapping[str, object], wanted: str) -> dict[str, object]:
    """A scheduler's configuration with the recipe's prediction type where it says none of its own.

    One that says what is predicted is believed, and another one in the recipe refused with BaseModelError: a
    wrong prediction ruins a run silently.
    """
    config = dict(scheduler)
    stated = config.get("prediction_type")
    if wanted == "auto" or stated == wanted:
        return config
    if is_flow(config):
        raise BaseModelError(
            f"base.prediction_type is {wanted!r}, but the base was trained by flow matching and predicts the "
            "velocity from image to noise; leave the option out."
        )
    if stated:
        raise BaseModelError(
            f"base.prediction_type is {wanted!r}, but the base's scheduler says {stated!r}; leave the option "
            "out, or correct prediction_type in scheduler/scheduler_config.json if that is wrong."
        )
    return config | {"prediction_type": wanted}


def is_flow(scheduler: Mapping[str, object]) -> bool:
    """Whether it is one of diffusers' schedulers for flow matching, which have sigmas and no betas."""
    return str(scheduler.get("_class_name", "")).startswith("FlowMatch")


def _refuse_other_noise(config: dict[str, object]) -> None:
    lacking = [key for key in ("beta_start", "beta_end", "beta_schedule") if key not in config]
    if lacking or "sigma_data" in config:  # EDM's schedulers have betas of no meaning
        name = config.get("_class_name", "without a name")
        raise BaseModelError(
            f"the base's scheduler ({name}) is not one with betas as Stable Diffusion's are; bases with "
            "another kind of noise, such as EDM or flow matching, are not supported yet."
        )
    if config["beta_schedule"] not in BETA_SCHEDULES:
        raise BaseModelError(
            f"the base's scheduler has the beta_schedule {config['beta_schedule']!r}; "
            f"supported: {', '.join(BETA_SCHEDULES)}."
        )
