"""Where a run happens, in which precision its base lies, and what makes it smaller or faster there."""

from __future__ import annotations

import ctypes
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_studio.errors import OutOfMemory, RecipeError
from lora_studio.families.base import ModelFamily, innermost_blocks
from lora_studio.families.stored import cast_weights
from lora_studio.lora_file.write import DTYPES
from lora_studio.processes import ALONE, Processes, default_precision, find_device
from lora_studio.quantization import NONE, QUANTIZERS
from lora_studio.recipe.base import BaseConfig
from lora_studio.recipe.training import MachineConfig

T = TypeVar("T")
MOST_COMPILATIONS = 1024  # of one block's code: every width, size and mode has its own; torch stops at 8


class Waiting(NamedTuple):
    """How many blocks wait in main memory."""

    denoiser: int
    text_encoder: int = 0  # of a staged base, of the largest one, while captions are encoded


@dataclass(frozen=True)
class Machine:
    """Where a run happens and in which precision its frozen base lies."""

    device: torch.device
    dtype: torch.dtype
    quantize: str = NONE
    config: MachineConfig = field(default_factory=MachineConfig)
    shards: bool = False  # the frozen denoiser is spread over the processes
    text_blocks: int = 0  # of the largest text encoder that wait in main memory while it is used
    note: str = ""  # on how it was chosen

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of the forward pass when it is not plain float32."""
        return None if self.dtype == torch.float32 else self.dtype

    @property
    def offloads(self) -> bool:
        """Whether weights of some blocks lie in main memory, with "auto" on a GPU alone."""
        blocks = self.config.offload_blocks
        return blocks > 0 if isinstance(blocks, int) else self.device.type == "cuda"

    def with_offload(self, waiting: Waiting) -> Machine:
        """The same with so many in main memory."""
        config = self.config.model_copy(update={"offload_blocks": waiting.denoiser})
        return replace(self, config=config, text_blocks=waiting.text_encoder)

    @property
    def widens_norms(self) -> bool:
        """Whether autocast computes norms in float32; the CPU's does not."""
        return self.autocast is not None and self.device.type != "cpu"

    @property
    def rounding(self) -> float:
        """By how much of its size a prediction of the base may change with the rounding; 0 for float32."""
        quantized = 0.0 if self.quantize == NONE else torch.finfo(torch.bfloat16).eps
        cast = 0.0 if self.autocast is None else torch.finfo(self.autocast).eps
        return 2 * max(quantized, cast)  # two predictions are compared

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """What keeps float16's gradients from vanishing; the other dtypes have the exponents for them."""
        return torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None

    def shrink(self, family: ModelFamily) -> None:
        """The base in its precision and, before any adapter, the denoiser as asked for.

        One that is still to be read is read block by block onto the device, or into main memory if it is to
        be laid out from there, each block in its bits at once.
        """
        family.cast(self.dtype)
        denoiser, paths = family.parts[family.denoiser], family.quantised_paths()
        if not family.is_awaited(family.denoiser):
            self.lay_out(denoiser, paths)
            return
        place = torch.device("cpu") if self.shards or self.offloads else self.device
        family.read_denoiser(place, partial(self._quantize, denoiser), paths)
        self.lay_out(denoiser, ())

    def _quantize(self, denoiser: nn.Module, paths: Sequence[str]) -> None:
        QUANTIZERS[self.quantize](denoiser, paths, self.dtype)

    def speed_up(self, family: ModelFamily, trained: Sequence[str]) -> None:
        """The denoiser with its adapters as asked for, and checkpointing in the other trained parts."""
        if self.device.type == "cpu":
            keep_freed_memory()
        self.tune(family.parts[family.denoiser])
        for part in trained:
            if self.config.gradient_checkpointing and part != family.denoiser:
                checkpoint_gradients(family.parts[part])

    def lay_out(self, denoiser: nn.Module, paths: Sequence[str]) -> None:
        """Its precision, memory format, and the linear layers at these paths quantised."""
        allow_tf32(self.config.tf32)
        if next(denoiser.parameters()).dtype != self.dtype:
            denoiser.to(self.dtype)
        if paths:
            self._quantize(denoiser, paths)
        for module in denoiser.modules() if self.config.channels_last else ():
            if isinstance(module, nn.Conv2d):  # a module's own `to` would touch quantised weights, too
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    def tune(self, denoiser: nn.Module) -> None:
        """Attention, convolutions, norms, checkpointing and compilation of the denoiser, in place."""
        if self.config.attention == "xformers":
            denoiser.enable_xformers_memory_efficient_attention()  # type: ignore[operator]
        else:
            from lora_studio.training.machine.attention import shorten_attention

            shorten_attention(denoiser)
        if self.device.type == "cpu":
            from lora_studio.training.machine.convolutions import shorten_convolutions

            shorten_convolutions(denoiser)
        if self.widens_norms:
            keep_norms_narrow(denoiser, self.dtype)
        if self.config.gradient_checkpointing:
            checkpoint_gradients(denoiser)
        if self.config.compile is True:
            compile_blocks(denoiser, self.device)


