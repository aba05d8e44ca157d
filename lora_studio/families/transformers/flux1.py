"""FLUX.1: blocks of two streams, then of one, which read T5-XXL's tokens and what CLIP-L makes of a text.

dev and Krea know how strong their guidance is, and are trained at 1: at 3.5, with which they are sampled,
what is learned shows too weakly (sd-scripts, docs/flux_train_network.md). schnell has no guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_studio.families.base import (
    Conditioning,
    FileTraits,
    Miniature,
    SameInput,
    UsualSampling,
    random_network,
    self_test_inputs,
)
from lora_studio.families.layer_names.transformers import layouts
from lora_studio.families.transformers import VELOCITY, Configurations, FlowTransformer, width_fault
from lora_studio.processes import to_device

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

IMAGE_STREAM = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2")
TEXT_STREAM = (
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("ff_context.net.0.proj", "ff_context.net.2"),
)
SINGLE_INPUT, SINGLE_OUTPUT = "proj_mlp", "proj_out"
TRAINED_GUIDANCE = 1.0
TOKENS, FEW_TOKENS = 512, 256  # of T5; schnell's
_IMPLEMENTATION = "https://github.com/black-forest-labs/flux"
_OTHER_CHANNELS = {
    384: "it is FLUX.1 Fill, which also reads an image with a hole",
    128: "it is a FLUX.1 for control (Canny, Depth), which also reads an image",
}


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h/2 w/2, 4 C]: a token is four latents, in the order channel, row, column."""
    batch, channels, height, width = latents.shape
    tokens = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The other way round."""
    batch, _, numbers = tokens.shape
    latents = tokens.reshape(batch, height // 2, width // 2, numbers // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return latents.reshape(batch, numbers // 4, height, width)


def positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """[rows columns, 3] of the image's tokens: 0, row, column."""
    sides = (torch.arange(side, device=device, dtype=torch.float32) for side in (rows, columns))
    grid = torch.meshgrid(*sides, indexing="ij")
    return torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).reshape(-1, 3)


