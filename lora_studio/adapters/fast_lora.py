"""The forward pass of plain LoRA layers in fewer operations than PEFT's, with the same output.

PEFT takes seven operations forward and more than twice as many backward for `W x + scale * up (down x)`, and
copies a bfloat16 input to float32 first. Here the frozen layer and its adapter are one operation. What is
not plain (another kind than LoRA, dropout, a quantised weight, several adapters, a convolution that looks
around itself) stays with PEFT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import layer as peft_layers
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lora_studio.adapters.layer import NAME
from lora_studio.quiet import without_bitsandbytes

# Numbers in a weight up to which the sum of it and its update is made for every pass: of such a layer the
# time goes into the number of operations (benchmarks/train_step.py).
NARROW = 128 * 128


class _Plain(NamedTuple):
    """A frozen layer and its one adapter; kept in a tuple, because a module's attributes are slow to read."""

    base: nn.Linear | nn.Conv2d
    down: nn.Parameter  # [r, in], or [r, in, 1, 1]
    up: nn.Parameter  # [out, r], or [out, r, 1, 1]
    scale: float  # alpha / rank


class FastLinear(peft_layers.Linear):  # type: ignore[misc]
    """PEFT's LoRA of a linear layer."""

    _plain: _Plain

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] -> [..., out]"""
        base, down, up, scale = self._plain
        weight, dtype, output = base.weight, _precision(x), None
        if not (self._disable_adapters or self.merged_adapters or args or kwargs):
            if _is_narrow(weight, dtype):
                return nn.functional.linear(x, torch.addmm(weight, up, down, alpha=scale), base.bias)
            if dtype == weight.dtype == torch.float32:
                output = _Factors.apply(x, weight, base.bias, down, up, scale)
            elif torch.is_autocast_enabled(x.device.type):
                tensors = [None if one is None else one.to(dtype) for one in (x, weight, base.bias, down, up)]
                with torch.autocast(x.device.type, enabled=False):
                    output = _Factors.apply(*tensors, scale)
        return super().forward(x, *args, **kwargs) if output is None else output


class FastConv1x1(peft_layers.Conv2d):  # type: ignore[misc]
    """PEFT's LoRA of a narrow convolution that sees one place at a time: a linear layer over the channels."""

    _plain: _Plain

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]"""
        base, down, up, scale = self._plain
        plain = not (self._disable_adapters or self.merged_adapters or args or kwargs)
        if plain and _is_narrow(base.weight, _precision(x)):
            weight = torch.addmm(base.weight.flatten(1), up.flatten(1), down.flatten(1), alpha=scale)
            places = _at_each_place(x.flatten(2), weight, base.bias)
            return places.view(len(x), -1, *x.shape[2:])
        return super().forward(x, *args, **kwargs)


class _Factors(torch.autograd.Function):
    """W x + bias + scale * up (down x) of x [..., in], W [out, in], down [r, in] and up [out, r]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        output = nn.functional.linear(x, weight, bias)  # of x as it is, which decides how torch rounds
        rows = x.reshape(-1, x.shape[-1])
        narrow = rows @ down.t()
        output.view(-1, output.shape[-1]).addmm_(narrow, up.t(), alpha=scale)
        ctx.save_for_backward(rows, weight, down, up, narrow)
        ctx.scale, ctx.shape = scale, x.shape
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, narrow = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        # r rows by N columns, not N by r: on a CPU up to ten times as fast
        grad_narrow = (up.t() @ grad.t()).mul_(ctx.scale)
        grad_up = (narrow.t() @ grad).mul_(ctx.scale).t()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_narrow.t(), down).view(ctx.shape)
        return grad_x, None, None, grad_narrow @ rows, grad_up, None


def _at_each_place(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + bias of x [B, in, N] and W [out, in]; as products, since convolutions are slow backward."""
    weights = weight.expand(len(x), -1, -1)
    return torch.bmm(weights, x) if bias is None else torch.baddbmm(bias[:, None], weights, x)


def _precision(x: Tensor) -> torch.dtype:
    """What a product with x is computed in."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _is_narrow(weight: Tensor, dtype: torch.dtype) -> bool:
    """In float32 only: in bfloat16 the sum would round the update away."""
    return dtype == weight.dtype == torch.float32 and weight.numel() <= NARROW


def _sees_one_place(layer: nn.Conv2d) -> bool:
    return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)


def make_fast(module: BaseTunerLayer, name: str) -> None:
    """Give a layer that PEFT made with one adapter, `name`, its fast forward pass, if there is one for it."""
    base = getattr(module, "base_layer", None)
    if type(module) is peft_layers.Linear and type(base) is nn.Linear:
        fast: type[nn.Module] = FastLinear
    elif type(module) is peft_layers.Conv2d and type(base) is nn.Conv2d and _sees_one_place(base):
        fast = FastConv1x1
    else:
        return
    down, up = module.lora_A[name], module.lora_B[name]
    if module.lora_variant or up.bias is not None or not isinstance(module.lora_dropout[name], nn.Identity):
        return
    module.__class__ = fast
    object.__setattr__(module, "_plain", _Plain(base, down.weight, up.weight, module.scaling[name]))


def inject_plain(part: nn.Module, ranks: Mapping[str, int]) -> None:
    """LoRA and nothing else in the layers at these paths: PEFT's."""
    usual = next(iter(ranks.values()))
    special = {f"^{re.escape(path)}$": rank for path, rank in ranks.items() if rank != usual}
    config = LoraConfig(r=usual, lora_alpha=usual, target_modules=[*ranks], rank_pattern=special, bias="none")
    with without_bitsandbytes():
        inject_adapter_in_model(config, part, adapter_name=NAME)
