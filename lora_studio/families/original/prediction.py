"""What a base's UNet was trained to answer: no shape shows it; the user says it, or a hint in the file."""

from __future__ import annotations

from dataclasses import dataclass

from lora_studio.errors import BaseModelError
from lora_studio.families.original.checkpoint import Checkpoint
from lora_studio.families.original.kinds import SD2, UNET_PREFIX, BaseKind

SPELLINGS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}  # -> diffusers'
_EPSILON_STEPS = ("875000", "110000")  # the step counts of 512-base, as diffusers' converter knows them
# ComfyUI's hint for SD2: in the published v models this bias is spread wider than in the epsilon models.
_TELLING_BIAS = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias"
_TELLING_SPREAD = 0.09


@dataclass(frozen=True)
class Prediction:
    """The prediction in diffusers' words, whether noise goes up to zero SNR, and who said so."""

    type: str
    zero_snr: bool
    source: str


def find_prediction(kind: BaseKind, checkpoint: Checkpoint, wanted: str = "auto") -> Prediction:
    """What the user says counts, then what the file says, then SD2's telling weight, then epsilon."""
    zero_snr = "ztsnr" in checkpoint.shapes
    if wanted != "auto":
        if wanted not in SPELLINGS:
            raise BaseModelError(
                f'base.prediction_type is {wanted!r}; it must be "auto", "epsilon" or "v_prediction".'
            )
        return Prediction(SPELLINGS[wanted], zero_snr, "the recipe says so")
    if "v_pred" in checkpoint.shapes:
        return Prediction("v_prediction", zero_snr, "the file's mark v_pred says so")
    said = _said(checkpoint.metadata)
    if said:
        return Prediction(*said[:1], zero_snr, f"the file's {said[1]} says so")
    if kind is SD2:
        return _told_by_weight(checkpoint, zero_snr=zero_snr)
    return Prediction("epsilon", zero_snr, f"{kind.title} usually does")


def _said(metadata: dict[str, str]) -> tuple[str, str] | None:
    """Prediction and the metadata that says it."""
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):  # the standard's, and ComfyUI's
        if metadata.get(key) in SPELLINGS:
            return SPELLINGS[metadata[key]], key
    architecture = metadata.get("modelspec.architecture", "")
    for start, prediction in (("768-v", "v_prediction"), ("512", "epsilon")):
        if architecture.startswith(f"stable-diffusion-v2-{start}"):
            return prediction, "modelspec.architecture"
    if metadata.get("global_step") in _EPSILON_STEPS:
        return "epsilon", "global_step"
    return None


def _told_by_weight(checkpoint: Checkpoint, *, zero_snr: bool) -> Prediction:
    unsure = "set base.prediction_type if you know better"
    if _TELLING_BIAS not in checkpoint.shapes:
        return Prediction("v_prediction", zero_snr, f"as most of its kind: {unsure}")
    with checkpoint.values() as value:
        spread = float(value(_TELLING_BIAS).double().std(unbiased=False))
    prediction = "v_prediction" if spread > _TELLING_SPREAD else "epsilon"
    return Prediction(prediction, zero_snr, f"guessed from a weight that spreads by {spread:.3f}: {unsure}")
