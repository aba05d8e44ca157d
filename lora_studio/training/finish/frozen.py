"""Whether the frozen parts of a run that is over are still what its base's files say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_studio.families.base import ModelFamily
from lora_studio.families.stored import dtype_within
from lora_studio.quantization import NONE, QUANTIZERS
from lora_studio.rng import generator
from lora_studio.training.machine import Machine
from lora_studio.training.machine.offload import BlockOffload
from lora_studio.verify import VerifyReport
from lora_studio.verify.trained import rms

ROWS = 16  # that a quantised layer is asked
LESS_EXACT = 1.05  # times the quantiser's own error that a layer's may be: devices round differently


@torch.no_grad()
def check_frozen(
    family: ModelFamily,
    parts: Sequence[str],
    machine: Machine,
    report: VerifyReport,
    offloaded: BlockOffload | None = None,
) -> None:
    """Every tensor of the unadapted parts against its files', cast as it was: bit for bit.

    One by one, as the files are read; a quantised layer is to be as near to the file's weight as quantising
    that weight makes it. `offloaded`: what brings weights that are not on the device.
    """
    wrong, num_tensors = list[str](), 0
    for part in parts:
        module, dtype = family.parts[part], family.dtype_of(part)
        for name, exact in family.sources[part].stored.each():
            expected = exact.to(dtype_within(module, name, dtype)) if exact.is_floating_point() else exact
            num_tensors += 1
            if offloaded is not None:
                offloaded.bring(module.get_submodule(name.rpartition(".")[0]))
            if not _is_same(module, name, expected, machine):
                wrong.append(f"{part}.{name}")
    report.checks["base_tensors"] = num_tensors
    if wrong:
        report.faults.append(
            f"{len(wrong)} tensors of the frozen base are not what its files have, first {wrong[0]}"
        )


def _is_same(part: nn.Module, name: str, expected: Tensor, machine: Machine) -> bool:
    path, _, end = name.rpartition(".")
    layer = part.get_submodule(path)
    own = getattr(layer, end)
    if hasattr(own, "full_tensor"):  # of one that is spread over processes
        own = own.full_tensor()
    is_plain = type(own.data) is Tensor and own.dtype == expected.dtype
    if isinstance(layer, nn.Linear) and end == "weight" and machine.quantize != NONE and not is_plain:
        return is_as_near(layer, expected, machine)
    return torch.equal(own.cpu(), expected)


def is_as_near(layer: nn.Linear, expected: Tensor, machine: Machine) -> bool:
    """Whether a quantised layer answers as well as one that is made anew of the file's weight.

    The bias is in both answers: it decides how much of them half precision rounds away.
    """
    device, bias = layer.weight.device, layer.bias
    again = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None, device="meta")
    again.weight, again.bias = nn.Parameter(expected.to(device, copy=True), requires_grad=False), bias
    holder = nn.Sequential(again)
    QUANTIZERS[machine.quantize](holder, ["0"], machine.dtype)
    rows = torch.randn(ROWS, layer.in_features, generator=generator("frozen")).to(device, machine.dtype)
    exact = F.linear(rows.float(), expected.to(device).float(), None if bias is None else bias.float())
    return rms(layer(rows) - exact) <= LESS_EXACT * rms(holder(rows) - exact)
