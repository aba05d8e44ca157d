"""Captioning models of transformers: from a folder or the hub, safetensors only, and no code of theirs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from lora_studio.data.captioners import CaptionResult, CaptionWriter, Settings, WriterOptions
from lora_studio.data.images.decode import load_image
from lora_studio.data.manifest import Record
from lora_studio.errors import CaptionError, reason_of
from lora_studio.files import expanded
from lora_studio.processes import default_precision, find_device
from lora_studio.quiet import without_loading_bars
from lora_studio.registry import did_you_mean

if TYPE_CHECKING:
    import torch
    from PIL import Image

# Candidates of the beam search: fewer invented details than greedy decoding, and no randomness.
BEAMS = 3
TASKS = {"short": "<CAPTION>", "detailed": "<DETAILED_CAPTION>"}  # Florence's
TASKS["paragraph"] = "<MORE_DETAILED_CAPTION>"  # often beyond the 77 tokens of CLIP
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)


class VisionLanguageModel(CaptionWriter):
    """A model and its processor; a kind of model says which classes, and what is asked."""

    uses: ClassVar[tuple[str, ...]] = ("model", "device", "prompt", "max_tokens")
    batch_size = 8
    model_type: ClassVar[str]  # as config.json calls it
    model_class: ClassVar[str]  # in transformers
    processor_class: ClassVar[str]
    default_model: ClassVar[str]
    default_prompt: ClassVar[str] = ""
    default_max_tokens: ClassVar[int]

    def __init__(self, options: WriterOptions) -> None:
        super().__init__(options)
        self.model = options.model or self.default_model
        self.prompt = options.prompt or self.default_prompt
        self.max_tokens = options.max_tokens or self.default_max_tokens

    @property
    def settings(self) -> Settings:
        named = {"model": model_name(self.model), "prompt": self.prompt}
        return {**named, "max_tokens": self.max_tokens, "beams": BEAMS}

    @abstractmethod
    def inputs(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """What the model is given for RGB images."""

    def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
        """A caption for each image of one batch. Raises CaptionError if the memory does not suffice."""
        import torch

        model, processor = self._loaded
        inputs = self.inputs([load_image(record.path) for record in records])
        weight = next(model.parameters())
        for name, tensor in inputs.items():
            dtype = weight.dtype if tensor.is_floating_point() else tensor.dtype
            inputs[name] = tensor.to(weight.device, dtype)
        limits = {"max_new_tokens": self.max_tokens, "num_beams": BEAMS, "do_sample": False}
        try:
            with torch.inference_mode():
                ids = model.generate(**inputs, **limits)
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
            given = f"--device {self.options.device!r}"
            raise CaptionError(f"{given} is not in this machine; use cpu, or leave it out.")
        self._check_kind()
        load_processor = getattr(transformers, self.processor_class).from_pretrained
        load_model = getattr(transformers, self.model_class).from_pretrained
        options = {"dtype": default_precision(device), "use_safetensors": True, "output_loading_info": True}
        try:
            processor = load_processor(self.model, trust_remote_code=False)
            with without_loading_bars():
                model, report = load_model(self.model, **options)
        except (*_LOAD_ERRORS, SafetensorError) as error:
            raise self._unusable(error) from None
        parameters = {name for name, _ in model.named_parameters()}
        if missing := sorted(parameters & set(report["missing_keys"])):  # they would be random
            lacks = f"lacks {len(missing)} of its weights, such as {missing[0]}"
            raise CaptionError(f"the model {self.model} {lacks}; download it again.")
        model.generation_config.max_length = None  # else transformers warns that max_new_tokens wins
        return model.to(device).eval(), processor

    def _check_kind(self) -> None:
        """Refuse a model of another kind, which would be loaded as noise."""
        from transformers import PreTrainedConfig

        try:
            values, _ = PreTrainedConfig.get_config_dict(self.model)
        except (OSError, ValueError) as error:
            raise self._unusable(error) from None
        if (found := values.get("model_type")) != self.model_type:
            needed = f"{self.name} needs {self.model_type}, such as {self.default_model}"
            raise CaptionError(f"the model {self.model} is of the kind {found}, and {needed}.")
        if "auto_map" in values:  # the same name, but another implementation, which comes as code
            advice = f"which is never done; use a conversion such as {self.default_model}"
            raise CaptionError(f"the model {self.model} wants to run code of its own, {advice}.")

    def _unusable(self, error: Exception) -> CaptionError:
        return CaptionError(
            f"the model {self.model} cannot be loaded ({reason_of(error)}); "
            "give --model a folder or hub id with safetensors."
        )


def model_name(model: str) -> str:
    """A hub id as it is; of a folder only its last name, because paths are private."""
    path = expanded(model)
    return path.resolve().name if path.is_dir() else model


class Blip(VisionLanguageModel):
    """One sentence; with a prompt it begins with these words."""

    name = model_type = "blip"
    model_class, processor_class = "BlipForConditionalGeneration", "BlipProcessor"
    default_model = "Salesforce/blip-image-captioning-large"
    default_max_tokens = 50

    def inputs(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """pixel_values [B, 3, 384, 384] and, with a prompt, its ids [B, L]."""
        words = {"text": [self.prompt] * len(images)} if self.prompt else {}
        return dict(self.processor(images=images, return_tensors="pt", **words))


class Florence(VisionLanguageModel):
    """The prompt is one of the lengths; the model knows no other questions about a whole image."""

    name, model_type = "florence", "florence2"
    model_class, processor_class = "Florence2ForConditionalGeneration", "Florence2Processor"
    default_model = "florence-community/Florence-2-base"  # microsoft's own comes with code
    default_prompt, default_max_tokens = "detailed", 256

    def __init__(self, options: WriterOptions) -> None:
        super().__init__(options)
        if self.prompt not in TASKS:
            hint = did_you_mean(self.prompt, list(TASKS)) or ";"
            given = f"--prompt {self.prompt!r}{hint}"
            raise CaptionError(f"florence does not know {given} use one of {', '.join(TASKS)}.")

    def inputs(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """pixel_values [B, 3, 768, 768] and the ids of the question [B, L]."""
        questions = [TASKS[self.prompt]] * len(images)
        return dict(self.processor(images=images, text=questions, return_tensors="pt"))
