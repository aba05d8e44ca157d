"""Lumina-Image 2 (arXiv 2503.21758): one stream of text and image tokens, read by Gemma 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

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
from lora_studio.families.transformers import (
    MASK,
    VELOCITY,
    Configurations,
    FlowTransformer,
    has_numbers,
    joined,
    width_fault,
)
from lora_studio.families.transformers.language import states_before_last
from lora_studio.processes import to_device

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
FEED_FORWARD = ("feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3")
TEMPLATE = (  # as Lumina2Pipeline has it around a prompt, and not around a negative one
    "You are an assistant designed to generate superior images with the superior degree of image-text "
    "alignment based on textual prompts or user prompts. <Prompt Start> {}"
)


class Lumina2(FlowTransformer):
    """Lumina-Image-2.0 and its fine-tunes."""

    needs: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    network: ClassVar[str] = "Lumina2Transformer2DModel"
    pipeline_class: ClassVar[str] = "Lumina2Pipeline"
    has_distilled: ClassVar[bool] = False
    max_tokens: ClassVar[int] = 256
    sampling: ClassVar[UsualSampling] = UsualSampling(30, 4.0)
    few_steps: ClassVar[int] = 8
    file_layout = layouts()["lumina2"]
    card_version = "Lumina-Image 2"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        VELOCITY: FileTraits(
            "lumina2", False, "lumina-2/lora", "", "https://github.com/Alpha-VLLM/Lumina-Image-2.0"
        )
    }

    @classmethod
    def refusal_of(cls, transformer: Mapping[str, object], configurations: Configurations) -> str:
        """Of those that take more than noisy latents, and of parts of different models."""
        if (channels := transformer.get("in_channels", 16)) != 16:
            return f"its transformer takes {channels} channels; that of Lumina-Image 2 takes 16"
        encoder = configurations.get("text_encoder", {})
        return width_fault(encoder.get("hidden_size"), transformer.get("cap_feat_dim"))

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Attention and feed-forward of all blocks, the refiners' among them, and no modulation."""
        return {"transformer": ATTENTION + FEED_FORWARD}

    @property
    def together(self) -> dict[str, tuple[SameInput, ...]]:
        """Queries, keys and values; both halves of the gate."""
        return {"transformer": (SameInput(ATTENTION[:3]), SameInput((FEED_FORWARD[0], FEED_FORWARD[2])))}

    def tokens_around(self) -> int:
        return len(self.tokenizers["tokenizer"](TEMPLATE.format(""))["input_ids"])

    @torch.no_grad()
    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, L, D], "mask": [B, L]}: the states before Gemma 2's last layer, L the longest."""
        return self._read([TEMPLATE.format(caption) for caption in captions])

    def _read(self, texts: list[str]) -> Conditioning:
        encoder, tokenizer = self.parts["text_encoder"], self.tokenizers["tokenizer"]
        text, mask = states_before_last(encoder, tokenizer, texts, most=self.max_tokens)
        return {"text": text, MASK: mask}

    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """The transformer counts from noise to image, and predicts x0 - n."""
        transformer: Any = self.parts["transformer"]
        mask, device = conditioning[MASK], latents.device
        places = transformer.rope_embedder
        if type(latents) is type(places.freqs_cis[0]) and not latents.is_meta:
            places.freqs_cis = [to_device(one, device) for one in places.freqs_cis]  # once, not every step
        lengths = _Lengths(mask)
        with patch.object(places, "forward", lambda own, _, place=places.forward: place(own, lengths)):
            found: Tensor = transformer(
                latents.to(self.precision),
                1 - timestep.to(device),
                conditioning["text"].to(self.precision),
                None if lengths.are_alike else to_device(mask.bool(), device),
                return_dict=False,
            )[0]
        return -found

    def encode_prompt(
        self, pipeline: DiffusionPipeline, prompt: str, negative_prompt: str, *, guided: bool
    ) -> dict[str, Tensor | list[Tensor]]:
        """As long as each other, which its pipeline wants, with masks."""
        with torch.no_grad():
            read = [self._read([text]) for text in (TEMPLATE.format(prompt), *[negative_prompt] * guided)]
        found: dict[str, Tensor | list[Tensor]] = {}
        for name, its in (("prompt_embeds", "text"), ("prompt_attention_mask", MASK)):
            rows = joined([one[its] for one in read])
            found |= {
                f"{start}{name}": row[None] for start, row in zip(("", "negative_"), rows, strict=False)
            }
        return found

    @classmethod
    def miniature(cls) -> Miniature:
        """Two blocks of 48 channels, one head of keys and values for two of queries, and two refiners."""
        from diffusers import Lumina2Transformer2DModel

        sizes = {"hidden_size": 48, "num_layers": 2, "num_refiner_layers": 1, "cap_feat_dim": 40}
        heads = {"num_attention_heads": 2, "num_kv_heads": 1, "axes_dim_rope": (8, 8, 8)}
        transformer = random_network(Lumina2Transformer2DModel, multiple_of=16, **sizes, **heads)

        def predict(device: torch.device, dtype: torch.dtype) -> Tensor:
            latents, text = self_test_inputs(((2, 16, 8, 8), (2, 7, 40)), device, dtype)
            timestep, mask = torch.tensor([0.1, 0.7], device=device), torch.ones(2, 7, device=device)
            return transformer(latents, timestep, text, mask.bool(), return_dict=False)[0]

        return Miniature(transformer, ATTENTION + FEED_FORWARD, predict)


class _Lengths:
    """How many tokens are each caption's, where its transformer asks a mask for that: it waits for no GPU."""

    def __init__(self, mask: Tensor) -> None:
        self.shape = mask.shape
        self.own: list[int] = [mask.shape[1]] * len(mask)
        if has_numbers(mask):
            self.own = mask.sum(dim=1).tolist()

    @property
    def are_alike(self) -> bool:
        """Whether none is padded."""
        return min(self.own) == self.shape[1]

    def sum(self, dim: int) -> _Lengths:
        return self

    def tolist(self) -> list[int]:
        return self.own
