"""What draws Anima's images: diffusers has blocks of a pipeline for it, which encode their text again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import AnimaLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from lora_studio.families import vaes
from lora_studio.families.configuration import INDEXES

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


class AnimaPipeline(DiffusionPipeline, AnimaLoraLoaderMixin):  # type: ignore[misc]
    """Euler's steps from noise to images, of text that is encoded; to be told how to `predict`."""

    predict: Callable[[Any, Tensor, Tensor, Tensor], Tensor]  # by the transformer, of latents, sigma and text

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        transformer: nn.Module,
        vae: nn.Module,
        text_encoder: nn.Module,
        text_conditioner: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        t5_tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__()
        networks = {"transformer": transformer, "vae": vae, "text_encoder": text_encoder}
        tokenizers = {"tokenizer": tokenizer, "t5_tokenizer": t5_tokenizer}
        self.register_modules(
            scheduler=scheduler, text_conditioner=text_conditioner, **networks, **tokenizers
        )

    @torch.no_grad()
    def __call__(
        self,
        *,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_inference_steps: int,
        height: int,
        width: int,
        output_type: str = "pil",
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
    ) -> ImagePipelineOutput:
        """[B, 512, D] for each prompt and negative one -> images; sides are in pixels.

        `guidance_scale` as UIs count it, of which 1 is none.
        """
        device, size = self.transformer.device, vaes.pixels_per_latent(self.vae.config)
        channels = self.transformer.config.out_channels
        shape = (len(prompt_embeds), channels, height // size, width // size)
        latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        texts = [prompt_embeds]
        if guidance_scale != 1 and negative_prompt_embeds is not None:
            texts.append(negative_prompt_embeds)
        texts = [one.to(device, self.transformer.dtype) for one in texts]
        for number, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            sigma = (timestep / self.scheduler.config.num_train_timesteps).expand(len(latents))
            given = latents.to(self.transformer.dtype)
            found = [self.predict(self.transformer, given, sigma, text) for text in texts]
            velocity = torch.lerp(found[-1], found[0], guidance_scale)
            latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            if callback_on_step_end is not None:
                callback_on_step_end(self, number, timestep, {})
        images = vaes.decode(self.vae, latents.to(self.vae.dtype))
        return ImagePipelineOutput(images=VaeImageProcessor().postprocess(images, output_type=output_type))

    def save_pretrained(self, save_directory: str | Path, **given: Any) -> None:
        """As its makers' folder, which diffusers' ModularPipeline loads: it has no pipeline of this name."""
        folder, transformer = Path(save_directory), self.transformer
        kept = transformer.config.concat_padding_mask
        transformer.register_to_config(concat_padding_mask=True)
        super().save_pretrained(folder, **given)
        transformer.register_to_config(concat_padding_mask=kept)
        index = {"_class_name": "AnimaModularPipeline", "_blocks_class_name": "AnimaAutoBlocks"}
        for name, entry in json.loads((folder / INDEXES[0]).read_text("utf-8")).items():
            if isinstance(entry, list):
                index[name] = [*entry, {"subfolder": name, "type_hint": entry}]  # type: ignore[assignment]
        (folder / INDEXES[1]).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        (folder / INDEXES[0]).unlink()
