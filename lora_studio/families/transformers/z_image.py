"""Z-Image (arXiv 2511.22699): one stream of text and image tokens, read by Qwen3-4B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from lora_studio.families.transformers import (
    MASK,
    VELOCITY,
    Configurations,
    FlowTransformer,
    own_tokens,
    width_fault,
)
from lora_studio.families.transformers.language import chat_prompts, states_before_last, user_message

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ZImageTransformer2DModel
    from torch import Tensor

ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")


class ZImage(FlowTransformer):
    """Z-Image and Z-Image-Turbo, whose tensors are alike."""

    needs: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    network: ClassVar[str] = "ZImageTransformer2DModel"
    relatives: ClassVar[Mapping[str, str]] = {"ZImageControlTransformer2DModel": "a control model"}
    pipeline_class: ClassVar[str] = "ZImagePipeline"
    max_tokens: ClassVar[int] = 512
    sampling: ClassVar[UsualSampling] = UsualSampling(30, 4.0)
    few_steps: ClassVar[int] = 9
    undistilled: ClassVar[str] = "Tongyi-MAI/Z-Image"
    file_layout = layouts()["z_image"]
    card_version = "Z-Image"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        VELOCITY: FileTraits("z_image", False, "Z-Image/lora", "", "https://github.com/Tongyi-MAI/Z-Image")
    }

    @classmethod
    def refusal_of(cls, transformer: Mapping[str, object], configurations: Configurations) -> str:
        """Omni and others that take more than noisy latents and text, and parts of different models."""
        if transformer.get("siglip_feat_dim") is not None:
            return "it is Z-Image-Omni, which reads images beside its prompt; train on Z-Image"
        if (channels := transformer.get("in_channels", 16)) != 16:
            return f"its transformer takes {channels} channels; that of Z-Image takes 16"
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
        return len(self.tokenizers["tokenizer"](self._prompts([""]))["input_ids"][0])

    def _prompts(self, captions: Sequence[str]) -> list[str]:
        """As ZImagePipeline has them: a message of the user's, and the answer begun."""
        messages = [[user_message(caption)] for caption in captions]
        return chat_prompts(self.tokenizers["tokenizer"], messages, thinks=True)

    @torch.no_grad()
    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, L, D], "mask": [B, L]}: the hidden states before Qwen3's last layer, L the longest."""
        encoder = self.parts["text_encoder"]
        encoder = getattr(encoder, "model", encoder)  # without the head that it was published with
        tokenizer, prompts = self.tokenizers["tokenizer"], self._prompts(captions)
        text, mask = states_before_last(encoder, tokenizer, prompts, most=self.max_tokens)
        return {"text": text, MASK: mask}

    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """The transformer counts from noise to image, and predicts x0 - n."""
        transformer: ZImageTransformer2DModel = self.parts["transformer"]
        frequencies = transformer.rope_embedder
        if frequencies.freqs_cis is not None and frequencies.freqs_cis[0].device != latents.device:
            frequencies.freqs_cis = None  # of shapes only, it may be; made again where they are needed
        dtype = self.precision
        images = list(latents.to(dtype).unsqueeze(2).unbind())
        texts = own_tokens(conditioning["text"].to(dtype), conditioning[MASK])
        found = transformer(images, 1 - timestep.to(latents.device), texts, return_dict=False)[0]
        return -torch.stack(list(found)).squeeze(2)

    def guided_by(self, guidance: float) -> dict[str, object]:
        """The pipeline adds so many times the difference to a prediction that has it once."""
        return {"guidance_scale": guidance - 1}

    def encode_prompt(
        self, pipeline: DiffusionPipeline, prompt: str, negative_prompt: str, *, guided: bool
    ) -> dict[str, Tensor | list[Tensor]]:
        """As `encode_text` has captions: lists of unequal tensors [n, D]."""
        given, negative = (
            list(self.encode_text([text])["text"]) if wanted else []
            for text, wanted in ((prompt, True), (negative_prompt, guided))
        )
        return {"prompt_embeds": given, "negative_prompt_embeds": negative}

    @classmethod
    def miniature(cls) -> Miniature:
        """Two blocks of 64 channels, and a refiner of each kind."""
        from diffusers import ZImageTransformer2DModel

        sizes = {"dim": 64, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
        axes = {"axes_dims": (8, 12, 12), "axes_lens": (64, 32, 32)}
        transformer = random_network(ZImageTransformer2DModel, cap_feat_dim=48, **sizes, **axes)

        def predict(device: torch.device, dtype: torch.dtype) -> Tensor:
            latents, text = self_test_inputs(((2, 16, 1, 8, 8), (2, 7, 48)), device, dtype)
            timestep = torch.tensor([0.1, 0.7], device=device)
            return torch.stack(transformer(list(latents), timestep, list(text), return_dict=False)[0])

        return Miniature(transformer, ATTENTION + FEED_FORWARD, predict)
