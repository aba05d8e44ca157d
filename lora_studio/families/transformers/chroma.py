"""Chroma: FLUX.1's blocks without modulation of their own, which read T5-XXL's tokens and one of padding.

Padding beyond that one is masked, and there is real classifier-free guidance. diffusers' own pipeline adds
its mask to the attention's logits instead of masking with it, and its transformer forgets the mask in the
blocks of one stream where they are checkpointed; ComfyUI and the model's own code mask, and so does this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch

from lora_studio.families.base import (
    Conditioning,
    FileTraits,
    Miniature,
    Parts,
    Tokenizers,
    UsualSampling,
    random_network,
)
from lora_studio.families.layer_names.transformers import layouts
from lora_studio.families.transformers import MASK, VELOCITY, padding_mask
from lora_studio.families.transformers.flux1 import (
    TOKENS,
    StreamTransformer,
    device_of,
    pack,
    positions,
    stream_miniature,
    unpack,
)
from lora_studio.processes import to_device

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

_SINGLE_ARGUMENTS = 3  # that diffusers hands a checkpointed block of one stream


class Chroma(StreamTransformer):
    """Chroma1 of all kinds that read latents."""

    needs: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    network: ClassVar[str] = "ChromaTransformer2DModel"
    pipeline_class: ClassVar[str] = "ChromaPipeline"
    sampling: ClassVar[UsualSampling] = UsualSampling(28, 4.0)
    few_steps: ClassVar[int] = 8
    max_tokens: ClassVar[int] = TOKENS
    file_layout = layouts()["chroma"]
    card_version = "Chroma"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        VELOCITY: FileTraits("chroma", False, "chroma/lora", "", "https://huggingface.co/lodestones/Chroma")
    }

    def __init__(
        self, parts: Parts, tokenizers: Tokenizers, *, source: str, scheduler: Mapping[str, object]
    ) -> None:
        super().__init__(parts, tokenizers, source=source, scheduler=scheduler)
        embedding = cast("Any", parts["transformer"]).time_text_embed

        def arrive(_: object, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(to_device(one, embedding.mod_proj.device) for one in given)

        # it makes zeros in main memory at every pass, and would have the host wait until they are on a GPU
        embedding.guidance_proj.register_forward_pre_hook(arrive)

    @torch.no_grad()
    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, L, D], "mask": [B, L]}: T5's last hidden state, L the longest and one of padding."""
        encoder, tokenizer = self.parts["text_encoder"], self.tokenizers["tokenizer"]
        given = tokenizer(
            captions, padding="longest", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        ids, read = (to_device(given[name], device_of(encoder)) for name in ("input_ids", "attention_mask"))
        ids = torch.cat([ids, torch.full_like(ids[:, :1], _pad(tokenizer))], dim=1)[:, : self.max_tokens]
        read = torch.cat([read, torch.zeros_like(read[:, :1])], dim=1)[:, : self.max_tokens]
        mask = torch.arange(ids.shape[1], device=ids.device) <= read.sum(dim=1, keepdim=True)
        states = encoder(ids, attention_mask=read).last_hidden_state
        return {"text": states * mask[:, :, None], MASK: mask}

    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """The transformer's own prediction is n - x0, and its timestep sigma."""
        transformer, (height, width) = self.parts["transformer"], latents.shape[-2:]
        text, tokens = conditioning["text"].to(self.precision), pack(latents.to(self.precision))
        mask = padding_mask(conditioning, tokens.device)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(tokens.shape[:2])], dim=1)
        with _mask_where_checkpointed(transformer, mask):
            found = transformer(
                tokens,
                encoder_hidden_states=text,
                timestep=timestep,
                img_ids=positions(height // 2, width // 2, latents.device),
                txt_ids=torch.zeros(text.shape[1], 3, device=latents.device),
                attention_mask=mask,
                return_dict=False,
            )[0]
        return unpack(found, height, width)

    def pipeline(self) -> DiffusionPipeline:
        """A ChromaPipeline that masks."""
        made: Any = super().pipeline()
        prepare: Callable[..., Tensor | None] = made._prepare_attention_mask

        def as_mask(**given: object) -> Tensor | None:
            mask = prepare(**given)
            return None if mask is None else mask.bool()

        made._prepare_attention_mask = as_mask
        return made

    def encode_prompt(
        self, pipeline: DiffusionPipeline, prompt: str, negative_prompt: str, *, guided: bool
    ) -> dict[str, Tensor | list[Tensor]]:
        """T5's tokens [1, 512, D] of both prompts, and which of them are read."""
        text, _, mask, negative, _, negative_mask = pipeline.encode_prompt(
            prompt,
            negative_prompt,
            device=self.device,
            do_classifier_free_guidance=guided,
            max_sequence_length=self.max_tokens,
        )
        return {
            **{"prompt_embeds": text, "prompt_attention_mask": mask},
            **{"negative_prompt_embeds": negative, "negative_prompt_attention_mask": negative_mask},
        }

    @classmethod
    def miniature(cls) -> Miniature:
        """A block of each kind, of 64 channels."""
        from diffusers import ChromaTransformer2DModel

        transformer = random_network(
            ChromaTransformer2DModel,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=48,
            axes_dims_rope=(4, 14, 14),
            approximator_hidden_dim=32,
            approximator_layers=1,
        )

        return stream_miniature(transformer, lambda text: {})


def _pad(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id)


@contextmanager
def _mask_where_checkpointed(transformer: Any, mask: Tensor | None) -> Iterator[None]:
    """Within it blocks of one stream get the mask, too, where diffusers leaves it out."""
    if mask is None or not getattr(transformer, "gradient_checkpointing", False):
        yield
        return
    plain = transformer._gradient_checkpointing_func

    def masked(block: Any, *given: Any) -> Any:
        return plain(block, *given, *([mask] if len(given) == _SINGLE_ARGUMENTS else []))

    transformer._gradient_checkpointing_func = masked
    try:
        yield
    finally:
        transformer._gradient_checkpointing_func = plain