def machine_of(config: MachineConfig, base: BaseConfig, processes: Processes = ALONE) -> Machine:
    """What a recipe asks for. "auto" is a GPU when there is one, else the CPU, with its `default_precision`.

    A GPU is the process's current one from then on. Raises RecipeError for a device that is not there.
    """
    wanted = processes.device or config.device
    chosen = find_device(wanted)
    if chosen is None:
        what = f"machine.device is {wanted!r}, which this machine does not have"
        raise RecipeError(f'{what}; use "auto" or "cpu".')
    if chosen.type == "cuda":  # else events, streams and libraries' own kernels are those of cuda:0
        torch.cuda.set_device(chosen)
    precision = default_precision(chosen) if base.dtype == "auto" else DTYPES[base.dtype]
    return Machine(chosen, precision, base.quantize, config, config.shard_base and processes.count > 1)


def allow_tf32(allowed: bool) -> None:
    """Whether float32 products may be made of 10 bits, for the whole process."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def exact_products() -> Iterator[None]:
    """Without TF32 inside: what is cached serves runs with other settings and on other devices, too.

    Not beside other threads that compute.
    """
    precision, of_convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    allow_tf32(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = of_convolutions


def checkpoint_gradients(part: nn.Module) -> None:
    """The backward pass computes each block's activations again, instead of keeping them (non-reentrant)."""
    if hasattr(part, "enable_gradient_checkpointing"):  # diffusers', which is non-reentrant
        part.enable_gradient_checkpointing()  # type: ignore[operator]
        return
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in part.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            module.gradient_checkpointing = module.training = True  # needs both; no dropout below turns on


def keep_norms_narrow(denoiser: nn.Module, dtype: torch.dtype) -> None:
    """Frozen norms in this dtype, where autocast would keep a float32 copy of what they are given, and have
    what comes behind them keep and cast another. CUDA's kernels compute in float32 and round the result, as
    in diffusers' pipelines and under the CPU's autocast (ATen/native/cuda/group_norm_kernel.cu).
    """

    def narrow(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.to(dtype))

    for norm in (one for one in denoiser.modules() if isinstance(one, nn.GroupNorm | nn.LayerNorm)):
        frozen = {(one.dtype, one.requires_grad) for one in norm.parameters()} <= {(dtype, False)}
        if frozen and "forward" not in vars(norm):
            norm.forward = partial(narrow, norm.forward)  # type: ignore[method-assign]


def compile_blocks(denoiser: nn.Module, device: torch.device) -> None:
    """Each of its blocks when it is first used: far sooner ready than the whole, and nearly as fast."""
    import torch._dynamo.config as limits

    limits.recompile_limit = max(limits.recompile_limit, MOST_COMPILATIONS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, MOST_COMPILATIONS)
    # The compiler asks everything that a block reads for its gradient, and the copies of factors have none.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf Tensor")
    # Without vector code on a CPU: torch 2.13's gives wrong gradients there, by 7 % of the pocket base's.
    options = {"cpp.simdlen": 1} if device.type == "cpu" else None
    for block in innermost_blocks(denoiser):
        block.compile(options=options)