def padded_ids(
    tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], length: int, device: torch.device
) -> Tensor:
    """[B, length], cut off or filled up with padding."""
    given = tokenizer(
        list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return to_device(given["input_ids"], device)


def device_of(part: nn.Module) -> torch.device:
    return next(part.parameters()).device


class StreamTransformer(FlowTransformer):
    """What FLUX.1 and Chroma share: layers, packed latents and positions."""

    @classmethod
    def refusal_of(cls, transformer: Mapping[str, object], configurations: Configurations) -> str:
        """Of Fill and control by name, and of text encoders of another width."""
        channels = transformer.get("in_channels", 64)
        if channels != 64:
            what = _OTHER_CHANNELS.get(channels, "") if isinstance(channels, int) else ""
            other = f"its transformer takes {channels} numbers a token; that of the plain model takes 64"
            return f"{what or other}; train on the plain model, a LoRA for that works in both"
        return cls.text_fault(transformer, configurations)

    @classmethod
    def text_fault(cls, transformer: Mapping[str, object], configurations: Configurations) -> str:
        encoder = configurations.get("text_encoder", {})
        return width_fault(encoder.get("d_model"), transformer.get("joint_attention_dim"))

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Attention and feed-forward of both kinds of blocks, and no modulation.

        The last layer of all is called as those of the blocks of one stream are, so these have their numbers.
        """
        blocks: int = self.parts["transformer"].config.num_single_layers  # type: ignore[union-attr, assignment]
        single = tuple(f"single_transformer_blocks.{number}.{SINGLE_OUTPUT}" for number in range(blocks))
        return {"transformer": (*IMAGE_STREAM, *TEXT_STREAM, SINGLE_INPUT, *single)}

    @property
    def together(self) -> dict[str, tuple[SameInput, ...]]:
        """Queries, keys and values; in a block of one stream the feed-forward's first layer, too."""
        return {"transformer": (SameInput((*IMAGE_STREAM[:3], SINGLE_INPUT)), SameInput(TEXT_STREAM[:3]))}


def stream_miniature(transformer: nn.Module, beside: Callable[[Tensor], dict[str, Tensor]]) -> Miniature:
    """A tiny one that reads texts 48 wide, with what else it is given made of the text."""

    def predict(device: torch.device, dtype: torch.dtype) -> Tensor:
        """The prediction for latents [2, 16, 8, 8] and texts [2, 7, 48], always the same ones."""
        latents, text = self_test_inputs(((2, 16, 8, 8), (2, 7, 48)), device, dtype)
        found: Tensor = transformer(
            pack(latents),
            encoder_hidden_states=text,
            timestep=torch.tensor([0.1, 0.7], device=device),
            img_ids=positions(4, 4, torch.device(device)),
            txt_ids=torch.zeros(7, 3, device=device),
            return_dict=False,
            **beside(text),
        )[0]
        return found

    endings = (*IMAGE_STREAM, *TEXT_STREAM, SINGLE_INPUT)
    return Miniature(transformer, endings, predict)


class Flux1(StreamTransformer):
    """FLUX.1 dev, Krea and schnell."""

    needs: ClassVar[tuple[str, ...]] = (
        *("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
    )
    network: ClassVar[str] = "FluxTransformer2DModel"
    relatives: ClassVar[Mapping[str, str]] = {
        "FluxControlNetModel": "a ControlNet of FLUX.1",
        "FluxKontextPipeline": "FLUX.1 Kontext, which edits an image",
    }
    pipeline_class: ClassVar[str] = "FluxPipeline"
    sampling: ClassVar[UsualSampling] = UsualSampling(28, 3.5)
    few_steps: ClassVar[int] = 4
    file_layout = layouts()["flux1"]
    card_version = "Flux"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        VELOCITY: FileTraits("flux1", False, "flux-1-dev/lora", "", _IMPLEMENTATION),
        "without guidance": FileTraits("flux1", False, "flux-1-schnell/lora", "", _IMPLEMENTATION),
    }

    @classmethod
    def text_fault(cls, transformer: Mapping[str, object], configurations: Configurations) -> str:
        """Where T5 or CLIP are not as wide as what the transformer reads."""
        first, second = (configurations.get(f"text_encoder{end}", {}) for end in ("", "_2"))
        return width_fault(second.get("d_model"), transformer.get("joint_attention_dim")) or width_fault(
            first.get("hidden_size"), transformer.get("pooled_projection_dim")
        )

    @property
    def is_guided(self) -> bool:
        """Whether it is told how strong its guidance is; schnell is not."""
        return bool(self.parts["transformer"].config.guidance_embeds)  # type: ignore[union-attr]

    @property
    def seems_distilled(self) -> bool:
        """As schnell is, unless its user says that it was undone."""
        return not self.is_guided

    @property
    def reads_negative_prompts(self) -> bool:
        return False

    @property
    def traits(self) -> FileTraits:
        return self.file_traits[VELOCITY if self.is_guided else "without guidance"]

    @property
    def max_tokens(self) -> int:  # type: ignore[override]
        """Of T5, however long the caption is: padding is read, too."""
        return TOKENS if self.is_guided else FEW_TOKENS

    @property
    def caption_tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """T5's: of CLIP only what it makes of a whole text is used, of its first 77 tokens."""
        return {"tokenizer_2": self.tokenizers["tokenizer_2"]}

    @torch.no_grad()
    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, 512, D], "pooled": [B, P]}: T5's last hidden state, and CLIP's of the end mark."""
        clip, t5 = self.parts["text_encoder"], self.parts["text_encoder_2"]
        tokenizer = self.tokenizers["tokenizer"]
        ids = padded_ids(tokenizer, captions, tokenizer.model_max_length, device_of(clip))
        pooled = clip(ids).pooler_output
        ids = padded_ids(self.tokenizers["tokenizer_2"], captions, self.max_tokens, device_of(t5))
        return {"text": t5(ids).last_hidden_state, "pooled": pooled}

    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """The transformer's own prediction is n - x0, and its timestep sigma."""
        transformer, (height, width) = self.parts["transformer"], latents.shape[-2:]
        text = conditioning["text"].to(self.precision)
        guidance = torch.full_like(timestep, TRAINED_GUIDANCE) if self.is_guided else None
        found = transformer(
            pack(latents.to(self.precision)),
            encoder_hidden_states=text,
            pooled_projections=conditioning["pooled"].to(self.precision),
            timestep=timestep,
            img_ids=positions(height // 2, width // 2, latents.device),
            txt_ids=torch.zeros(text.shape[1], 3, device=latents.device),
            guidance=guidance,
            return_dict=False,
        )[0]
        return unpack(found, height, width)

    def guided_by(self, guidance: float) -> dict[str, object]:
        """An input of dev's transformer; a negative prompt is not asked for."""
        return {"guidance_scale": guidance if self.is_guided else 0.0}

    def encode_prompt(
        self, pipeline: DiffusionPipeline, prompt: str, negative_prompt: str, *, guided: bool
    ) -> dict[str, Tensor | list[Tensor]]:
        """T5's tokens and CLIP's vector; there is no negative prompt."""
        text, pooled, _ = pipeline.encode_prompt(
            prompt, None, device=self.device, max_sequence_length=self.max_tokens
        )
        return {"prompt_embeds": text, "pooled_prompt_embeds": pooled}

    @classmethod
    def miniature(cls) -> Miniature:
        """A block of each kind, of 64 channels."""
        from diffusers import FluxTransformer2DModel

        transformer = random_network(
            FluxTransformer2DModel,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=48,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 14, 14),
        )

        return stream_miniature(transformer, lambda text: {"pooled_projections": text[:, 0, :32]})
