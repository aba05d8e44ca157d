"""A GPU that is not there: tensors without content, computed with CUDA's rules of precision.

Fake tensors (torch's FakeTensorMode) on the CPU have a shape, a dtype and a size of storage, and cost no
memory and hardly any time. What differs between a CPU and CUDA is which operations autocast runs in float32;
the attention kernel of a CPU keeps what CUDA's flash kernel keeps.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

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
        *("layer_norm", "native_layer_norm", "rms_norm", "group_norm", "interpolate", "softplus"),
        *(
            "pow",
            "__pow__",
            "__rpow__",
            "exp",
            "expm1",
            "log",
            "log10",
            "log2",
            "log1p",
            "reciprocal",
            "rsqrt",
        ),
        *("acos", "asin", "cosh", "sinh", "tan", "erfinv", "logsumexp", "renorm", "dist", "cdist"),
        *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "cosine_similarity"),
    )
)
GIVES_FLOAT32 = frozenset(("softmax", "log_softmax", "sum", "prod", "cumsum", "cumprod"))
HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def pretending() -> Iterator[None]:
    """Within it new tensors are fakes, and operations on them take CUDA's way; for one thread."""
    with (
        warnings.catch_warnings(),
        FakeTensorMode(allow_non_fake_inputs=True),
        _CudasPrecision(),
        patch("diffusers.image_processor.VaeImageProcessor.postprocess", _blank_images),
        patch.object(torch.utils, "weakref", _NO_REFERENCES),
        patch.dict(op_implementations_dict, {torch.ops.aten._local_scalar_dense.default: _number}),
    ):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # to copy one
        yield


# A module's cast exchanges the insides of fake parameters, for which torch wants none to be referred to
# weakly; the mode itself does that.
_NO_REFERENCES = SimpleNamespace(**{**vars(weakref), "getweakrefs": lambda _: []})


def make_fake(network: nn.Module) -> None:
    """Fakes in place of a network's tensors, which may have shapes alone; to be called while pretending."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake_like(parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake_like(buffer)


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


def _list(fake: FakeTensor) -> Any:
    if fake.constant is not None:
        return fake.constant.tolist()
    return [_list(row) for row in fake] if fake.dim() else fake.item()


def _blank_images(_processor: object, images: Tensor, *_: object, **__: object) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8))] * len(images)