def shard(family: ModelFamily, processes: Processes, device: torch.device, dtype: torch.dtype) -> None:
    """For bases too large for one device: 1/count of every weight of the denoiser on each one, in `dtype`.

    FSDP2 (torch.distributed.fsdp.fully_shard) gathers a block's weights while it runs and lets them go again.
    The weights go to the device block by block, so that it never holds all of them. Adapters that are put
    into the layers afterwards stay whole on every process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.count,))
    denoiser = family.parts[family.denoiser]
    family.is_spread, family.pinned_parts = True, frozenset({family.denoiser})  # FSDP2 refers to its shards
    if next(denoiser.parameters()).dtype != dtype:
        cast_weights(denoiser, dtype)
    for block in [*innermost_blocks(denoiser), denoiser]:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


_WORDS = (
    *("out of memory", "not enough memory", "can't allocate memory"),  # CUDA's, the CPU's on each system
    *("_status_alloc_failed", "_device_allocation_failed"),  # libraries beside torch's allocator
)
# A full device is one reason of several: no kernel whose workspace fits; no room for a library's handle.
_DOUBTFUL_WORDS = ("unable to find an engine", "_status_not_initialized")
ADVICE = (
    "lora-studio plan tells what a recipe needs; less is needed with machine.gradient_checkpointing = true, "
    'a smaller data.resolution, base.quantize = "bnb_int8" or "bnb_nf4", or a lower adapter.rank'
)


def is_out_of_memory(error: Exception) -> bool:
    """torch has an error of its own for CUDA only, and that is a RuntimeError, too."""
    said = any(words in str(error).lower() for words in _WORDS)
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and said)


def may_be_out_of_memory(error: RuntimeError) -> bool:
    """Worth another attempt with less, but no reason to say that memory ran out."""
    return any(words in str(error).lower() for words in _DOUBTFUL_WORDS)


def within_memory(work: Callable[[], T], shrink: Callable[[], None]) -> T:
    """What `work` returns; each time memory runs out, `shrink` is called, and the work begun anew.

    Where memory may not be to blame, the error itself is raised once `shrink` raises OutOfMemory.
    """
    while True:
        doubtful: RuntimeError | None = None
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                if not may_be_out_of_memory(error):
                    raise
                doubtful = error.with_traceback(None)
        try:
            shrink()  # not above, where the error's traceback holds the tensors of the failed attempt
        except OutOfMemory:
            if doubtful is None:
                raise
            raise doubtful from None
        free_memory()


def unless_out_of_memory(work: Callable[[], T]) -> T | None:
    """What `work` returns; None if memory runs out, for what a run can do without.

    Where memory may not be to blame, it is tried twice.
    """
    for tries_left in (1, 0):
        try:
            return work()
        except RuntimeError as error:
            ran_out = is_out_of_memory(error)
            if not ran_out and not (tries_left and may_be_out_of_memory(error)):
                raise
        free_memory()
        if ran_out:
            break
    return None


def free_memory() -> None:
    """Give back to the device what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(where: str) -> OutOfMemory:
    return OutOfMemory(f"the memory ran out {where}; {ADVICE}")


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory; whether it does (glibc, so on Linux).

    By default it gives blocks of a few megabytes back to the system at every step, and the system fills each
    page with zeros when it is asked for again: 7,000 pages a step of the pocket base, and hardly any with
    this, for 5 % more memory, after 80 steps as after ten.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h of glibc
    never, most = 2**31 - 1, 2**30  # bytes; what is larger than `most` is given back at once
    return bool(mallopt(trim_threshold, never)) and bool(mallopt(mmap_threshold, most))
