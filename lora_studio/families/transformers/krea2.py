"""Krea 2: one stream of text and image tokens, of which text is twelve layers of Qwen3-VL-4B for every token.

A small transformer within it makes one of these twelve. Raw is trained, and what is learned is used on Turbo,
which is distilled to eight steps and has equal tensors: the makers' advice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

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
from lora_studio.families.layer_names.transformers import layouts
from lora_studio.families.transformers import (
    MASK,
    VELOCITY,
    Configurations,
    FlowTransformer,
    padding_mask,
    width_fault,
)
from lora_studio.families.transformers.flux1 import device_of, pack, positions, unpack
from lora_studio.families.transformers.language import shorten
from lora_studio.families.transformers.qwen_image import LEFT_OUT, TEMPLATE
from lora_studio.objectives.base import ObjectiveOptions
from lora_studio.objectives.flow_matching import FlowMatching
from lora_studio.objectives.sigmas import StaticShift
from lora_studio.processes import to_device

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_gate", "attn.to_out.0"),
    *("ff.gate", "ff.up", "ff.down"),
)
READ_LAYERS = tuple(range(2, 36, 3))  # of the language model
BEFORE, BEHIND = TEMPLATE.split("{}")
TURBO_SHIFT = math.exp(1.15)  # of its sigmas, whatever the size


class Krea2(FlowTransformer):
    """Krea 2 Raw and Turbo."""

    needs: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    network: ClassVar[str] = "Krea2Transformer2DModel"
    pipeline_class: ClassVar[str] = "Krea2Pipeline"
    max_tokens: ClassVar[int] = 512
    sampling: ClassVar[UsualSampling] = UsualSampling(28, 5.5)
    few_steps: ClassVar[int] = 8
    undistilled: ClassVar[str] = "krea/Krea-2-Raw"
    file_layout = layouts()["krea2"]
    card_version = "Krea 2"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        VELOCITY: FileTraits("krea2", False, "Krea-2/lora", "", "https://huggingface.co/krea/Krea-2-Raw")
    }

    def __init__(
        self, parts: Parts, tokenizers: Tokenizers, *, source: str, scheduler: Mapping[str, object]
    ) -> None:
        super().__init__(parts, tokenizers, source=source, scheduler=scheduler)
        shorten(parts["text_encoder"], READ_LAYERS[-1])

    @classmethod
    def refusal_of(cls, transformer: Mapping[str, object], configurations: Configurations) -> str:
        """Of bases that read more than latents, or other layers than these, and of text of another width."""
        if (channels := transformer.get("in_channels", 64)) != 64:
            return f"its transformer takes {channels} numbers a token; that of Krea 2 takes 64"
        if (layers := transformer.get("num_text_layers", len(READ_LAYERS))) != len(READ_LAYERS):
            return (
                f"its transformer reads {layers} layers of its text encoder; Krea 2 reads {len(READ_LAYERS)}"
            )
        told = configurations.get(PIPELINE, {}).get("text_encoder_select_layers")
        if isinstance(told, list) and tuple(told) != READ_LAYERS:
            return f"its pipeline reads the layers {told} of its text encoder; Krea 2 reads {[*READ_LAYERS]}"
        encoder = configurations.get("text_encoder", {})
        return width_fault(encoder.get("hidden_size"), transformer.get("text_hidden_dim"))

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Attention, its gate, and feed-forward of all blocks, also of those that put the text together."""
        return {"transformer": LAYERS}

    @property
    def together(self) -> dict[str, tuple[SameInput, ...]]:
        return {"transformer": (SameInput(LAYERS[:4]), SameInput(LAYERS[5:7]))}

    def quantised_paths(self) -> list[str]:
        """The last layer, which diffusers keeps whole as a block, keeps its digits, too."""
        return [path for path in super().quantised_paths() if not path.startswith("final_layer.")]

    def objective(self, options: ObjectiveOptions) -> FlowMatching:
        """Turbo's sigmas are shifted as its pipeline has it."""
        if self.distilled:
            self.shift = StaticShift(TURBO_SHIFT)
        return super().objective(options)

    def tokens_around(self) -> int:
        """Those behind the caption; the ones before it are left out."""
        return len(self.tokenizers["tokenizer"](BEHIND)["input_ids"])

    @torch.no_grad()
    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, L, 12, D], "mask": [B, L]}: states of twelve layers, L the longest.

        Its pipeline pads between the caption and what is behind it, masks that, and counts no places for it.
        """
        encoder, tokenizer = self.parts["text_encoder"], self.tokenizers["tokenizer"]
        most, behind = self.max_tokens + LEFT_OUT - self.tokens_around(), tokenizer(BEHIND)["input_ids"]
        own = tokenizer([BEFORE + caption for caption in captions], truncation=True, max_length=most)
        whole = {"input_ids": [ids + behind for ids in own["input_ids"]]}
        given = tokenizer.pad(whole, padding="longest", padding_side="right", return_tensors="pt")
        ids, read = (to_device(given[name], device_of(encoder)) for name in ("input_ids", "attention_mask"))
        states = encoder(input_ids=ids, attention_mask=read, output_hidden_states=True).hidden_states
        text, mask = torch.stack([states[k] for k in READ_LAYERS], dim=2)[:, LEFT_OUT:], read[:, LEFT_OUT:]
        return {"text": text * mask[:, :, None, None], MASK: mask.bool()}

    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """The transformer's own prediction is n - x0, and its timestep sigma."""
        mask = padding_mask(conditioning, latents.device)
        text = conditioning["text"].to(self.precision)
        return predict(self.parts["transformer"], latents.to(self.precision), timestep, text, mask)

    def guided_by(self, guidance: float) -> dict[str, object]:
        """The pipeline adds so many times the difference to a prediction that has it once."""
        return {"guidance_scale": guidance - 1}

    def pipeline_options(self) -> dict[str, object]:
        """The shift of its sigmas for few steps is another one."""
        return {"is_distilled": self.distilled}

    @classmethod
    def miniature(cls) -> Miniature:
        """A block of each kind, of 64 channels."""
        from diffusers import Krea2Transformer2DModel

        transformer = random_network(
            Krea2Transformer2DModel,
            num_layers=1,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            attention_head_dim=32,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=64,
            timestep_embed_dim=32,
            text_hidden_dim=48,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=64,
            axes_dims_rope=(8, 12, 12),
        )

        def answer(device: torch.device, dtype: torch.dtype) -> Tensor:
            latents, text = self_test_inputs(((2, 16, 8, 8), (2, 7, 12, 48)), device, dtype)
            return predict(transformer, latents, torch.tensor([0.1, 0.7], device=device), text, None)

        return Miniature(transformer, LAYERS, answer)


def predict(transformer: Any, latents: Tensor, sigma: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    """[B, 16, h, w], [B], [B, L, 12, D] and [B, L] -> [B, 16, h, w]; all of a text is in one place."""
    height, width = latents.shape[-2:]
    of_text = torch.zeros(text.shape[1], 3, device=latents.device)
    found: Tensor = transformer(
        pack(latents),
        encoder_hidden_states=text,
        timestep=sigma,
        position_ids=torch.cat([of_text, positions(height // 2, width // 2, latents.device)]),
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]
    return unpack(found, height, width)
