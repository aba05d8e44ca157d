"""What all transformers of rectified flow share: a VAE that shifts and scales, and a frozen text side."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, ClassVar

import torch

from lora_studio.errors import BaseModelError
from lora_studio.families import vaes
from lora_studio.families.base import (
    PIPELINE,
    Conditioning,
    FileTraits,
    ModelFamily,
    Parts,
    ProbeInputs,
    Tokenizers,
    UsualSampling,
    innermost_blocks,
)
from lora_studio.families.flow_schedule import read_shift
from lora_studio.families.layer_names.transformers import TransformerLayout
from lora_studio.objectives.base import ObjectiveOptions
from lora_studio.objectives.flow_matching import FlowMatching, as_asked
from lora_studio.objectives.sigmas import FlowSchedule
from lora_studio.processes import to_device
from lora_studio.rng import generator

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

VELOCITY = "velocity"  # the one prediction that `file_traits` has an entry for
MASK = "mask"  # of the conditioning, [B, L]: which tokens are a caption's; they come first
PROBED_TOKENS = 32  # of an image's side, at most: 512 pixels of a published base
Configurations = Mapping[str, Mapping[str, object]]


class FlowTransformer(ModelFamily):
    """A transformer that predicts the velocity from image to noise; text encoders stay as they are.

    A family says the facts below, `encode_text` and `denoise`; the rest is here, and `encode_prompt` for a
    pipeline that takes masks. Its `denoise` is given sigma in 0..1 as the timestep, and gives back n - x0
    whatever its model's sign.
    """

    denoiser: ClassVar[str] = "transformer"
    staged: ClassVar[bool] = True
    has_distilled: ClassVar[bool] = True

    network: ClassVar[str]  # the class of its transformer in diffusers
    # Class of a transformer that is none of it, or of a pipeline for another task -> what it is.
    relatives: ClassVar[Mapping[str, str]] = {}
    pipeline_class: ClassVar[str]  # in diffusers
    max_tokens: ClassVar[int]  # of a caption, with what is put around it
    sampling: ClassVar[UsualSampling]  # of one that is not distilled
    few_steps: ClassVar[int]  # of one that is, without guidance
    patch: ClassVar[int] = 2  # latents that a side of a token has
    file_layout: ClassVar[TransformerLayout]  # how files name its layers

    def __init__(
        self, parts: Parts, tokenizers: Tokenizers, *, source: str, scheduler: Mapping[str, object]
    ) -> None:
        super().__init__(parts, tokenizers, source=source, scheduler=scheduler)
        self.shift = read_shift(scheduler)
        around = self.tokens_around()
        for tokenizer in self.caption_tokenizers.values():
            tokenizer.model_max_length = self.max_tokens - around

    def tokens_around(self) -> int:
        """How many of `max_tokens` are put around every caption, beside the tokenizer's own marks."""
        return 0

    @classmethod
    def recognises(cls, configurations: dict[str, dict[str, object]]) -> bool:
        return _class_of(configurations) == cls.network

    @classmethod
    def refusal(cls, configurations: Configurations) -> str:
        """Of its relatives, which have another class of transformer or take more, by name."""
        name = _class_of(configurations)
        for known in (name, str(configurations.get(PIPELINE, {}).get("_class_name", ""))):
            if what := cls.relatives.get(known):
                return f"it is {what} ({known}); only plain text-to-image bases of its kind are supported"
        if name != cls.network:
            return ""
        if control := next((part for part in configurations if part.startswith("controlnet")), ""):
            return f"it has a {control}; train on the base that it controls"
        return cls.refusal_of(configurations["transformer"], configurations)

    @classmethod
    def refusal_of(cls, transformer: Mapping[str, object], configurations: Configurations) -> str:
        """Why a base with its class of transformer cannot be trained; empty if it can."""
        return ""

    @property
    def usual_sampling(self) -> UsualSampling:
        return UsualSampling(self.few_steps, 1.0) if self.distilled else self.sampling

    @property
    def native_side(self) -> int:
        """1024 for published bases, by their VAE's configuration."""
        return vaes.native_side(self.parts["vae"].config)  # type: ignore[arg-type]

    @property
    def pixels_per_latent(self) -> int:
        """8 for published bases."""
        return vaes.pixels_per_latent(self.parts["vae"].config)  # type: ignore[arg-type]

    @property
    def stride(self) -> int:
        """The side of an image's token: 16 for published bases."""
        return self.pixels_per_latent * self.patch

    @property
    def latent_channels(self) -> int:
        return vaes.latent_channels(self.parts["vae"].config)  # type: ignore[arg-type]

    def quantised_paths(self) -> list[str]:
        """All linear layers within blocks; the embedders, the last layer and the norms keep their digits."""
        denoiser = self.parts[self.denoiser]
        starts = set(innermost_blocks(denoiser))
        blocks = tuple(f"{path}." for path, module in denoiser.named_modules() if module in starts)
        layers = denoiser.named_modules()
        return [path for path, layer in layers if type(layer) is torch.nn.Linear and path.startswith(blocks)]

    @property
    def traits(self) -> FileTraits:
        return self.file_traits[VELOCITY]

    def objective(self, options: ObjectiveOptions) -> FlowMatching:
        """Logit-normal sigmas, shifted as the base's scheduler says, unless the recipe has others."""
        schedule = as_asked(FlowSchedule(shift=self.shift, patch=self.patch), options)
        return FlowMatching(schedule=schedule, **asdict(options))

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in -1..1 -> mean and standard deviation of the shifted and scaled latents."""
        return vaes.encode(self.parts["vae"], pixels)

    def join(self, rows: Sequence[Conditioning], empty: Conditioning) -> Conditioning:
        """Shorter ones end in zeros, which their masks leave out."""
        return {name: joined([row[name] for row in rows]) for name in rows[0]}

    def probe_inputs(self) -> ProbeInputs:
        """Square images of the native size, at most 512 pixels, at sigmas 0.15 and 0.7."""
        side = min(self.native_side, PROBED_TOKENS * self.stride)
        latent = side // self.pixels_per_latent
        latents = torch.randn((2, self.latent_channels, latent, latent), generator=generator("probe"))
        geometry = torch.tensor([[float(side), float(side), 0, 0, float(side), float(side)]] * 2)
        return ProbeInputs(latents, torch.tensor([0.15, 0.7]), geometry)

    def canonical_path(self, part: str, path: str) -> str:
        return path

    def ui_name(self, part: str, path: str) -> str:
        return f"{part}.{path}"  # as `file_layout` has it: what a file's layer may be a part of

    def original_tensors(self) -> dict[str, Tensor]:
        raise BaseModelError(
            "a base of this kind cannot be written as a single file yet; export the LoRA, which UIs load."
        )

    def pipeline_options(self) -> dict[str, object]:
        """What else its pipeline is made with."""
        return {}

    def pipeline(self) -> DiffusionPipeline:
        """diffusers' own for this kind of base, over these parts, with the base's own scheduler."""
        import diffusers
        from diffusers import FlowMatchEulerDiscreteScheduler

        made = getattr(diffusers, self.pipeline_class)(
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(self.scheduler),
            **self.pipeline_options(),
            **self.parts,
            **self.tokenizers,
        )
        made.set_progress_bar_config(disable=True)
        return made

    def encode_prompt(
        self, pipeline: DiffusionPipeline, prompt: str, negative_prompt: str, *, guided: bool
    ) -> dict[str, Tensor | list[Tensor]]:
        """As `encode_text` has captions, with their masks, for a pipeline that takes both.

        The two are as long: of some the length of the first counts for both.
        """
        texts = [prompt, *[negative_prompt] * guided]
        encoded = self.encode_text(texts)
        found: dict[str, Tensor | list[Tensor]] = {}
        for row, start in enumerate(("", "negative_")[: len(texts)]):
            found[f"{start}prompt_embeds"] = encoded["text"][row : row + 1]
            found[f"{start}prompt_embeds_mask"] = encoded[MASK][row : row + 1]
        return found

    @abstractmethod
    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """Named tensors, batch first, of the captions' own tokens, with their `MASK` where lengths differ."""


