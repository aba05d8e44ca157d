"""A probe batch: through diffusers' own loader a file must predict as the adapter it was written from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import put_back
from lora_studio.errors import reason_of
from lora_studio.families.base import ModelFamily
from lora_studio.lora_file.lora_file import LoraFile, base_layers
from lora_studio.verify.file import VerifyReport
from lora_studio.verify.uis import COMPLETELY, DIFFUSERS

CAPTION = "a probe"
TOLERANCE = 0.02  # of the adapter's own effect: float16 keeps 11 bits of each factor


@dataclass(frozen=True)
class ProbeOutput:
    """The denoiser's prediction for the probe, and how far the adapter moved it from the base's."""

    tuned: Tensor  # [2, C, h, w], float32
    effect: float  # root mean square of tuned - base


def probed(family: ModelFamily) -> list[str]:
    """The parts that a probe goes through."""
    return [name for name in family.parts if name != "vae"]


@torch.no_grad()  # not inference_mode, whose tensors FSDP cannot take back
def run_probe(family: ModelFamily, caption: str = CAPTION) -> Tensor:
    """The probe's prediction by the parts as they are: two fixed latents, an early and a late timestep."""
    latents, timestep, geometry = (one.to(family.device) for one in family.probe_inputs())
    conditioning = family.encode_text([caption, caption])
    return family.denoise(latents, timestep, conditioning, geometry).float().cpu()


@torch.no_grad()  # not inference_mode, whose tensors FSDP cannot take back
def ask_merged(file: LoraFile, family: ModelFamily) -> ProbeOutput:
    """The probe through weights W + delta, computed from the file's bytes; the base is put back."""
    layers = base_layers(family)
    base = run_probe(family)
    with put_back([layers[name].weight for name in file.layers]):
        for name in file.layers:
            weight = layers[name].weight
            weight.data.add_(file.delta(name).to(weight))
        tuned = run_probe(family)
    return ProbeOutput(tuned, rms(tuned - base))


def ask_diffusers(path: Path, family: ModelFamily, caption: str = CAPTION) -> Tensor:
    """The probe after `load_lora_weights(path)` into a pipeline over the (unadapted) family.

    Only the question is asked in inference mode: torchao's weights cannot be handled in it.
    """
    pipeline = family.pipeline()
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    try:
        return run_probe(family, caption)
    finally:
        pipeline.unload_lora_weights()


def probe_file(file: LoraFile, family: ModelFamily, report: VerifyReport) -> None:
    """Where the file is plain LoRA, and for diffusers, too; else a word on why not."""
    if file.stray:
        report.checks["probe"] = "left out: only the change of plain LoRA in the kohya format is computed"
    elif all(one.loads != COMPLETELY for one in report.uis if one.ui == DIFFUSERS):
        report.checks["probe"] = "left out: diffusers does not load all of the file"
    else:
        expected = ask_merged(file, family)
        try:
            check_probe(file, family, expected, report)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
            report.faults.append(f"diffusers' loader stops at it: {reason_of(error)}")


def check_probe(
    file: LoraFile, family: ModelFamily, expected: ProbeOutput, report: VerifyReport, *, rounding: float = 0.0
) -> None:
    """diffusers' prediction against the expected one, relative to the size of the adapter's effect.

    `rounding`: how much of a prediction's size a base in lower precision rounds away, which says nothing.
    """
    compare_probe(ask_diffusers(file.path, family), expected, report, rounding=rounding)


def compare_probe(
    prediction: Tensor, expected: ProbeOutput, report: VerifyReport, *, rounding: float = 0.0
) -> None:
    """A prediction through diffusers' loaders against the live one, as `check_probe` does."""
    difference = rms(prediction - expected.tuned)
    if rounding:
        report.checks["probe_rounding"] = rounding
    rounded_away = difference <= rounding * rms(expected.tuned)
    share = difference / expected.effect if expected.effect else float(difference > 0)
    report.checks["probe_effect"] = expected.effect
    report.checks["probe_difference_share"] = share
    if expected.effect == 0:
        report.faults.append("the probe's prediction is the base's: the file does nothing")
    elif share > TOLERANCE and not rounded_away:
        report.faults.append(
            f"through diffusers' loader the probe differs by {share:.1%} of the adapter's effect"
        )


def probe_output(tuned: Tensor, base: Tensor) -> ProbeOutput:
    """From the live model with and without its adapters."""
    return ProbeOutput(tuned, rms(tuned - base))


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
