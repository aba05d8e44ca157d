"""What all Stable Diffusions share: a UNet, a VAE, CLIP, and discrete noise.

As it stands here it is that of SD1 and SD2, with one text encoder; SDXL replaces the text side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_studio.families import vaes
from lora_studio.families.base import (
    Conditioning,
    FileTraits,
    Miniature,
    ModelFamily,
    Parts,
    ProbeInputs,
    SameInput,
    Tokenizers,
    random_network,
    self_test_inputs,
)
from lora_studio.families.layer_names.spellings import ONE_ENCODER, KohyaLayout, LayerPlace
from lora_studio.families.noise_schedule import STABLE_DIFFUSION, NoiseSchedule, read_schedule
from lora_studio.families.original import SD1, SD2, BaseKind
from lora_studio.families.original.names import original_tensors
from lora_studio.families.text_chunks import clip_ids, encode_chunks, join_windows
from lora_studio.families.unet.refusals import unet_refusal
from lora_studio.objectives.base import ObjectiveOptions
from lora_studio.objectives.diffusion import Diffusion
from lora_studio.processes import to_device
from lora_studio.recipe.data import MOST_CHUNKS
from lora_studio.rng import generator

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, UNet2DConditionModel
    from torch import Tensor


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
SELF_ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
CROSS_ATTENTION = ("attn2.to_k", "attn2.to_v")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
SAMPLERS = ("downsamplers.0.conv", "upsamplers.0.conv")
CONVOLUTIONS = ("conv1", "conv2", "time_emb_proj", "conv_shortcut", *SAMPLERS)
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
PROMPT_TENSORS = (  # in the order in which diffusers' pipelines give them
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
MOST_STRIDE = 64  # the UNets halve their latents two or three times, and UIs offer sides in steps of 64


class StableDiffusion(ModelFamily):
    """A UNet on 4 latent channels that predicts epsilon or v."""

    denoiser: ClassVar[str] = "unet"
    most_chunks: ClassVar[int] = MOST_CHUNKS
    needs: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    layout: ClassVar[KohyaLayout] = ONE_ENCODER
    kind: ClassVar[BaseKind]  # its published checkpoints
    embedding_keys: ClassVar[Mapping[str, str]] = {"text_encoder": "emb_params"}

    def __init__(
        self,
        parts: Parts,
        tokenizers: Tokenizers,
        *,
        source: str,
        scheduler: Mapping[str, object] = STABLE_DIFFUSION,
    ) -> None:
        super().__init__(parts, tokenizers, source=source, scheduler=scheduler)
        self.schedule: NoiseSchedule = read_schedule(scheduler)

    @classmethod
    def recognises(cls, configurations: dict[str, dict[str, object]]) -> bool:
        return "unet" in configurations and cls.kind.has_unet(configurations["unet"])

    @classmethod
    def refusal(cls, configurations: Mapping[str, Mapping[str, object]]) -> str:
        return unet_refusal(configurations) if "unet" in configurations else ""

    @property
    def native_side(self) -> int:
        """512 for SD1.5, 768 or 512 for SD2, 1024 for SDXL, 64 for the pocket base."""
        unet: UNet2DConditionModel = self.parts["unet"]
        return int(unet.config.sample_size * self.pixels_per_latent)

    @property
    def stride(self) -> int:
        """An eighth of the native side, but at most 64 pixels; 8 for the pocket base."""
        return min(MOST_STRIDE, self.native_side // 8)

    @property
    def pixels_per_latent(self) -> int:
        """8 for every published base."""
        return vaes.pixels_per_latent(self.parts["vae"].config)  # type: ignore[arg-type]

    @property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Attention and feed-forward: both together reach full fine-tuning's loss (spacepxl's ablation)."""
        return {"unet": ATTENTION + FEED_FORWARD, "text_encoder": TEXT_LAYERS}

    @property
    def guidance_rescale(self) -> float:
        """0.7 at zero terminal SNR, where guidance overexposes: arXiv 2305.08891, sec. 3.4."""
        return 0.7 if self.schedule.zero_terminal_snr else 0.0

    @property
    def convolutions(self) -> dict[str, tuple[str, ...]]:
        """Those of the UNet's residual blocks and between its levels, not its first and last one."""
        return {"unet": CONVOLUTIONS}

    @property
    def together(self) -> dict[str, tuple[SameInput, ...]]:
        """Queries, keys and values of a sequence itself; all keys and values of the text."""
        of_text = {part: (SameInput(TEXT_LAYERS[:3]),) for part in self.text_encoders}
        of_unet = SameInput(SELF_ATTENTION), SameInput(CROSS_ATTENTION, "encoder_hidden_states")
        return {**of_text, "unet": of_unet}

    def objective(self, options: ObjectiveOptions) -> Diffusion:
        return Diffusion(self.schedule.alphas, self.schedule.prediction, **asdict(options))

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in -1..1 -> mean and standard deviation of the scaled latents."""
        return vaes.encode(self.parts["vae"], pixels)

    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """{"text": [B, L, D]}, the encoder's last hidden state; L is 77 for each window that is needed.

        SD2's encoder is stored without its last layer, so that its last hidden state is the penultimate one.
        """
        encoder = self.parts["text_encoder"]
        ids = clip_ids(self.tokenizers["tokenizer"], captions, max_chunks=self.max_chunks, like=like)
        device = next(encoder.parameters()).device
        return {"text": encode_chunks(to_device(ids, device), lambda rows: encoder(rows).last_hidden_state)}

    def join(self, rows: Sequence[Conditioning], empty: Conditioning) -> Conditioning:
        return join_windows(rows, empty)

    def guided_by(self, guidance: float) -> dict[str, object]:
        return {"guidance_scale": guidance, "guidance_rescale": self.guidance_rescale}

    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """The UNet's prediction; SD1 and SD2 know nothing of geometry."""
        unet = self.parts["unet"]
        dtype = next(unet.parameters()).dtype
        return unet(latents.to(dtype), timestep, conditioning["text"].to(dtype)).sample

    @property
    def traits(self) -> FileTraits:
        return self.file_traits[self.schedule.prediction]

    def probe_inputs(self) -> ProbeInputs:
        """Square images of the native size, at timesteps 150 and 700."""
        unet: UNet2DConditionModel = self.parts["unet"]
        shape = (2, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        latents = torch.randn(shape, generator=generator("probe"))
        side = float(self.native_side)
        geometry = torch.tensor([[side, side, 0, 0, side, side]] * 2)
        return ProbeInputs(latents, torch.tensor([150, 700]), geometry)

    @classmethod
    def miniature(cls) -> Miniature:
        """One block down and one up, 64 channels, with the layers that adapters and quantisers change."""
        from diffusers import UNet2DConditionModel

        types = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
        blocks = {"mid_block_type": None, "block_out_channels": (64,), "layers_per_block": 1}
        sizes = {"sample_size": 8, "attention_head_dim": 2, "cross_attention_dim": 64, "norm_num_groups": 8}
        unet = random_network(UNet2DConditionModel, **types, **blocks, **sizes)

        def predict(device: torch.device, dtype: torch.dtype) -> Tensor:
            latents, text = self_test_inputs(((2, 4, 8, 8), (2, 7, 64)), device, dtype)
            return unet(latents, torch.tensor([100, 700], device=device), text).sample

        return Miniature(unet, ATTENTION + FEED_FORWARD[:2], predict)

    def canonical_path(self, part: str, path: str) -> str:
        """transformers 5 dropped `text_model.` from CLIPTextModel's paths; every file and UI has it."""
        of_model = path.split(".")[0] in ("embeddings", "encoder", "final_layer_norm")
        return f"text_model.{path}" if part.startswith("text_encoder") and of_model else path

    def ui_name(self, part: str, path: str) -> str:
        """kohya's spelling: the path with underscores, behind the part's prefix."""
        blocks: int = self.parts[self.denoiser].config.layers_per_block  # type: ignore[union-attr, assignment]
        return self.layout.name(LayerPlace(part, path), layers_per_block=blocks)

    def original_tensors(self) -> dict[str, Tensor]:
        """With a mark that says what it predicts, if published files of its kind predict another thing."""
        found = original_tensors(self.kind, self.parts)
        if self.schedule.prediction == "v_prediction" and self.kind.marks_prediction:
            found["v_pred"] = torch.tensor([])
            if self.scheduler.get("rescale_betas_zero_snr"):
                found["ztsnr"] = torch.tensor([])
        return found

    def companions(self, layers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """For A1111 all projections of a text encoder's attention, for InvokeAI one of cross-attention."""
        found: dict[tuple[str, str], None] = {}
        for part, path in layers:
            stem, attention, _ = path.rpartition("self_attn.")
            if attention and part != self.denoiser:
                found |= dict.fromkeys((part, stem + attention + name) for name in TEXT_LAYERS[:4])
        if not any(path.endswith(("attn2.to_k", "attn2.to_v")) for _, path in layers):
            paths = (path for path, _ in self.parts[self.denoiser].named_modules())
            found[self.denoiser, next(path for path in paths if path.endswith("attn2.to_k"))] = None
        return [place for place in found if place not in set(layers)]

    def pipeline(self) -> DiffusionPipeline:
        """A StableDiffusionPipeline over these parts, with DDIM, whose images depend on the seed alone."""
        from diffusers import StableDiffusionPipeline

        parts: dict[str, object] = {name: self.parts[name] for name in ("vae", "text_encoder", "unet")}
        parts |= {"tokenizer": self.tokenizers["tokenizer"], "scheduler": self.schedule.ddim()}
        unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **unused)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def encode_prompt(
        self, pipeline: DiffusionPipeline, prompt: str, negative_prompt: str, *, guided: bool
    ) -> dict[str, Tensor | list[Tensor]]:
        """By the pipeline's own `encode_prompt`, whose SDXL variant also gives the pooled ones."""
        found = pipeline.encode_prompt(
            prompt,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            negative_prompt=negative_prompt,
        )
        return dict(zip(PROMPT_TENSORS, found, strict=False))


class StableDiffusion15(StableDiffusion):
    """Projections by convolution; epsilon, or v in some fine-tuned ones."""

    card_version = "SD1"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        "epsilon": FileTraits("sd_v1", False, "stable-diffusion-v1/lora", "epsilon"),
        "v_prediction": FileTraits("sd_v1_v", False, "stable-diffusion-v1/lora", "v"),
    }
    kind: ClassVar[BaseKind] = SD1


class StableDiffusion2(StableDiffusion):
    """Linear projections, and OpenCLIP-H without its last layer for a text encoder."""

    card_version = "SD2"
    # UIs' word for one that predicts v is "768-v", whatever its size
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        "epsilon": FileTraits("sd_v2", True, "stable-diffusion-v2-512/lora", "epsilon"),
        "v_prediction": FileTraits("sd_v2_v", True, "stable-diffusion-v2-768-v/lora", "v"),
    }
    kind: ClassVar[BaseKind] = SD2
