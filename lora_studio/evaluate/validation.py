"""The loss on validation images at fixed noise and timesteps, beside the base's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lora_studio.families.base import Conditioning, ModelFamily
from lora_studio.objectives.base import Objective
from lora_studio.rng import generator

TIMESTEPS = 8  # the middles of as many equal parts; the loss differs far more between timesteps than images


@dataclass(frozen=True)
class ValidationImage:
    name: str
    sha256: str
    caption: str
    latents: Tensor  # [C, H, W], the mean of what the VAE says
    geometry: Tensor  # [6], as in a batch
    weight: Tensor  # [H, W] with a mean of 1, or [1, 1]


@dataclass(frozen=True)
class ValidationResult:
    step: int
    names: tuple[str, ...]
    losses: Tensor  # [N], mean squared error over all timesteps, without weighting
    base: Tensor  # [N], the base's
    relative: Tensor  # [N], of the base's, each timestep alike

    def row(self) -> dict[str, Any]:
        """A line of validation.jsonl."""
        return {
            "step": self.step,
            "loss": self.losses.mean().item(),
            "relative": self.relative.mean().item(),
            "images": dict(zip(self.names, self.relative.tolist(), strict=True)),
        }

    def ranking(self) -> list[dict[str, Any]]:
        """The images from the best learned to the worst: those at the end may be unlike all others."""
        columns = (self.names, *(one.tolist() for one in (self.relative, self.losses, self.base)))
        keys = ("name", "relative", "loss", "base_loss")
        rows = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
        return sorted(rows, key=lambda row: row["relative"])


class KnownTexts(Protocol):
    """Conditioning that was computed before, as `ConditioningCache` has it."""

    def batch(self, captions: list[str]) -> Conditioning: ...


@dataclass
class Validation:
    """Measures the model as it is; weights and all other random numbers stay untouched.

    Noise is keyed by an image's content, so that runs with other seeds can be compared.
    """

    images: Sequence[ValidationImage]
    texts: KnownTexts | None  # None when a text encoder is trained
    family: ModelFamily
    objective: Objective
    autocast: torch.dtype | None
    rows_at_once: int  # of a forward pass, at most
    _base: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.images)

    def measure_base(self) -> None:
        """To be called while the adapters are off."""
        self._base = self.losses()

    def measure(self, step: int) -> ValidationResult:
        """The present model beside the base, which was measured before."""
        assert self._base is not None, "measure_base comes first"
        losses = self.losses()
        relative = (losses / self._base).mean(dim=1)
        return ValidationResult(step, self.names, losses.mean(dim=1), self._base.mean(dim=1), relative)

    @torch.no_grad()
    def try_out(self, rows: int) -> None:
        """As much of the first image's measurement as `rows` timesteps."""
        noise = torch.randn((rows, *self.images[0].latents.shape), generator=generator("timing"))
        self._rows(self.images[0], noise, (torch.arange(rows) + 0.5) / rows)

    @torch.no_grad()
    def losses(self) -> Tensor:
        """[N, TIMESTEPS] on the CPU: of the present model, at levels from clean to noisy."""
        found, shares = [], (torch.arange(TIMESTEPS) + 0.5) / TIMESTEPS
        for one in self.images:
            shape = (TIMESTEPS, *one.latents.shape)
            noise = torch.randn(shape, generator=generator("holdout", one.sha256))
            passes = zip(noise.split(self.rows_at_once), shares.split(self.rows_at_once), strict=True)
            found.append(torch.cat([self._rows(one, *part) for part in passes]))
        return torch.stack(found).cpu()

    def _rows(self, one: ValidationImage, noise: Tensor, shares: Tensor) -> Tensor:
        """[R, C, H, W] and [R] -> [R]"""
        device, captions = self.family.device, [one.caption] * len(noise)
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            texts = self.family.encode_text(captions) if self.texts is None else self.texts.batch(captions)
            noisy = self.objective.noise_at(one.latents.expand(noise.shape), noise, shares)
            geometry = one.geometry.expand(len(noise), -1)
            prediction = self.family.denoise(noisy.latents, noisy.timestep, texts, geometry)
        error = (prediction.float() - noisy.target.float()).square()
        return (error * one.weight).mean(dim=(1, 2, 3))


def best_step(rows: Sequence[dict[str, Any]]) -> int | None:
    """The step with the lowest relative loss, the earlier of two equals; None before a first step."""
    trained = [row for row in rows if row["step"] > 0 and math.isfinite(row["relative"])]
    return min(trained, key=lambda row: row["relative"])["step"] if trained else None


def validation_summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How it began, ended and was at its best; None if nothing was measured."""
    best = best_step(rows)
    if best is None:
        return None
    lowest = next(row["relative"] for row in rows if row["step"] == best)
    return {"relative_last": rows[-1]["relative"], "relative_best": lowest, "best_step": best}
