"""FLUX.2: blocks of two streams, then of one, which read three layers of a language model side by side.

klein (4B and 9B) reads Qwen3 and is published as a base and distilled to four steps, of equal tensors. dev
reads Mistral-Small, and is told how strong its guidance is: as FLUX.1 dev it is trained at 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F

from lora_studio.families.base import (
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
from lora_studio.families.transformers import VELOCITY, Configurations, FlowTransformer, width_fault
from lora_studio.families.transformers.flux1 import IMAGE_STREAM, TEXT_STREAM, TRAINED_GUIDANCE, positions
from lora_studio.families.transformers.language import (
    Message,
    chat_prompts,
    shorten,
    states_side_by_side,
    user_message,
)

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

IMAGE, TEXT = IMAGE_STREAM[:4], TEXT_STREAM[:4]  # of attention, whose layers are FLUX.1's
FEED_FORWARD = tuple(f"{stream}.linear_{end}" for stream in ("ff", "ff_context") for end in ("in", "out"))
SINGLE = ("attn.to_qkv_mlp_proj", "attn.to_out")
CHANNELS = 128  # of a token: four of the VAE's latents
_KLEIN_4B = 3072  # how wide it is
_IMPLEMENTATION = "https://github.com/black-forest-labs/flux2"
# As its makers have it, line break and all.
SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)


class Flux2(FlowTransformer):
    """What klein and dev share: layers, latents, and states of three layers."""

    needs: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    network: ClassVar[str] = "Flux2Transformer2DModel"
    relatives: ClassVar[Mapping[str, str]] = {
        "Flux2KleinKVPipeline": "FLUX.2 klein KV, which edits images",
    }
    max_tokens: ClassVar[int] = 512
    patch: ClassVar[int] = 1  # its latents are whole tokens
    file_layout = layouts()["flux2"]
    card_version = "Flux.2"

    is_guided: ClassVar[bool]  # whether its transformer is told how strong its guidance is
    read_layers: ClassVar[tuple[int, ...]]  # of the language model

    def __init__(
        self, parts: Parts, tokenizers: Tokenizers, *, source: str, scheduler: Mapping[str, object]
    ) -> None:
        super().__init__(parts, tokenizers, source=source, scheduler=scheduler)
        shorten(parts["text_encoder"], self.read_layers[-1])

    @classmethod
    def recognises(cls, configurations: dict[str, dict[str, object]]) -> bool:
        if not super().recognises(configurations):
            return False
        return bool(configurations["transformer"].get("guidance_embeds", True)) == cls.is_guided

    @classmethod
    def refusal_of(cls, transformer: Mapping[str, object], configurations: Configurations) -> str:
        """Of bases that read more than latents, and of a text encoder of another width."""
        if (channels := transformer.get("in_channels", CHANNELS)) != CHANNELS:
            return f"its transformer takes {channels} numbers a token; that of FLUX.2 takes {CHANNELS}"
        width = configurations.get("text_encoder", {}).get("hidden_size")
        given = len(cls.read_layers) * width if isinstance(width, int) else None
        return width_fault(given, transformer.get("joint_attention_dim"))

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Attention and feed-forward of both kinds of blocks, and no modulation."""
        return {"transformer": (*IMAGE, *TEXT, *FEED_FORWARD, *SINGLE)}

    @property
    def together(self) -> dict[str, tuple[SameInput, ...]]:
        return {"transformer": (SameInput(IMAGE[:3]), SameInput(TEXT[:3]))}

    def tokens_around(self) -> int:
        tokenizer = self.tokenizers["tokenizer"]
        return len(tokenizer(self._prompts([""]), add_special_tokens=False)["input_ids"][0])

    def _prompts(self, captions: Sequence[str]) -> list[str]:
        chats = [self.chat(caption) for caption in captions]
        return chat_prompts(self.tokenizers["tokenizer"], chats, thinks=False, answers=not self.is_guided)

    def chat(self, caption: str) -> list[Message]:
        """In which a caption is put to the language model."""
        return [user_message(caption)]

    @torch.no_grad()
    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, 512, 3 D]}: padding is seen by the transformer, however long the caption is."""
        encoder, tokenizer = self.parts["text_encoder"], self.tokenizers["tokenizer"]
        prompts = self._prompts(captions)
        text = states_side_by_side(
            encoder, tokenizer, prompts, length=self.max_tokens, layers=self.read_layers
        )
        return {"text": text}

    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """The transformer's own prediction is n - x0, and its timestep sigma."""
        text = conditioning["text"].to(self.precision)
        guidance = torch.full_like(timestep, TRAINED_GUIDANCE) if self.is_guided else None
        return predict(self.parts["transformer"], latents.to(self.precision), timestep, text, guidance)

    def encode_prompt(
        self, pipeline: DiffusionPipeline, prompt: str, negative_prompt: str, *, guided: bool
    ) -> dict[str, Tensor | list[Tensor]]:
        """As `encode_text` has captions."""
        wanted = {"prompt_embeds": prompt}
        if guided and self.reads_negative_prompts:
            wanted["negative_prompt_embeds"] = negative_prompt
        return {name: self.encode_text([text])["text"] for name, text in wanted.items()}

    @classmethod
    def miniature(cls) -> Miniature:
        """A block of each kind, of 64 channels."""
        from diffusers import Flux2Transformer2DModel

        transformer = random_network(
            Flux2Transformer2DModel,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=48,
            axes_dims_rope=(8, 8, 8, 8),
            guidance_embeds=False,
        )

        def answer(device: torch.device, dtype: torch.dtype) -> Tensor:
            latents, text = self_test_inputs(((2, CHANNELS, 4, 4), (2, 7, 48)), device, dtype)
            return predict(transformer, latents, torch.tensor([0.1, 0.7], device=device), text)

        endings = (*IMAGE, *TEXT, *FEED_FORWARD, *SINGLE)
        return Miniature(transformer, endings, answer)


