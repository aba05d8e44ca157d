"""A part's tensors as its files have them, read one by one: no second copy of a base is ever in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from lora_studio.families.original.checkpoint import Checkpoint
from lora_studio.families.original.names import TensorOrigin

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_COUNTER = "num_batches_tracked"  # of a batch norm: no number of its depends on it, and files may lack it
MAPPED_BYTES = 2**28  # of a file that are mapped at a time, while something is made of them
Change = Callable[["Tensor"], "Tensor"]


class StoredTensor(NamedTuple):
    """Where a tensor of a part lies."""

    file: Checkpoint
    origin: TensorOrigin
    shape: tuple[int, ...]  # that the part has


@dataclass(frozen=True)
class StoredPart:
    """A part's tensors by its own names, and what is merged into them."""

    tensors: Mapping[str, StoredTensor]
    changes: Mapping[str, Sequence[Change]] = field(default_factory=dict)  # of float32

    def checked(self, like: Callable[[Sequence[int]], tuple[int, ...]] = tuple) -> StoredPart:
        """Raises ValueError for one that has another shape in the part; `like` makes some the same."""
        for file, origin, shape in self.tensors.values():
            found = origin.shape(file.shapes)
            if like(found) != like(shape):
                raise ValueError(f"{origin.name} is {sides(found)}, not {sides(shape)}")
        return self

    def each(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Tensors in their files' dtype, or in float32 if they were changed.

        They are mapped from the files, of which no more than `MAPPED_BYTES` are held: copy what is kept, and
        let go of it before the next one. Raises BaseModelError for a file that cannot be read any more.
        """
        waiting, taken = deque(self.tensors if names is None else names), 0
        while waiting:
            with ExitStack() as opened:
                values: dict[int, Callable[[str], Tensor]] = {}
                while waiting and taken < MAPPED_BYTES:
                    name = waiting.popleft()
                    file, origin, shape = self.tensors[name]
                    if id(file) not in values:
                        values[id(file)] = opened.enter_context(file.values())
                    tensor = origin.take(values[id(file)](origin.name)).reshape(shape)
                    taken += tensor.nbytes if file.is_mapped else 0
                    yield name, self._changed(name, tensor)
                values.clear()
                taken = 0

    def _changed(self, name: str, tensor: Tensor) -> Tensor:
        for change in self.changes.get(name, ()):
            tensor = change(tensor.float())
        return tensor

    def exact(self, names: Collection[str]) -> dict[str, Tensor]:
        """Copies in float32, which has all the digits of any file."""
        import torch

        return {name: tensor.to(torch.float32, copy=True) for name, tensor in self.each(names)}

    def changed(self, name: str, change: Change) -> StoredPart:
        """With one more change of a tensor, which is given a float32 copy or its own to work on."""
        return replace(self, changes={**self.changes, name: (*self.changes.get(name, ()), change)})

    def fill(
        self, part: nn.Module, dtype: torch.dtype, *, copies: bool, device: torch.device | None = None
    ) -> None:
        """Give the part its weights in `dtype`, each cast and sent to the device by itself.

        `copies`: of all; else what needs no cast stays mapped from the file and takes no memory of its own.
        """
        weights = dict(self._made(part, shapes_of(part), dtype, device, copies=copies))
        part.load_state_dict(weights, assign=True)
        if getattr(part, "all_tied_weights_keys", None):  # of transformers: those that are one and the same
            part.tie_weights()  # type: ignore[operator]

    def fill_some(
        self, part: nn.Module, names: Iterable[str], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Give the part copies of some of its weights, as `fill` does, on a device."""
        import torch

        for name, tensor in self._made(part, names, dtype, device, copies=True):
            path, _, end = name.rpartition(".")
            module = part.get_submodule(path)
            if end in module._parameters:
                module._parameters[end] = torch.nn.Parameter(tensor, requires_grad=False)
            else:
                module._buffers[end] = tensor

    def _made(
        self,
        part: nn.Module,
        names: Iterable[str],
        dtype: torch.dtype,
        device: torch.device | None,
        *,
        copies: bool,
    ) -> Iterator[tuple[str, Tensor]]:
        import torch

        for name, tensor in self.each(names):
            wanted = dtype_within(part, name, dtype) if tensor.is_floating_point() else tensor.dtype
            place = tensor.device if device is None else device
            yield name, tensor.to(place, wanted, copy=copies, memory_format=torch.contiguous_format)
            del tensor


def dtype_within(part: nn.Module, name: str, dtype: torch.dtype) -> torch.dtype:
    """Of a tensor of a part in `dtype`: float32 where diffusers' class of it keeps that in any precision.

    The lists of transformers' classes are for float16 alone.
    """
    import torch
    from diffusers import ModelMixin

    kept = getattr(part, "_keep_in_fp32_modules", None) if isinstance(part, ModelMixin) else None
    return dtype if set(kept or ()).isdisjoint(name.split(".")) else torch.float32


def cast_weights(part: nn.Module, dtype: torch.dtype) -> None:
    """As they come from files in that dtype, where they lie."""
    for name, one in part.state_dict(keep_vars=True).items():
        if one.is_floating_point():
            one.data = one.data.to(dtype_within(part, name, dtype))


def shapes_of(part: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of all of its tensors that a file has to have."""
    tensors = part.state_dict().items()
    return {name: tuple(tensor.shape) for name, tensor in tensors if not name.endswith(_COUNTER)}


def stored_in(file: Checkpoint, part: nn.Module, found: Mapping[str, TensorOrigin]) -> StoredPart:
    """Where all tensors of a part lie in one file, by the part's own names."""
    shapes = shapes_of(part).items()
    return StoredPart({key: StoredTensor(file, found[key], shape) for key, shape in shapes})


def drop_weights(part: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Its parameters keep their shapes, and its buffers, which no file holds, their values.

    `dtype`: that its weights will have, if not the same.
    """
    import torch

    for path, module in part.named_modules():
        for end, one in module._parameters.items():
            if one is not None:
                wanted = dtype_within(part, f"{path}.{end}", dtype or one.dtype)
                is_number = one.is_floating_point()
                shape = torch.empty_like(one, device="meta", dtype=wanted if is_number else None)
                module._parameters[end] = torch.nn.Parameter(shape, requires_grad=False)


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """A 1x1 convolution's weight without its last two sides: some tools write it as a linear layer's."""
    shape = tuple(shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
