"""Blocks whose frozen weights lie in main memory, and are on the device only around use.

They come while the block before computes, forward, backward and when checkpointing computes it again, over a
stream of their own; so the device holds two blocks. What learns, norms, biases and what a pass reads at its
begin stay there. Memory is taken from under the tensors and given back, as FSDP2 does, for autograd keeps
views of weights. diffusers' `apply_group_offloading` exchanges tensors, and nothing calls it in a backward
pass: the views keep every block there, or gradients are computed of weights that were put away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from lora_studio.adapters.stack import Joined
from lora_studio.families.base import ModelFamily, innermost_blocks
from lora_studio.quantization import insides
from lora_studio.training.machine import Machine

T = TypeVar("T")


class KeptStorage:
    """Frozen weights in one piece of memory: their content here, room on the device while they are wanted."""

    def __init__(self, weight: Tensor) -> None:
        self._storage = weight.untyped_storage()
        self.num_bytes = self._storage.nbytes()
        whole = weight.data.as_strided((self.num_bytes // weight.itemsize,), (1,), 0)
        pinned = weight.device.type == "cuda"
        self._there = whole.split([*pieces(len(whole))])
        self._kept = [torch.empty(len(one), dtype=one.dtype, pin_memory=pinned) for one in self._there]
        for kept, there in zip(self._kept, self._there, strict=True):
            kept.copy_(there)

    def hold(self, room: bool) -> None:
        """Whether there is room on the device; what is computed of weights without it fails."""
        self._storage.resize_(self.num_bytes if room else 0)

    def fill(self) -> None:
        for kept, there in zip(self._kept, self._there, strict=True):
            there.copy_(kept, non_blocking=True)


def pieces(count: int) -> Iterator[int]:
    """So many numbers in powers of two, as pinned memory comes, and a rest of at most a sixteenth."""
    least = count // 16
    while count:
        size = 1 << (count.bit_length() - 1)
        yield (size := size if size > least else count)
        count -= size


@dataclass(eq=False)
class OffloadedBlock:
    """What comes and goes of a block."""

    storages: Sequence[KeptStorage]
    arrived: torch.cuda.Event | None = None  # behind its copies, until that is waited for


class BlockOffload:
    """Blocks of a frozen network whose weights come to its device for use."""

    def __init__(
        self,
        network: nn.Module,
        blocks: Sequence[nn.Module],
        device: torch.device,
        joined: Sequence[Joined],
    ) -> None:
        """Moves the network there, block by block, and these blocks back.

        `joined`: which weights lie together; they do so again where they were moved.
        """
        self.blocks: list[OffloadedBlock] = []
        self._block_of: dict[nn.Module, OffloadedBlock] = {}
        self._order: list[OffloadedBlock] = []  # in which the forward pass uses them, as far as is known
        self._there: list[OffloadedBlock] = []  # on the device
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._hooks: list[RemovableHandle] = []
        for module, weights in [(one, own_weights(one, joined)) for one in blocks]:
            module.to(device)
            inside = {id(weight) for weight in weights}
            for one in (one for one in joined if id(one.owners[0]) in inside):
                one.renew()
            self._take(module, weights)
        network.to(device)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each block that come and go."""
        return [sum(one.num_bytes for one in block.storages) for block in self.blocks]

    def _take(self, module: nn.Module, weights: Sequence[Tensor]) -> None:
        for weight in weights:
            if not weight.untyped_storage().resizable():  # of a file that is mapped
                weight.data = weight.data.clone()
        distinct = {one.untyped_storage()._cdata: one for weight in weights for one in insides(weight)}
        block = OffloadedBlock([KeptStorage(one) for one in distinct.values()])
        self._release(block)
        self.blocks.append(block)
        self._block_of |= dict.fromkeys(module.modules(), block)
        self._hooks.append(module.register_forward_pre_hook(lambda *_: self._present(block)))
        self._hooks.append(module.register_forward_hook(partial(self._watch, block)))

    def end(self) -> None:
        """Let go of the weights, of which the network has none any more."""
        for one in self._hooks:
            one.remove()

    def _watch(self, block: OffloadedBlock, _module: nn.Module, _given: object, output: object) -> None:
        """Have its weights there when the gradient of what it gave arrives."""
        for one in tree_leaves(output):
            if isinstance(one, Tensor) and one.requires_grad:
                one.register_hook(lambda _: self._present(block))

    def _present(self, block: OffloadedBlock) -> None:
        """For use; a backward pass, and what it computes again, goes the order back."""
        if block not in self._order:
            self._order.append(block)
        place, last = self._order.index(block), len(self._order) - 1
        if torch._C._current_graph_task_id() != -1:
            coming = place - 1 if place else min(1, last)
        elif place < last:
            coming = place + 1
        else:
            coming = max(0, last - 1) if torch.is_grad_enabled() else 0
        self._bring(block, self._order[coming])

    def bring(self, layer: nn.Module) -> None:
        """Have a layer's weights on the device until others are wanted, if they are not always there."""
        if layer in self._block_of:
            self._bring(self._block_of[layer], None)

    def _bring(self, block: OffloadedBlock, coming: OffloadedBlock | None) -> None:
        """Have it there for what is launched from now on, the one that comes on its way, and no others."""
        for one in [one for one in self._there if one not in (block, coming)]:
            self._release(one)
        for wanted in (block, coming):
            if wanted is not None and wanted not in self._there:
                self._fetch(wanted)
        self._await(block)

    def _fetch(self, block: OffloadedBlock) -> None:
        """Begin its copies, once all is computed that was launched by now, some of it in this memory."""
        self._there.append(block)
        try:
            for one in block.storages:
                one.hold(True)
        except RuntimeError:  # there is none
            self._release(block)
            raise
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for one in block.storages:
                one.fill()
        if self._stream is not None:
            block.arrived = self._stream.record_event()

    def _await(self, block: OffloadedBlock) -> None:
        """What is launched from now on waits for its copies; the host does not."""
        if block.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(block.arrived)
            block.arrived = None

    def _release(self, block: OffloadedBlock) -> None:
        self._await(block)
        for one in block.storages:
            one.hold(False)
        if block in self._there:
            self._there.remove(block)


