"""Each kind in its own tensors, in LyCORIS' spelling: smaller or more exact than plain LoRA, less read."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lora_studio.adapters.layer import Layer
from lora_studio.errors import StudioError
from lora_studio.export import kohya
from lora_studio.export.target import ExportJob, ExportResult, Target, need_layers, one_path
from lora_studio.lora_file.header import open_tensors
from lora_studio.lora_file.plain import as_plain
from lora_studio.verify.file import VerifyReport

Spelled = dict[str, Tensor]  # by the end of its key


def _lora(layer: Layer) -> Spelled:
    plain = kohya.spell({"": as_plain(layer)})
    return {key.removeprefix("."): tensor for key, tensor in plain.items()}


def _dora(layer: Layer) -> Spelled:
    """The magnitudes are of the outputs, as in PEFT and LyCORIS 3.2."""
    down, up, magnitude = (layer.tensors[end].detach() for end in ("down", "up", "magnitude"))
    down, up = kohya.in_range(down, up)
    sides = (1,) * (layer.delta().ndim - 1)
    return {
        "lora_down.weight": down,
        "lora_up.weight": up,
        "alpha": torch.tensor(layer.scale * len(down)),
        "dora_scale": magnitude.view(-1, *sides),
    }


def _loha(layer: Layer) -> Spelled:
    named = {f"hada_{end}": tensor.detach() for end, tensor in layer.tensors.items()}
    named["hada_w2_b"], named["hada_w2_a"] = kohya.in_range(named["hada_w2_b"], named["hada_w2_a"])
    return named | {"alpha": torch.tensor(layer.scale * len(named["hada_w1_b"]))}


def _lokr(layer: Layer) -> Spelled:
    """Of two whole factors readers take no scale, so it goes into one of them."""
    named = {f"lokr_{end}": tensor.detach() for end, tensor in layer.tensors.items()}
    if "lokr_w2" in named:
        w1, w2 = kohya.in_range(named["lokr_w1"], named["lokr_w2"] * layer.scale)
        return {"lokr_w1": w1, "lokr_w2": w2, "alpha": torch.tensor(1.0)}
    named["lokr_w2_a"], named["lokr_w2_b"] = kohya.in_range(named["lokr_w2_a"], named["lokr_w2_b"])
    return named | {"alpha": torch.tensor(layer.scale * len(named["lokr_w2_b"]))}


def _full(layer: Layer) -> Spelled:
    """Differences from the base."""
    ends = _ends_of(layer)
    changes = {key.rpartition(".")[2]: change for key, change in layer.changes().items()}
    return {ends[end]: change for end, change in changes.items()}


def _ends_of(layer: Layer) -> dict[str, str]:
    """A trained tensor's name -> what its difference is called; empty if it has no name."""
    base = layer.module.get_base_layer()
    if isinstance(base, nn.Linear | nn.Conv2d):
        return {"weight": "diff", "bias": "diff_b"}
    return {"weight": "w_norm", "bias": "b_norm"} if isinstance(base, nn.LayerNorm | nn.GroupNorm) else {}


SPELLED: dict[str, Callable[[Layer], Spelled]] = {
    **{"lora": _lora, "locon": _lora, "dora": _dora, "loha": _loha, "lokr": _lokr, "full": _full},
}
_PLAIN = ("lora", "locon")
NOT_READ_BY = {  # as tried with the loaders' own code; ComfyUI and Forge read all that is not named
    "dora": (
        "A1111 and InvokeAI make garbage of it without a word, ComfyUI and Forge come within 2.5 %, "
        "stable-diffusion.cpp, diffusers and kohya leave out the magnitudes"
    ),
    "loha": "diffusers refuses it, kohya leaves it out",
    "lokr": "diffusers refuses it, kohya leaves it out, InvokeAI does not know some for what they are",
    "full": "diffusers and kohya do not read it, others were not tried",
}


def refuse(job: ExportJob) -> None:
    """What LyCORIS has no tensors for."""
    need_layers("native")(job)
    kind = job.adapters.options.kind
    if kind not in SPELLED:
        raise StudioError(
            f"native has no spelling for what the kind {kind!r} trains, which turns a layer's inputs "
            "where LyCORIS turns its outputs; take the target kohya, which has it as plain LoRA."
        )
    strange = [layer.name for layer in job.adapters.layers if layer.originals and not _ends_of(layer)]
    if strange:
        raise StudioError(
            f"native has no spelling for {strange[0]}, which is no linear layer, convolution or "
            "normalisation; take the target merged or checkpoint."
        )


def write(job: ExportJob) -> ExportResult:
    """`<name>_native.safetensors`; of plain LoRA what kohya's is."""
    kind = job.adapters.options.kind
    (path,) = NATIVE.paths(job)
    named = {
        f"{job.family.ui_name(layer.part, layer.path)}.{end}": tensor.float().cpu().contiguous()
        for layer in job.adapters.layers
        for end, tensor in SPELLED[kind](layer).items()
    }
    if kind in _PLAIN:
        return ExportResult((path,), job.write(path, named))
    said = {"ss_network_args": json.dumps({"algo": "lora" if kind == "dora" else kind})}
    error = job.write(path, named, ss_network_module="lycoris.kohya", **said)
    return ExportResult((path,), error, notes=(f"not read everywhere: {NOT_READ_BY[kind]}",))


def check(job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
    """Every tensor on the disk is the live one's, to the dtype's rounding."""
    tensors, _ = open_tensors(made.paths[0])
    worst = 0.0
    for layer in job.adapters.layers:
        name = job.family.ui_name(layer.part, layer.path)
        for end, live in SPELLED[job.adapters.options.kind](layer).items():
            found = tensors.pop(f"{name}.{end}", None)
            if found is None or not found.isfinite().all():
                report.faults.append(f"{name}.{end} is missing, or not finite")
                continue
            size = live.float().abs().max().item()
            error = (found.float() - live.float().cpu()).abs().max().item() / (size or 1.0)
            worst = max(worst, error / torch.finfo(found.dtype).eps)
    report.checks |= {"tensor_error": worst}  # in units of the dtype's rounding
    if not worst <= 1:
        report.faults.append("a tensor differs from the trained one by more than its dtype rounds")
    if tensors:
        report.faults.append(f"{len(tensors)} tensors are of no trained layer, first {next(iter(tensors))}")


NATIVE = Target(one_path("_native.safetensors"), refuse, write, check)