def _class_of(configurations: Configurations) -> str:
    return str(configurations.get("transformer", {}).get("_class_name", ""))


def in_all_but_last(blocks: int, endings: Sequence[str]) -> tuple[str, ...]:
    """Paths of layers that nothing reads in the last of so many `transformer_blocks`, in all the others."""
    return tuple(f"transformer_blocks.{number}.{one}" for number in range(blocks - 1) for one in endings)


def width_fault(given: object, taken: object) -> str:
    """Where a text encoder's states are not as wide as what a transformer takes; None is not known."""
    if given is None or taken is None or given == taken:
        return ""
    what = f"its text encoder gives {given} numbers a token, but its transformer takes {taken}"
    return f"{what}: they are parts of different models"


def joined(rows: Sequence[Tensor]) -> Tensor:
    """Each [1, ...] -> [B, ...], with zeros behind those that are shorter in their second side."""
    if len({row.shape for row in rows}) == 1:
        return torch.cat(list(rows))
    longest = max(row.shape[1] for row in rows)
    full = rows[0].new_zeros(len(rows), longest, *rows[0].shape[2:])
    for place, row in enumerate(rows):
        full[place, : row.shape[1]] = row[0]
    return full


def has_numbers(mask: Tensor) -> bool:
    """False of shapes only and of what is simulated, where a caption is as long as its tensor."""
    return type(mask) is torch.Tensor and not mask.is_meta


def padding_mask(conditioning: Conditioning, device: torch.device) -> Tensor | None:
    """[B, L] on the device, true of the captions' own tokens; None if no caption is padded."""
    mask = conditioning[MASK]
    return to_device(mask.bool(), device) if has_numbers(mask) and not mask.all() else None


def own_tokens(states: Tensor, mask: Tensor) -> list[Tensor]:
    """[B, L, D] and [B, L] -> each caption's own tokens, which come first: [n, D]."""
    if not has_numbers(mask):
        return list(states)
    return [row[:length] for row, length in zip(states, mask.sum(dim=1).tolist(), strict=True)]
