"""Stable Diffusion 1.x, and miniatures with the same module tree such as the pocket base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_studio.families.base import Conditioning, FileTraits, ModelFamily, ObjectiveOptions
from lora_studio.families.chunks import clip_ids, encode_chunks
from lora_studio.objective import Diffusion

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
    from torch import Tensor

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


class StableDiffusion15(ModelFamily):
    """One CLIP text encoder, 4 latent channels, epsilon prediction."""

    denoiser: ClassVar[str] = "unet"

    @classmethod
    def recognises(cls, configurations: dict[str, dict[str, object]]) -> bool:
        """Four latent channels in, convolutional projections and no added embeddings."""
        unet = configurations.get("unet", {})
        return (
            unet.get("in_channels") == 4
            and not unet.get("use_linear_projection")
            and not unet.get("addition_embed_type")
            and configurations.get("scheduler", {}).get("prediction_type", "epsilon") == "epsilon"
        )

    @property
    def stride(self) -> int:
        """An eighth of the native side: 64 pixels for SD1.5 (512), 8 for the pocket base (64)."""
        unet: UNet2DConditionModel = self.parts["unet"]
        return int(unet.config.sample_size * self._pixels_per_latent // 8)

    @property
    def _pixels_per_latent(self) -> int:
        vae: AutoencoderKL = self.parts["vae"]
        return int(2 ** (len(vae.config.block_out_channels) - 1))

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Attention and feed-forward: both together reach full fine-tuning's loss (spacepxl's ablation)."""
        return {"unet": ATTENTION + FEED_FORWARD, "text_encoder": TEXT_LAYERS}

    @property
    def traits(self) -> FileTraits:
        """SD1, as every UI knows it."""
        return FileTraits("sd_v1", False, "stable-diffusion-v1/lora", "epsilon")

    def objective(self, options: ObjectiveOptions) -> Diffusion:
        """Epsilon prediction on the base's own noise schedule (scaled linear betas)."""
        steps = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - steps, 0).float()
        return Diffusion(
            alphas,
            "epsilon",
            options.snr_gamma,
            options.noise_offset,
            options.timesteps,
            options.weighting,
        )

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in -1..1 -> mean and standard deviation of the scaled latents."""
        vae: AutoencoderKL = self.parts["vae"]
        weight = next(vae.parameters())
        posterior = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, L, D]}, the encoder's last hidden state; L is 77 for each window that is needed."""
        encoder = self.parts["text_encoder"]
        ids = clip_ids(self.tokenizers["tokenizer"], captions, max_chunks=self.max_chunks, like=like)
        device = next(encoder.parameters()).device
        return {"text": encode_chunks(ids.to(device), lambda rows: encoder(rows).last_hidden_state)}

    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """The UNet's answer; SD1.x knows nothing of geometry."""
        unet = self.parts["unet"]
        dtype = next(unet.parameters()).dtype
        return unet(latents.to(dtype), timestep, conditioning["text"].to(dtype)).sample

    def canonical_path(self, part: str, path: str) -> str:
        """transformers 5 dropped `text_model.` from CLIPTextModel's paths; every file and UI has it."""
        if part == "text_encoder" and not path.startswith("text_model."):
            return f"text_model.{path}"
        return path

    def ui_name(self, part: str, path: str) -> str:
        """kohya's spelling: the diffusers path with underscores, behind the part's prefix."""
        return PREFIXES[part] + path.replace(".", "_")

    def pipeline(self) -> DiffusionPipeline:
        """A StableDiffusionPipeline over these parts, with DDIM, whose pictures depend on the seed alone."""
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        parts = {name: self.parts[name] for name in ("vae", "text_encoder", "unet")}
        pipeline = StableDiffusionPipeline(
            **parts,
            tokenizer=self.tokenizers["tokenizer"],
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
