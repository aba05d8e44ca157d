"""Captioning models of transformers: from a folder or the hub, safetensors only, and no code of theirs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lora_studio.data.captioners import CaptionResult, CaptionWriter, Settings, WriterOptions
from lora_studio.data.images.decode import load_image
from lora_studio.data.manifest import Record
from lora_studio.devices import default_precision, find_device
from lora_studio.errors import CaptionError, reason_of
from lora_studio.registry import did_you_mean

if TYPE_CHECKING:
    import torch
    from PIL import Image


# Candidates of the beam search: fewer invented details than greedy decoding, and no randomness.
BEAMS = 3


_LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)


class VisionLanguageModel(CaptionWriter):
    """A model and its processor; a kind of model says which classes, and what is asked."""

    uses: ClassVar[tuple[str, ...]] = ("model", "device", "prompt", "max_tokens")
    batch_size = 8
    model_type: ClassVar[str]  # as config.json calls it
    model_class: ClassVar[str]  # in transformers
    processor_class: ClassVar[str]
    default_model: ClassVar[str]
    default_max_tokens: ClassVar[int]

    @property
    def settings(self) -> Settings:
        named = {"model": model_name(self.model), "prompt": self.prompt}
        return {**named, "max_tokens": self.max_tokens, "beams": BEAMS}

    @property
    def model(self) -> str:
        return self.options.model or self.default_model

    @property
    def prompt(self) -> str:
        return self.options.prompt

    @property
    def max_tokens(self) -> int:
        return self.options.max_tokens or self.default_max_tokens

    @abstractmethod
    def inputs(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """What the model is given for RGB images."""

    def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
        """A caption for each image of one batch. Raises CaptionError if the memory does not suffice."""
        import torch

        model, processor = self._loaded
        inputs = self.inputs([load_image(record.path) for record in records])
        weight = next(model.parameters())
        moved = {
            name: tensor.to(weight.device, weight.dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in inputs.items()
        }
        try:
            with torch.inference_mode():
                ids = model.generate(
                    **moved, max_new_tokens=self.max_tokens, num_beams=BEAMS, do_sample=False
                )
        except torch.OutOfMemoryError:
            raise CaptionError(
                f"{len(records)} images at a time do not fit into the memory of {weight.device}; "
                f"give --batch-size {max(1, len(records) // 2)}, or --device cpu."
            ) from None
        return [CaptionResult(text.strip()) for text in processor.batch_decode(ids, skip_special_tokens=True)]

    @property
    def processor(self) -> Any:
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import transformers
        from safetensors import SafetensorError

        device = find_device(self.options.device)
        if device is None:
            raise CaptionError(
                f"--device {self.options.device!r} is not in this machine; use cpu, or leave it out."
            )
        self._check_kind()
        sources = {"pretrained_model_name_or_path": self.model, "trust_remote_code": False}
        try:
            processor = getattr(transformers, self.processor_class).from_pretrained(**sources)
            model, report = getattr(transformers, self.model_class).from_pretrained(
                self.model, dtype=default_precision(device), use_safetensors=True, output_loading_info=True
            )
        except (*_LOAD_ERRORS, SafetensorError) as error:
            raise self._unusable(error) from None
        parameters = {name for name, _ in model.named_parameters()}
        if missing := sorted(parameters & set(report["missing_keys"])):  # they would be random
            raise CaptionError(
                f"the model {self.model} lacks {len(missing)} of its weights, such as {missing[0]}; "
                "download it again."
            )
        model.generation_config.max_length = None  # else transformers warns that max_new_tokens wins
        return model.to(device).eval(), processor

    def _check_kind(self) -> None:
        """Refuse a model of another kind, which would be loaded as noise."""
        from transformers import PreTrainedConfig

        try:
            values, _ = PreTrainedConfig.get_config_dict(self.model)
        except (OSError, ValueError) as error:
            raise self._unusable(error) from None
        found = values.get("model_type")
        if found != self.model_type:
            raise CaptionError(
                f"the model {self.model} is of the kind {found}, and {self.name} needs {self.model_type}, "
                f"such as {self.default_model}."
            )
        if "auto_map" in values:  # the same name, but another implementation, which comes as code
            raise CaptionError(
                f"the model {self.model} wants to run code of its own, which is never done; "
                f"use a conversion such as {self.default_model}."
            )

    def _unusable(self, error: Exception) -> CaptionError:
        return CaptionError(
            f"the model {self.model} cannot be loaded ({reason_of(error)}); "
            "give --model a folder or hub id with safetensors."
        )


def model_name(model: str) -> str:
    """A hub id as it is; of a folder only its last name, because paths are private."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


class Blip(VisionLanguageModel):
    """One sentence; with a prompt it begins with these words."""

    name: ClassVar[str] = "blip"
    model_type: ClassVar[str] = "blip"
    model_class: ClassVar[str] = "BlipForConditionalGeneration"
    processor_class: ClassVar[str] = "BlipProcessor"
    default_model: ClassVar[str] = "Salesforce/blip-image-captioning-large"
    default_max_tokens: ClassVar[int] = 50

    def inputs(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """pixel_values [B, 3, 384, 384] and, with a prompt, its ids [B, L]."""
        words = {"text": [self.prompt] * len(images)} if self.prompt else {}
        return dict(self.processor(images=images, return_tensors="pt", **words))


TASKS = {
    "short": "<CAPTION>",
    "detailed": "<DETAILED_CAPTION>",
    "paragraph": "<MORE_DETAILED_CAPTION>",  # often beyond the 77 tokens of CLIP
}


class Florence(VisionLanguageModel):
    """The prompt is one of the lengths; the model knows no other questions about a whole image."""

    name: ClassVar[str] = "florence"
    model_type: ClassVar[str] = "florence2"
    model_class: ClassVar[str] = "Florence2ForConditionalGeneration"
    processor_class: ClassVar[str] = "Florence2Processor"
    default_model: ClassVar[str] = "florence-community/Florence-2-base"  # microsoft's own comes with code
    default_max_tokens: ClassVar[int] = 256

    def __init__(self, options: WriterOptions) -> None:
        super().__init__(options)
        if self.prompt not in TASKS:
            hint = did_you_mean(self.prompt, list(TASKS)) or ";"
            raise CaptionError(
                f"florence does not know --prompt {self.prompt!r}{hint} use one of {', '.join(TASKS)}."
            )

    @property
    def prompt(self) -> str:
        """short, detailed or paragraph."""
        return self.options.prompt or "detailed"

    def inputs(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """pixel_values [B, 3, 768, 768] and the ids of the question [B, L]."""
        texts = [TASKS[self.prompt]] * len(images)
        return dict(self.processor(images=images, text=texts, return_tensors="pt"))
