"""The recipe's [machine]: how the run uses the machine. What is learned changes by rounding only."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lora_studio.recipe.section import Section


class MachineConfig(Section):
    """How the run uses the machine; what is learned changes by rounding only."""

    resume_safe: ClassVar[frozenset[str]] = frozenset(
        {"device", "attention", "gradient_checkpointing", "compile", "channels_last", "tf32", "shard_base"}
    )

    device: str = Field("auto", description='"auto", "cpu", "cuda" or "cuda:1"')
    attention: Literal["sdpa", "xformers"] = Field(
        "sdpa", description="sdpa is torch's own; xformers is built for one version of torch alone"
    )
    gradient_checkpointing: bool = Field(
        False, description="keeps far less of the forward pass, and computes it again: about a third slower"
    )
    compile: bool = Field(
        False, description="torch.compile, block by block: minutes at the start, then faster steps on a GPU"
    )
    channels_last: bool = Field(
        False, description="convolutions with the channels innermost, which some GPUs do faster"
    )
    tf32: bool = Field(
        True, description="float32 matrices in TF32 on CUDA: far faster, 10 bits instead of 23 in products"
    )
    shard_base: bool = Field(
        False,
        description="spread the frozen denoiser over the processes: slower, for one too large for a GPU",
    )