def offload(family: ModelFamily, machine: Machine, joined: Sequence[Joined] = ()) -> BlockOffload | None:
    """What the machine asks for, of a denoiser in main memory; then it is not moved any more."""
    if not machine.offloads:
        return None
    family.pinned_parts |= {family.denoiser}
    denoiser, count = family.parts[family.denoiser], machine.config.offload_blocks
    blocks = [*innermost_blocks(denoiser)]
    most = min(count, len(blocks)) if isinstance(count, int) else len(blocks)  # where none was chosen
    return BlockOffload(denoiser, spread_evenly(blocks, most), machine.device, joined)


def blocks_of_text(family: ModelFamily) -> tuple[str, list[nn.Module]]:
    """Of a staged base the largest text encoder, and those of its blocks that can wait in main memory."""
    if not family.staged:
        return "", []
    name = max(family.text_encoders, key=lambda one: sum(p.numel() for p in family.parts[one].parameters()))
    return name, [*innermost_blocks(family.parts[name])]


def offload_text(family: ModelFamily, machine: Machine) -> None:
    """Have blocks of a staged base's largest text encoder wait, whenever it is read, as the machine says.

    All where "auto" has not chosen. A number in the recipe is of the denoiser's blocks alone.
    """
    name, blocks = blocks_of_text(family)
    unchosen = machine.offloads and machine.config.offload_blocks == "auto"
    count = len(blocks) if unchosen else min(machine.text_blocks, len(blocks))

    def arrange(encoder: nn.Module) -> Callable[[], None]:
        waiting = spread_evenly([*innermost_blocks(encoder)], count)
        return BlockOffload(encoder, waiting, machine.device, ()).end

    if count:
        family.arranged[name] = arrange


def spread_evenly(blocks: Sequence[T], count: int) -> list[T]:
    """So many, with as many others between any two, in whose time the weights of one come."""
    return [blocks[number * len(blocks) // count] for number in range(count)]


def own_weights(block: nn.Module, joined: Sequence[Joined]) -> list[nn.Parameter]:
    """Frozen parameters of a block with more than one side, but for those that a pass reads at its begin."""
    stay = {id(owner) for one in joined if one.at_once for owner in one.owners}
    frozen = [one for one in block.parameters() if not one.requires_grad and one.dim() > 1]
    return [one for one in frozen if id(one) not in stay]
