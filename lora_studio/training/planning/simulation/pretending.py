"""A GPU that is not there: tensors without content, computed with CUDA's rules of precision.

Fake tensors (torch's FakeTensorMode) on the CPU have a shape, a dtype and a size of storage, and cost no
memory and hardly any time. What differs between a CPU and CUDA is which operations autocast runs in float32;
the attention kernel of a CPU keeps what CUDA's flash kernel keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_impls import op_implementations_dict
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
# What CUDA's autocast runs in float32, by its names in Python (AT_FORALL_FP32 in ATen/autocast_mode.h), and
# what gives float32 of half precision as it is (AT_FORALL_FP32_SET_OPT_DTYPE).
IN_FLOAT32 = frozenset(
    (
        *("layer_norm", "native_layer_norm", "rms_norm", "group_norm", "interpolate", "softplus", "pow"),
        *("__pow__", "__rpow__", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt"),
        *("acos", "asin", "cosh", "sinh", "tan", "erfinv", "logsumexp", "renorm", "dist", "cdist"),
        *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "cosine_similarity"),
    )
)
GIVES_FLOAT32 = frozenset(("softmax", "log_softmax", "sum", "prod", "cumsum", "cumprod"))
_STEP_OF_FLOW = "diffusers.FlowMatchEulerDiscreteScheduler.index_for_timestep"  # looked for among numbers
HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def pretending() -> Iterator[None]:
    """Within it new tensors are fakes, and operations on them take CUDA's way; for one thread."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        _CudasPrecision(),
        patch("diffusers.image_processor.VaeImageProcessor.postprocess", _blank_images),
        patch.object(nn.Module, "_apply", _cast),
        patch(_STEP_OF_FLOW, lambda *_, **__: 0),
        patch.dict(op_implementations_dict, _ASKED_FOR_CONTENT),
    ):
        yield


def make_fake(network: nn.Module) -> None:
    """Fakes in place of a network's tensors, which may have shapes alone; to be called while pretending."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake_like(parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake_like(buffer)


def _cast(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """As `nn.Module._apply`, with new parameters; torch would exchange the insides of the fakes."""
    for child in module.children() if recurse else ():
        _cast(child, convert)
    with torch.no_grad():
        for name, parameter in module._parameters.items():
            if parameter is not None and (moved := convert(parameter)) is not parameter:
                module._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else convert(buffer)
    return module


def fake_like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CPU)


class _CudasPrecision(TorchFunctionMode):
    """CUDA's autocast in place of the CPU's, and numbers for whoever reads the content of a fake."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "tolist" and isinstance(args[0], FakeTensor):
            return _list(args[0])
        if name == "__deepcopy__" and isinstance(args[0], FakeTensor):
            return _copied(*args)
        if name == "numpy" and isinstance(args[0], FakeTensor):
            return np.zeros(args[0].shape, dtype=str(args[0].dtype).removeprefix("torch."))
        if name == "backward":  # may compute activations again, for which the mode has to be on
            with self:
                return _backward(args[0])
        if name in IN_FLOAT32 and _under_autocast(args, kwargs):
            with torch.autocast("cpu", enabled=False):
                return func(*tree_map(_float, args), **tree_map(_float, kwargs))
        if name in GIVES_FLOAT32 and kwargs.get("dtype") is None and _under_autocast(args, kwargs):
            return func(*args, **{**kwargs, "dtype": torch.float32})
        return func(*args, **kwargs)


def _backward(loss: Tensor) -> None:
    """As `loss.backward()`, which a mode would be asked about again."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, True)


def _copied(fake: FakeTensor, memo: dict[int, object]) -> Tensor:
    """As `copy.deepcopy` has it; torch's own would ask where the content lies, and spoil the memory."""
    if id(fake) not in memo:
        made = fake_like(fake)
        is_parameter = isinstance(fake, nn.Parameter)
        memo[id(fake)] = nn.Parameter(made, requires_grad=fake.requires_grad) if is_parameter else made
    found = memo[id(fake)]
    assert isinstance(found, Tensor)
    return found


def _under_autocast(args: Any, kwargs: Any) -> bool:
    return torch.is_autocast_enabled("cpu") and any(
        isinstance(one, Tensor) and one.dtype in HALVES for one in tree_leaves((args, kwargs))
    )


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value


def _number(_mode: FakeTensorMode, _func: object, fake: FakeTensor) -> float:
    """What it holds if that is known, as of a list made a tensor; else one, which is finite and true."""
    if fake.constant is not None:
        return fake.constant.item()
    return 1.0 if fake.is_floating_point() else True if fake.dtype == torch.bool else 1


def _places(_mode: FakeTensorMode, _func: object, fake: FakeTensor) -> Tensor:
    """Where it is true or not zero: everywhere, so that what is chosen by it is as large as can be."""
    with _mode:
        return torch.empty((fake.numel(), fake.dim()), dtype=torch.int64, device=fake.device)


def _alike(_mode: FakeTensorMode, _func: object, one: Tensor, other: Tensor) -> bool:
    """Whether two are equal: as far as shapes tell."""
    return one.shape == other.shape


_ASKED_FOR_CONTENT = {
    torch.ops.aten.equal.default: _alike,
    torch.ops.aten._local_scalar_dense.default: _number,
    torch.ops.aten.nonzero.default: _places,
}


def _list(fake: FakeTensor) -> Any:
    if fake.constant is not None:
        return fake.constant.tolist()
    return [_list(row) for row in fake] if fake.dim() else fake.item()


def _blank_images(
    _processor: object, images: Tensor, output_type: str = "pil", **_: object
) -> Tensor | list[Image.Image]:
    """For diffusers' pipelines, which would read the content."""
    return images if output_type == "pt" else [Image.new("RGB", (8, 8))] * len(images)