def predict(
    transformer: Any, latents: Tensor, sigma: Tensor, text: Tensor, guidance: Tensor | None = None
) -> Tensor:
    """[B, 128, h, w], [B], [B, L, D] -> [B, 128, h, w]: a token's row and column, and a text's place."""
    height, width = latents.shape[-2:]
    places = torch.zeros(text.shape[1], 4, device=latents.device)
    places[:, 3] = torch.arange(text.shape[1], device=latents.device)
    found: Tensor = transformer(
        latents.flatten(2).transpose(1, 2),
        encoder_hidden_states=text,
        timestep=sigma,
        img_ids=F.pad(positions(height, width, latents.device), (0, 1)),
        txt_ids=places,
        guidance=guidance,
        return_dict=False,
    )[0]
    return found.transpose(1, 2).reshape(latents.shape)


class Flux2Klein(Flux2):
    """FLUX.2 klein 4B and 9B, base or distilled."""

    pipeline_class: ClassVar[str] = "Flux2KleinPipeline"
    is_guided: ClassVar[bool] = False
    read_layers: ClassVar[tuple[int, ...]] = (9, 18, 27)
    sampling: ClassVar[UsualSampling] = UsualSampling(30, 4.0)
    few_steps: ClassVar[int] = 4
    undistilled: ClassVar[str] = "black-forest-labs/FLUX.2-klein-base-4B or -9B"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        VELOCITY: FileTraits("flux_2_klein_4b", False, "Flux.2-klein-4b/lora", "", _IMPLEMENTATION),
        "9B": FileTraits("flux_2_klein_9b", False, "Flux.2-klein-9b/lora", "", _IMPLEMENTATION),
    }

    @property
    def traits(self) -> FileTraits:
        """As musubi-tuner tells the two apart."""
        wide = cast("Any", self.parts["transformer"]).inner_dim
        return self.file_traits["9B" if wide > _KLEIN_4B else VELOCITY]


class Flux2Dev(Flux2):
    """FLUX.2 dev."""

    pipeline_class: ClassVar[str] = "Flux2Pipeline"
    is_guided: ClassVar[bool] = True
    read_layers: ClassVar[tuple[int, ...]] = (10, 20, 30)
    sampling: ClassVar[UsualSampling] = UsualSampling(28, 4.0)
    few_steps: ClassVar[int] = 8
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        VELOCITY: FileTraits("flux_2_dev", False, "Flux.2-dev/lora", "", _IMPLEMENTATION)
    }

    @property
    def reads_negative_prompts(self) -> bool:
        return False

    def chat(self, caption: str) -> list[Message]:
        """Behind its makers' system message; a mark for images in a caption is none."""
        return [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            user_message([{"type": "text", "text": caption.replace("[IMG]", "")}]),
        ]
