"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): two streams, read by CLIP-L, CLIP-G and T5-XXL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F

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
    VELOCITY,
    Configurations,
    FlowTransformer,
    in_all_but_last,
    width_fault,
)
from lora_studio.families.transformers.flux1 import IMAGE_STREAM, TEXT_STREAM, device_of, padded_ids

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

SECOND_ATTENTION = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
TEXT_QUERIES = TEXT_STREAM[0]
TOKENS = 256  # of T5, behind the 77 of the CLIPs
TIMESTEPS = 1000
CLIPS = ("text_encoder", "text_encoder_2")


class _Release(NamedTuple):
    """What tells the published ones apart."""

    normed: bool  # queries and keys
    dual: bool  # some blocks have a second attention


class StableDiffusion3(FlowTransformer):
    """SD3 medium, SD3.5 medium and large."""

    needs: ClassVar[tuple[str, ...]] = (
        *("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
        *("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler"),
    )
    network: ClassVar[str] = "SD3Transformer2DModel"
    relatives: ClassVar[Mapping[str, str]] = {"SD3ControlNetModel": "a ControlNet of Stable Diffusion 3"}
    pipeline_class: ClassVar[str] = "StableDiffusion3Pipeline"
    sampling: ClassVar[UsualSampling] = UsualSampling(28, 4.5)
    few_steps: ClassVar[int] = 4
    max_tokens: ClassVar[int] = TOKENS
    file_layout = layouts()["sd3"]
    card_version = "SD3"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        VELOCITY: FileTraits("3-medium", False, "stable-diffusion-3-medium/lora", "", "diffusers"),
        "3.5 medium": FileTraits("3-5-medium", False, "stable-diffusion-3.5-medium/lora", "", "diffusers"),
        "3.5 large": FileTraits("3-5-large", False, "stable-diffusion-3.5-large/lora", "", "diffusers"),
    }

    @classmethod
    def refusal_of(cls, transformer: Mapping[str, object], configurations: Configurations) -> str:
        """Of bases that read more than latents, and of text encoders of another width."""
        if (channels := transformer.get("in_channels", 16)) != 16:
            return f"its transformer takes {channels} channels; that of Stable Diffusion 3 takes 16"
        third = configurations.get("text_encoder_3", {})
        clips = [configurations.get(name, {}).get("projection_dim") for name in CLIPS]
        pooled = sum(cast(int, one) for one in clips) if all(isinstance(one, int) for one in clips) else None
        return width_fault(third.get("d_model"), transformer.get("joint_attention_dim")) or width_fault(
            pooled, transformer.get("pooled_projection_dim")
        )

    @property
    def num_blocks(self) -> int:
        return int(self.parts["transformer"].config.num_layers)  # type: ignore[union-attr, arg-type]

    @property
    def traits(self) -> FileTraits:
        """As sd-scripts tells the three apart."""
        config = self.parts["transformer"].config
        seen = _Release(bool(config.qk_norm), bool(config.dual_attention_layers))  # type: ignore[union-attr]
        if not seen.normed:
            return self.file_traits[VELOCITY]
        return self.file_traits["3.5 medium" if seen.dual else "3.5 large"]

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Attention and feed-forward; of the text's queries not the last, which nothing reads (`unread`)."""
        rest = (one for one in TEXT_STREAM if one != TEXT_QUERIES)
        queries = in_all_but_last(self.num_blocks, [TEXT_QUERIES])
        return {"transformer": (*IMAGE_STREAM, *rest, *SECOND_ATTENTION, *queries)}

    @property
    def unread(self) -> dict[str, tuple[str, ...]]:
        """The last block goes on with the image alone: its text has keys and values, and asks nothing."""
        return {"transformer": (f"transformer_blocks.{self.num_blocks - 1}.{TEXT_QUERIES}",)}

    @property
    def together(self) -> dict[str, tuple[SameInput, ...]]:
        kinds = (IMAGE_STREAM[:3], TEXT_STREAM[:3], SECOND_ATTENTION[:3])
        return {"transformer": tuple(SameInput(kind) for kind in kinds)}

    @property
    def caption_tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """T5's; the CLIPs read the first 77 tokens."""
        return {"tokenizer_3": self.tokenizers["tokenizer_3"]}

    @torch.no_grad()
    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, 77 + 256, D], "pooled": [B, P]}.

        The CLIPs' hidden states before the last layer side by side, filled up with zeros to T5's width, and
        T5's last one behind them.
        """
        states, pooled = [], []
        for name in CLIPS:
            clip, tokenizer = self.parts[name], self.tokenizer_of(name)
            ids = padded_ids(tokenizer, captions, tokenizer.model_max_length, device_of(clip))
            found = clip(ids, output_hidden_states=True)
            states.append(found.hidden_states[-2])
            pooled.append(found.text_embeds)
        t5 = self.parts["text_encoder_3"]
        ids = padded_ids(self.tokenizers["tokenizer_3"], captions, self.max_tokens, device_of(t5))
        last = t5(ids).last_hidden_state
        of_clips = torch.cat(states, dim=-1)
        wide = F.pad(of_clips, (0, last.shape[-1] - of_clips.shape[-1]))
        return {"text": torch.cat([wide, last], dim=1), "pooled": torch.cat(pooled, dim=-1)}

    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """The transformer's own prediction is n - x0, and its timestep 1000 sigma."""
        return cast(
            "Tensor",
            self.parts["transformer"](
                latents.to(self.precision),
                encoder_hidden_states=conditioning["text"].to(self.precision),
                pooled_projections=conditioning["pooled"].to(self.precision),
                timestep=timestep * TIMESTEPS,
                return_dict=False,
            )[0],
        )

    def encode_prompt(
        self, pipeline: DiffusionPipeline, prompt: str, negative_prompt: str, *, guided: bool
    ) -> dict[str, Tensor | list[Tensor]]:
        """All three text encoders' tokens, and the CLIPs' vectors, of both prompts."""
        text, negative, pooled, negative_pooled = pipeline.encode_prompt(
            prompt,
            *(None, None),
            device=self.device,
            do_classifier_free_guidance=guided,
            negative_prompt=negative_prompt,
            max_sequence_length=self.max_tokens,
        )
        return {
            **{"prompt_embeds": text, "negative_prompt_embeds": negative},
            **{"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative_pooled},
        }

    @classmethod
    def miniature(cls) -> Miniature:
        """Two blocks of 64 channels, the first with a second attention."""
        from diffusers import SD3Transformer2DModel

        transformer = random_network(
            SD3Transformer2DModel,
            sample_size=8,
            num_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=48,
            caption_projection_dim=64,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )

        def predict(device: torch.device, dtype: torch.dtype) -> Tensor:
            latents, text = self_test_inputs(((2, 16, 8, 8), (2, 7, 48)), device, dtype)
            return transformer(
                latents,
                encoder_hidden_states=text,
                pooled_projections=text[:, 0, :32],
                timestep=torch.tensor([100.0, 700.0], device=device),
                return_dict=False,
            )[0]

        endings = (*IMAGE_STREAM, *SECOND_ATTENTION, *TEXT_STREAM[1:])
        return Miniature(transformer, endings, predict)
