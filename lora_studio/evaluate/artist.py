"""Images of a family for an evaluation: how they are drawn, and what they depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL.Image import Image

from lora_studio.evaluate.previews import Noise, draw_asked, keep, sampling_of
from lora_studio.evaluate.result import Question, Size
from lora_studio.families.base import ModelFamily
from lora_studio.recipe.training import SamplesConfig
from lora_studio.rng import key

FEWEST_STEPS, STEPS_SHARE = 12, 0.6
"""Of a preview's denoising steps as many are enough to compare: what an image shows and how is settled early.
A base that takes fewer in any case, as distilled ones do, keeps them."""


@dataclass(frozen=True)
class Brush:
    """A family with all that its images depend on, but what was learned, the prompt and the seed.

    `base`: its `drawing_fingerprint`, taken before anything was added to it.
    """

    family: ModelFamily
    config: SamplesConfig
    side: int  # pixels
    base: str

    @classmethod
    def like_previews(cls, family: ModelFamily, samples: SamplesConfig, side: int, base: str) -> Brush:
        """As previews are drawn, with fewer steps."""
        steps, guidance = sampling_of(family, samples)
        fewer = min(steps, max(FEWEST_STEPS, round(STEPS_SHARE * steps)))
        return cls(family, samples.model_copy(update={"steps": fewer, "guidance": guidance}), side, base)

    @property
    def drawn_with(self) -> Mapping[str, str | int | float]:
        """What an evaluation's images of the base are kept by."""
        scheduler, steps = self.family.pipeline().scheduler, sampling_of(self.family, self.config)
        told: dict[str, str | int | float] = {
            "base": self.base,
            "precision": str(self.family.precision).removeprefix("torch."),
            "sampler": type(scheduler).__name__,
            "steps": steps.steps,
            "guidance": steps.guidance,
            "side": self.side,
            "device": self.family.device.type,
        }
        return told | ({"negative": self.config.negative_prompt} if self.config.negative_prompt else {})

    def keep_texts(self, questions: Sequence[Question]) -> None:
        """Of a staged family: encode all prompts at once, so that its text encoders need not come again."""
        guided = sampling_of(self.family, self.config).guidance > 1
        keep(self.family, [(one.prompt, self.config.negative_prompt, guided) for one in questions])

    def draw(self, asked: Sequence[tuple[str, int]], size: Size | None = None) -> list[Image]:
        """From the parts as they are now. The noise is keyed by prompt and seed: no two prompts share it."""
        noises = [(prompt, Noise(seed, key("evaluation", prompt))) for prompt, seed in asked]
        return draw_asked(self.family, noises, self.config, size=size or (self.side, self.side))
