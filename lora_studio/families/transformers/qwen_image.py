"""Qwen-Image (arXiv 2508.02324) and its release 2512: two streams, the text's read by Qwen2.5-VL-7B.

Its VAE is one of videos; an image is a single frame. Of its prompt's template the tokens before the caption
are left out of what the transformer reads, and those behind it are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, cast
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
    in_all_but_last,
    padding_mask,
    width_fault,
)
from lora_studio.families.transformers.flux1 import device_of, pack, unpack
from lora_studio.processes import to_device

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_STREAM = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("img_mlp.net.0.proj", "img_mlp.net.2"),
)
TEXT_KEYS = ("attn.add_k_proj", "attn.add_v_proj")
TEXT_ANSWERS = ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
LEFT_OUT = 34  # tokens of the template in front of the caption
# What diffusers asks for the texts' lengths: it makes a number of the host's a tensor of the GPU, for which
# the host waits at every pass, and reads none of them.
_LENGTHS = "diffusers.models.transformers.transformer_qwenimage.compute_text_seq_len_from_mask"
_EDITOR = "Qwen-Image Edit, which edits an image"
_CONTROL = "a ControlNet of Qwen-Image"


def _whole_length(text: Tensor, mask: Tensor | None) -> tuple[int, None, Tensor | None]:
    """Of the batch, padding and all, and the mask as it is."""
    return text.shape[1], None, mask


class QwenImage(FlowTransformer):
    """Qwen-Image and Qwen-Image-2512, whose tensors are alike."""

    needs: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    network: ClassVar[str] = "QwenImageTransformer2DModel"
    relatives: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("QwenImageControlNetModel", "QwenImageMultiControlNetModel"), _CONTROL),
        **{f"QwenImageEdit{which}Pipeline": _EDITOR for which in ("", "Plus", "Inpaint")},
        "QwenImageLayeredPipeline": "Qwen-Image Layered, whose images have layers",
        "QwenImage21Transformer2DModel": "Qwen-Image 2.1, which is another model",
    }
    pipeline_class: ClassVar[str] = "QwenImagePipeline"
    max_tokens: ClassVar[int] = 1024
    sampling: ClassVar[UsualSampling] = UsualSampling(30, 4.0)
    few_steps: ClassVar[int] = 8
    file_layout = layouts()["qwen_image"]
    card_version = "Qwen-Image"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        VELOCITY: FileTraits(
            "qwen_image", False, "Qwen-Image/lora", "", "https://github.com/QwenLM/Qwen-Image"
        )
    }

    @classmethod
    def refusal_of(cls, transformer: Mapping[str, object], configurations: Configurations) -> str:
        """Of those that read more than latents and text, and of text encoders of another width."""
        if transformer.get("use_additional_t_cond") or transformer.get("use_layer3d_rope"):
            return f"it is {cls.relatives['QwenImageLayeredPipeline']}; train on Qwen-Image"
        if transformer.get("zero_cond_t"):
            return f"it is {_EDITOR}; train on Qwen-Image"
        if transformer.get("guidance_embeds"):
            return "its transformer is told a guidance, which diffusers has no Qwen-Image for yet"
        if (channels := transformer.get("in_channels", 64)) != 64:
            return f"its transformer takes {channels} numbers a token; that of Qwen-Image takes 64"
        encoder = configurations.get("text_encoder", {})
        return width_fault(encoder.get("hidden_size"), transformer.get("joint_attention_dim"))

    @property
    def num_blocks(self) -> int:
        return int(self.parts["transformer"].config.num_layers)  # type: ignore[union-attr, arg-type]

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Attention and feed-forward of both streams but for what is `unread`, and no modulation."""
        answers = in_all_but_last(self.num_blocks, TEXT_ANSWERS)
        return {"transformer": (*IMAGE_STREAM, *TEXT_KEYS, *answers)}

    @property
    def unread(self) -> dict[str, tuple[str, ...]]:
        """The last block goes on with the image alone: its text has keys and values for that."""
        last = self.num_blocks - 1
        return {"transformer": tuple(f"transformer_blocks.{last}.{one}" for one in TEXT_ANSWERS)}

    @property
    def together(self) -> dict[str, tuple[SameInput, ...]]:
        """Queries, keys and values of each stream."""
        return {"transformer": (SameInput(IMAGE_STREAM[:3]), SameInput((*TEXT_KEYS, TEXT_ANSWERS[0])))}

    def tokens_around(self) -> int:
        """Those of the template that are not left out."""
        return len(self.tokenizers["tokenizer"](TEMPLATE.format(""))["input_ids"]) - LEFT_OUT

    @torch.no_grad()
    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, L, D], "mask": [B, L]}: Qwen2.5-VL's last hidden state, L the longest."""
        encoder = self.parts["text_encoder"]
        given = self.tokenizers["tokenizer"](
            [TEMPLATE.format(caption) for caption in captions],
            padding="longest",
            padding_side="right",
            truncation=True,
            max_length=self.max_tokens + LEFT_OUT,
            return_tensors="pt",
        )
        ids, read = (to_device(given[name], device_of(encoder)) for name in ("input_ids", "attention_mask"))
        states = encoder(input_ids=ids, attention_mask=read).last_hidden_state[:, LEFT_OUT:]
        mask = read[:, LEFT_OUT:].bool()
        return {"text": states * mask[:, :, None], MASK: mask}

    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """The transformer's own prediction is n - x0, and its timestep sigma."""
        height, width = latents.shape[-2:]
        mask = padding_mask(conditioning, latents.device)
        with patch(_LENGTHS, _whole_length):
            found = self.parts["transformer"](
                pack(latents.to(self.precision)),
                encoder_hidden_states=conditioning["text"].to(self.precision),
                encoder_hidden_states_mask=mask,
                timestep=timestep,
                img_shapes=[[(1, height // 2, width // 2)]] * len(latents),
                return_dict=False,
            )[0]
        return unpack(cast("Tensor", found), height, width)

    def guided_by(self, guidance: float) -> dict[str, object]:
        """Its pipeline reads half of the tokens unless it is told."""
        return {"true_cfg_scale": guidance, "max_sequence_length": self.max_tokens}

    @classmethod
    def miniature(cls) -> Miniature:
        """Two blocks of 64 channels."""
        from diffusers import QwenImageTransformer2DModel

        transformer = random_network(
            QwenImageTransformer2DModel,
            num_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=48,
            axes_dims_rope=(4, 14, 14),
        )

        def predict(device: torch.device, dtype: torch.dtype) -> Tensor:
            latents, text = self_test_inputs(((2, 16, 8, 8), (2, 7, 48)), device, dtype)
            return transformer(
                pack(latents),
                encoder_hidden_states=text,
                timestep=torch.tensor([0.1, 0.7], device=device),
                img_shapes=[[(1, 4, 4)]] * 2,
                return_dict=False,
            )[0]

        endings = (*IMAGE_STREAM, *TEXT_KEYS, *in_all_but_last(2, TEXT_ANSWERS))
        return Miniature(transformer, endings, predict)
