"""The forward pass of plain LoRA layers in fewer operations than PEFT's, with the same answer.

PEFT takes seven operations forward and more than twice as many backward for `W x + scale * up (down x)`, and
copies a bfloat16 input to float32 first. Here the frozen layer and its adapter are one operation. What is
not plain (another kind than LoRA, dropout, a quantised weight, several adapters, a convolution that looks
around itself) stays with PEFT.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from peft.tuners.lora import layer as peft_layers
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NARROW = 128 * 128
"""Numbers in a weight up to which the sum of it and its update is made for every pass.

Of such a layer the time goes into the number of operations: benchmarks/train_step.py.
"""


class _Tensors(NamedTuple):
    """What a layer's answer is made of, beside its input."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]
    down: Tensor  # [r, in]
    up: Tensor  # [out, r]
    scale: float  # alpha / rank


class _Factors(torch.autograd.Function):
    """W x + bias + scale * up (down x) of x [..., in], W [out, in], down [r, in] and up [out, r]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        answer = nn.functional.linear(x, weight, bias)  # of x as it is, which decides how torch rounds
        rows = x.reshape(-1, x.shape[-1])
        narrow = rows @ down.t()
        answer.view(-1, answer.shape[-1]).addmm_(narrow, up.t(), alpha=scale)
        ctx.save_for_backward(rows, weight, down, up, narrow)
        ctx.scale, ctx.shape = scale, x.shape
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, narrow = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_narrow = (grad @ up).mul_(ctx.scale)
        grad_up = (grad.t() @ narrow).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_narrow, down).view(ctx.shape)
        return grad_x, None, None, grad_narrow.t() @ rows, grad_up, None


class _Sum(torch.autograd.Function):
    """The same, by the sum of both weights; of pictures [B, in, H, W], too, as a convolution of one place."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        whole = torch.addmm(weight, up, down, alpha=scale)
        ctx.save_for_backward(x, whole, down, up)
        ctx.scale = scale
        if x.dim() == 4:
            return nn.functional.conv2d(x, whole[:, :, None, None], bias)
        return nn.functional.linear(x, whole, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, whole, down, up = ctx.saved_tensors
        grad_x = None
        if x.dim() == 4:
            places = grad.flatten(2)
            grad_whole = torch.bmm(places, x.flatten(2).transpose(1, 2)).sum(0).mul_(ctx.scale)
            if ctx.needs_input_grad[0]:
                grad_x = torch.bmm(whole.t().expand(len(x), -1, -1), places).view(x.shape)
        else:
            rows = grad.reshape(-1, grad.shape[-1])
            grad_whole = (rows.t() @ x.reshape(-1, x.shape[-1])).mul_(ctx.scale)
            if ctx.needs_input_grad[0]:
                grad_x = (rows @ whole).view(x.shape)
        return grad_x, None, None, up.t() @ grad_whole, grad_whole @ down.t(), None


class _Fast:
    """What both kinds of layer share; `self` is a layer of PEFT's."""

    def _is_plain(self: Any, x: Tensor) -> bool:
        """Whether this pass is one of ours: one plain adapter, all in one precision or under autocast."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        (name,) = self.active_adapters
        return (
            name in self.lora_A
            and name not in self.lora_variant
            and isinstance(self.lora_dropout[name], nn.Identity)
            and self.lora_B[name].bias is None
            and (_autocast_dtype(x) is not None or x.dtype == self.base_layer.weight.dtype == torch.float32)
        )

    def _tensors(self: Any, x: Tensor) -> _Tensors:
        """In the precision of this pass."""
        (name,) = self.active_adapters
        dtype = _autocast_dtype(x) or x.dtype
        base = self.base_layer
        weight, down, up = (
            one.weight.flatten(1).to(dtype) for one in (base, self.lora_A[name], self.lora_B[name])
        )
        bias = None if base.bias is None else base.bias.to(dtype)
        return _Tensors(weight, bias, down, up, self.scaling[name])


class FastLinear(_Fast, peft_layers.Linear):  # type: ignore[misc]
    """PEFT's LoRA of a linear layer."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] -> [..., out]"""
        answer: Tensor
        if args or kwargs or x.dim() == 4 or not self._is_plain(x):
            answer = super().forward(x, *args, **kwargs)
        elif _is_narrow((tensors := self._tensors(x)).weight):
            answer = _Sum.apply(x, *tensors)
        else:
            with torch.autocast(x.device.type, enabled=False):
                answer = _Factors.apply(x.to(tensors.weight.dtype), *tensors)
        return answer


class FastConv1x1(_Fast, peft_layers.Conv2d):  # type: ignore[misc]
    """PEFT's LoRA of a narrow convolution that sees one place at a time."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, in, H, W] -> [B, out, H, W]"""
        answer: Tensor
        if not args and not kwargs and self._is_plain(x) and _is_narrow((tensors := self._tensors(x)).weight):
            answer = _Sum.apply(x, *tensors)
        else:
            answer = super().forward(x, *args, **kwargs)
        return answer


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _is_narrow(weight: Tensor) -> bool:
    """In float32 only: in bfloat16 the sum would round the update away."""
    return weight.numel() <= NARROW and weight.dtype == torch.float32


def _sees_one_place(layer: nn.Conv2d) -> bool:
    return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)


def make_fast(module: nn.Module) -> None:
    """Give a layer that PEFT made its fast forward pass, if it has one; its tensors stay as they are."""
    base = getattr(module, "base_layer", None)
    if type(module) is peft_layers.Linear and type(base) is nn.Linear:
        module.__class__ = FastLinear
    elif type(module) is peft_layers.Conv2d and type(base) is nn.Conv2d and _sees_one_place(base):
        module.__class__ = FastConv1x1
