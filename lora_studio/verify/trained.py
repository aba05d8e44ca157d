"""A written file against the adapters and tokens that it was written from, and a token's file by itself.

A LoRA's weight changes from the file's bytes, and a probe batch: through diffusers' own loader it must
predict as the adapter.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet, put_back
from lora_studio.adapters.layer import Layer
from lora_studio.errors import reason_of
from lora_studio.families.base import ModelFamily
from lora_studio.lora_file import forms
from lora_studio.lora_file.lora_file import ENDINGS, LoraFile, base_layers, open_lora
from lora_studio.lora_file.write import DTYPES
from lora_studio.tensor_file.header import open_tensors
from lora_studio.verify import VerifyReport
from lora_studio.verify.uis import COMPLETELY, base_of_file, loaded_by, verdicts
from lora_studio.verify.uis.findings import findings
from lora_studio.verify.uis.table import DIFFUSERS

CAPTION = "a probe"
TOLERANCE = 0.02  # of the adapter's own effect: float16 keeps 11 bits of each factor
ROUNDINGS = 2.0  # of the file's dtype, in a layer's weight change: it is a product of two factors


@dataclass(frozen=True)
class ProbeOutput:
    """The denoiser's prediction for the probe, and how far the adapter moved it from the base's."""

    tuned: Tensor  # [2, C, h, w], float32
    effect: float  # root mean square of tuned - base


@torch.no_grad()  # not inference_mode, whose tensors FSDP cannot take back
def run_probe(family: ModelFamily, caption: str = CAPTION) -> Tensor:
    """The probe's prediction by the parts as they are: two fixed latents, an early and a late timestep."""
    family.keep_texts([caption])
    latents, timestep, geometry = (one.to(family.device) for one in family.probe_inputs())
    conditioning = family.conditioning_of([caption, caption])
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


@contextmanager
def _named_safetensors(path: Path) -> Iterator[Path]:
    """The file, or a copy: of any other name diffusers takes it for a pickle."""
    if path.name.endswith(".safetensors"):
        yield path
        return
    with TemporaryDirectory() as folder:
        yield Path(shutil.copyfile(path, Path(folder) / "file.safetensors"))


def ask_diffusers(path: Path, family: ModelFamily, caption: str = CAPTION) -> Tensor:
    """The probe after `load_lora_weights(path)` into a pipeline over the (unadapted) family.

    Only the question is asked in inference mode: torchao's weights cannot be handled in it.
    """
    pipeline = family.pipeline()
    if (tensors := _of_other_names(path)) is not None:
        pipeline.load_lora_weights(tensors)
    else:
        with _named_safetensors(path) as file:
            pipeline.load_lora_weights(file.parent, weight_name=file.name)
    try:
        return run_probe(family, caption)
    finally:
        pipeline.unload_lora_weights()


def _of_other_names(path: Path) -> dict[str, Tensor] | None:
    """By PEFT's names, of a file with fused layers that diffusers does not take apart. None of all others.

    It does so by the widths of published bases alone, and of some families not at all.
    """
    file = open_lora(path)
    if not any(one.rows for one in file.layers.values()):
        return None
    base = base_of_file(file)
    judged = verdicts(findings(file, base), file.layers, base.title)
    if base.is_published and DIFFUSERS in loaded_by(judged):
        return None
    found: dict[str, Tensor] = {}
    for name, layer in file.in_one_spelling().layers.items():
        down, up = (layer.tensors[end] for end in ENDINGS[:2])
        found |= {f"{name}.{forms.A}": down, f"{name}.{forms.B}": up * layer.scale}
    return found


def probe_file(file: LoraFile, family: ModelFamily, report: VerifyReport) -> None:
    """Where the file is plain LoRA, and for diffusers, too; else a word on why not."""
    if file.stray:
        report.checks["probe"] = "left out: only the change of plain LoRA in the kohya format is computed"
    elif all(one.loads != COMPLETELY for one in report.uis if one.ui == DIFFUSERS):
        report.checks["probe"] = "left out: diffusers does not load all of the file"
    else:
        expected = ask_merged(file.in_one_spelling(), family)
        try:
            compare_probe(ask_diffusers(file.path, family), expected, report)
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
            report.faults.append(f"diffusers' loader stops at it: {reason_of(error)}")


