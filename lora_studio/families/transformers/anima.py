"""Anima: a transformer made from Cosmos-Predict2, whose text is made of two readings of a caption.

Qwen3-0.6B reads it, and a text conditioner makes of these states one for each of T5's tokens, of which it has
learned its own vectors; T5 itself is not there. It is frozen as text encoders are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F

from lora_studio.families.base import (
    PIPELINE,
    Conditioning,
    FileTraits,
    Miniature,
    Parts,
    SameInput,
    Tokenizers,
    UsualSampling,
    random_network,
    self_test_inputs,
)
from lora_studio.families.configuration import CONDITIONER, WORDS
from lora_studio.families.layer_names.transformers import layouts
from lora_studio.families.transformers import VELOCITY, Configurations, FlowTransformer, width_fault
from lora_studio.families.transformers.flux1 import device_of
from lora_studio.processes import to_device

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
SELF_ATTENTION, CROSS_ATTENTION = (
    tuple(f"{attention}.{one}" for one in PROJECTIONS) for attention in ("attn1", "attn2")
)
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CHANNELS = 16
_BASE = "circlestone-labs/Anima-Base-v1.0-Diffusers"
_COSMOS = "Cosmos, from which Anima was made, or another model of its kind"


class Anima(FlowTransformer):
    """Anima, its previews and what was trained from it."""

    needs: ClassVar[tuple[str, ...]] = (
        *("transformer", "vae", "text_encoder", "tokenizer"),
        *(CONDITIONER, WORDS, "scheduler"),
    )
    network: ClassVar[str] = "CosmosTransformer3DModel"
    relatives: ClassVar[Mapping[str, str]] = {
        "CosmosControlNetModel": "a ControlNet of Cosmos",
        **dict.fromkeys((f"Cosmos{of}ToWorldPipeline" for of in ("Text", "Video")), _COSMOS),
        **dict.fromkeys(("Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline"), _COSMOS),
        **dict.fromkeys(("Cosmos2_5_PredictBasePipeline", "Cosmos2_5_TransferPipeline"), _COSMOS),
    }
    max_tokens: ClassVar[int] = 512
    sampling: ClassVar[UsualSampling] = UsualSampling(30, 4.0)
    few_steps: ClassVar[int] = 8
    undistilled: ClassVar[str] = _BASE
    file_layout = layouts()["anima"]
    card_version = "Anima"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        VELOCITY: FileTraits(
            "anima", False, "anima-preview/lora", "", "https://huggingface.co/circlestone-labs/Anima"
        )
    }

    def __init__(
        self, parts: Parts, tokenizers: Tokenizers, *, source: str, scheduler: Mapping[str, object]
    ) -> None:
        super().__init__(parts, tokenizers, source=source, scheduler=scheduler)
        # Else diffusers scales the mask with torchvision, which may not be there; `predict` joins it on.
        cast("Any", parts["transformer"]).register_to_config(concat_padding_mask=False)

    @classmethod
    def refusal_of(cls, transformer: Mapping[str, object], configurations: Configurations) -> str:
        """Of Cosmos itself, of what reads more than latents and text, and of parts of different models."""
        if not any(CONDITIONER in one for one in (configurations, configurations.get(PIPELINE, {}))):
            return f"it has no {CONDITIONER}, so it is {_COSMOS}"
        if (channels := transformer.get("in_channels", CHANNELS)) != CHANNELS:
            return f"its transformer takes {channels} channels; that of Anima takes {CHANNELS}"
        more = ("use_crossattn_projection", "img_context_dim_in", "controlnet_block_every_n")
        if any(transformer.get(one) for one in more) or not transformer.get("concat_padding_mask", True):
            return f"its transformer is that of {_COSMOS}"
        if configurations.get("scheduler", {}).get("use_dynamic_shifting"):
            return "its scheduler shifts by an image's size; that of Anima does not"
        encoder, conditioner = (configurations.get(part, {}) for part in ("text_encoder", CONDITIONER))
        return width_fault(encoder.get("hidden_size"), conditioner.get("source_dim")) or width_fault(
            conditioner.get("target_dim"), transformer.get("text_embed_dim")
        )

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Attention and feed-forward of all blocks, no modulation, and nothing of the text conditioner."""
        return {"transformer": (*SELF_ATTENTION, *CROSS_ATTENTION, *FEED_FORWARD)}

    @property
    def together(self) -> dict[str, tuple[SameInput, ...]]:
        """Queries, keys and values of an image; all keys and values of its text."""
        of_text = SameInput(CROSS_ATTENTION[1:3], "encoder_hidden_states")
        return {"transformer": (SameInput(SELF_ATTENTION[:3]), of_text)}

    @property
    def text_encoders(self) -> list[str]:
        """With the conditioner, whose output is all that the transformer reads."""
        return [*super().text_encoders, CONDITIONER]

    @torch.no_grad()
    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, L, D]}: a state for each of T5's tokens, and zeros; L the longest, at most 512."""
        ids, read = self._tokens("tokenizer", captions)
        if not ids.shape[1]:  # Qwen's has no mark for a text without words
            ids, read = ids.new_zeros(len(captions), 1), read.new_zeros(len(captions), 1)
        seen = read.clone()
        seen[:, 0] = 1  # so that there is something to attend to: a state that is zero, if it is no word's
        states = self.parts["text_encoder"](input_ids=ids, attention_mask=seen).last_hidden_state
        words, own = self._tokens(WORDS, captions)
        text = self.parts[CONDITIONER](
            states * read[:, :, None], words, target_attention_mask=own, source_attention_mask=seen
        )
        return {"text": text[:, : words.shape[1]]}

    def _tokens(self, tokenizer: str, captions: list[str]) -> tuple[Tensor, Tensor]:
        """[B, L] and [B, L]: ids, and which of them are a caption's; these come first."""
        given = self.tokenizers[tokenizer](
            captions,
            padding="longest",
            padding_side="right",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        device = device_of(self.parts["text_encoder"])
        ids, read = (to_device(given[name].long(), device) for name in ("input_ids", "attention_mask"))
        return ids, read

    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """The transformer's own prediction is n - x0, and its timestep sigma."""
        text = self._padded(conditioning["text"]).to(self.precision)
        return predict(self.parts["transformer"], latents.to(self.precision), timestep, text)

    def _padded(self, text: Tensor) -> Tensor:
        """With zeros to 512 tokens, which the transformer sees."""
        least = cast("Any", self.parts[CONDITIONER]).config.min_sequence_length
        return F.pad(text, (0, 0, 0, max(0, least - text.shape[1])))

    def pipeline(self) -> DiffusionPipeline:
        """Our own: diffusers has blocks of one for it, which encode their text themselves."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        from lora_studio.families.transformers.anima_pipeline import AnimaPipeline

        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler)
        made = AnimaPipeline(scheduler=scheduler, **self.parts, **self.tokenizers)
        made.predict = predict
        made.set_progress_bar_config(disable=True)
        return made

    def encode_prompt(
        self, pipeline: DiffusionPipeline, prompt: str, negative_prompt: str, *, guided: bool
    ) -> dict[str, Tensor | list[Tensor]]:
        """As `encode_text` has captions, padded."""
        wanted = {"prompt_embeds": prompt} | ({"negative_prompt_embeds": negative_prompt} if guided else {})
        return {name: self._padded(self.encode_text([text])["text"]) for name, text in wanted.items()}

    @classmethod
    def miniature(cls) -> Miniature:
        """Two blocks of 64 channels."""
        from diffusers import CosmosTransformer3DModel

        transformer = random_network(
            CosmosTransformer3DModel,
            num_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            text_embed_dim=48,
            adaln_lora_dim=16,
            extra_pos_embed_type=None,
        )
        cast("Any", transformer).register_to_config(concat_padding_mask=False)

        def answer(device: torch.device, dtype: torch.dtype) -> Tensor:
            latents, text = self_test_inputs(((2, CHANNELS, 8, 8), (2, 7, 48)), device, dtype)
            return predict(transformer, latents, torch.tensor([0.1, 0.7], device=device), text)

        return Miniature(transformer, (*SELF_ATTENTION, *CROSS_ATTENTION, *FEED_FORWARD), answer)


def predict(transformer: Any, latents: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """[B, 16, h, w], [B] and [B, L, D] -> [B, 16, h, w], of a frame beside a mask of no padding."""
    frame = F.pad(latents, (0, 0, 0, 0, 0, 1)).unsqueeze(2)
    found: Tensor = transformer(frame, timestep=sigma, encoder_hidden_states=text, return_dict=False)[0]
    return found.squeeze(2)