def compare_probe(
    prediction: Tensor,
    expected: ProbeOutput,
    report: VerifyReport,
    *,
    rounding: float = 0.0,
    of_file: Callable[[], float] = lambda: 0.0,
) -> None:
    """A prediction through diffusers' loaders against the live one, relative to the adapter's effect.

    `rounding`: how much of a prediction's size a base in lower precision rounds away, which says nothing.
    `of_file`: how far the file's digits alone move it, which is asked if it moves far. That is a share of
    what an embedding or a magnitude is, and not of the little that a few steps have changed in it.
    """
    difference, effect = rms(prediction - expected.tuned), expected.effect
    if rounding:
        report.checks["probe_rounding"] = rounding
    rounded_away = difference <= rounding * rms(expected.tuned)
    share = difference / effect if effect else float(difference > 0)
    report.checks |= {"probe_effect": effect, "probe_difference_share": share}
    if effect == 0:
        report.faults.append("the probe's prediction is the base's: the file does nothing")
    elif share > TOLERANCE and not rounded_away and difference > ROUNDINGS * of_file():
        off = f"{share:.1%} of the adapter's effect"
        report.faults.append(f"through diffusers' loader the probe differs by {off}")


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


CUT_TOO = 1e-3  # float32 rounds nothing away, but plain LoRA may be cut


def check_deltas(file: LoraFile, family: ModelFamily, adapters: AdapterSet, report: VerifyReport) -> None:
    """Every layer's weight change recomputed from the file's bytes equals the live one."""
    dtypes = {getattr(torch, layer.entries["lora_up.weight"].dtype) for layer in file.layers.values()}
    roughest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    compare(
        adapters, lambda layer: file.delta(family.ui_name(layer.part, layer.path)), report, dtype=roughest
    )


def compare(
    adapters: AdapterSet, change: Callable[[Layer], Tensor], report: VerifyReport, *, dtype: torch.dtype
) -> None:
    """What a file of this dtype says that a layer's weight change is, against the live one.

    `change` raises KeyError for a layer that the file has not.
    """
    worst = 0.0
    for layer in adapters.layers:
        try:
            found = change(layer)
        except KeyError:
            report.faults.append(f"{layer.name} was trained but is not in the file")
            continue
        live = layer.delta().cpu()
        size = live.norm().item()
        error = (found.reshape(live.shape) - live).norm().item()
        worst = max(worst, error / size if size else error)
    report.checks["delta_error"] = worst
    if not worst <= max(ROUNDINGS * torch.finfo(dtype).eps, CUT_TOO):
        rounded = "" if dtype == torch.float32 else f"; {dtype} may be too coarse, give --dtype float32"
        off = f"a layer's weight change differs from the trained one by {worst:.2%}"
        report.faults.append(off + rounded.replace("torch.", ""))


def check_tensors(path: Path, report: VerifyReport) -> dict[str, Tensor]:
    """The file by itself: dtypes, finite, not zero, as many vectors for each encoder; its tensors."""
    (tensors, _), name = open_tensors(path), path.name
    for key, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            report.faults.append(f"{name}: {key} has dtype {tensor.dtype}")
        elif not tensor.isfinite().all() or not tensor.any():
            report.faults.append(f"{name}: {key} is not finite, or zero")
    if len({len(tensor) for tensor in tensors.values() if tensor.ndim}) > 1:
        report.faults.append(f"{name}: the encoders have different numbers of vectors")
    return tensors


def check_embedding(path: Path, family: ModelFamily, report: VerifyReport) -> dict[str, Tensor]:
    """The file against its base, too: the keys UIs look for, and shapes; its tensors."""
    tensors, name = check_tensors(path, report), path.name
    keys = {key: part for part, key in family.embedding_keys.items()}
    if tensors.keys() != keys.keys():
        report.faults.append(
            f"{name} holds {', '.join(sorted(tensors)) or 'nothing'}, but UIs look for {', '.join(keys)}"
        )
    for key, tensor in tensors.items():
        if key in keys:
            width = family.parts[keys[key]].get_input_embeddings().weight.shape[1]  # type: ignore[operator]
            if tensor.ndim != 2 or tensor.shape[1] != width:
                report.faults.append(f"{name}: {key} has the shape {tuple(tensor.shape)}, not [n, {width}]")
    return tensors
