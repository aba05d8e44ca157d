"""What each UI makes of a file: a table of what can be the matter with it, and who does what then.

What they do was observed by running the loaders' own code on files of each sort; nothing here is taken from
what writes our files.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial

from lora_studio.families.layer_names import DENOISER_TITLE

UIS = COMFYUI, A1111, FORGE, INVOKEAI, CPP, DIFFUSERS, KOHYA = (
    *("ComfyUI", "A1111", "Forge", "InvokeAI"),
    *("stable-diffusion.cpp", "diffusers", "kohya"),
)


class Loss(Enum):
    """What a UI's behaviour costs."""

    NONE = "nothing is lost"
    LAYERS = "the layers are lost"
    WRONG = "the layers are there, but not as they were trained"
    FILE = "the file is lost"
    UNKNOWN = "not tried"


@dataclass(frozen=True)
class LoaderResult:
    """What one UI does about one thing."""

    loss: Loss
    words: str


Row = dict[str, LoaderResult]


def _say(loss: Loss, words: str, *uis: str) -> Row:
    return dict.fromkeys(uis or UIS, LoaderResult(loss, words))


_noted, _lost, _wrong, _nothing = (partial(_say, one) for one in list(Loss)[:4])
_unknown = partial(_say, Loss.UNKNOWN)
_DROPPED = (
    _lost("dropped with a warning", COMFYUI, INVOKEAI)
    | _lost("dropped without a word", A1111, KOHYA)
    | _lost("dropped", FORGE, DIFFUSERS)
    | _lost("counted as unused and dropped", CPP)
)

# what is the matter -> (in words, UI -> what it does); UIs that do not mind are left out
TABLE: dict[str, tuple[str, Row]] = {
    "not_finite": ("{layers} not finite, first {first}", _nothing("the images are black or noise")),
    "zero": ("{layers} all zero", _lost("they do nothing")),
    "unfit": ("{layers} of shapes that do not fit {base}, first {first}", _lost("it cannot be applied")),
    "unknown_name": ("{layers} named like none of {base}, first {first}", _DROPPED),
    "module_path": (
        "{layers} named after a module's path without text_model, which no UI knows, first {first}",
        _DROPPED,
    ),
    "many_unknown": (
        "more than 12 keys are unknown",
        _nothing("it refuses the file", FORGE) | _nothing("it stops with an error", DIFFUSERS),
    ),
    "incomplete": (
        "{layers} without lora_up, lora_down or another half, first {first}",
        _lost("dropped", COMFYUI, FORGE, CPP)
        | _lost("dropped without a word", KOHYA)
        | _nothing("it stops with an error", A1111, INVOKEAI, DIFFUSERS),
    ),
    "extra": (
        "{keys} of no layer, first {first}",
        _noted("it warns", COMFYUI)
        | _noted("ignored", A1111, FORGE, KOHYA)
        | _noted("counted as unused", CPP)
        | _nothing("it refuses the file", INVOKEAI, DIFFUSERS),
    ),
    "bundled": (
        "embeddings are bundled with it",
        _wrong("it warns and leaves them out", COMFYUI)
        | _wrong("left out", FORGE, INVOKEAI, CPP, KOHYA)
        | _nothing("it refuses the file", DIFFUSERS),
    ),
    "no_alpha": ("{layers} without alpha, first {first}", _noted("read as alpha = rank, a scale of 1")),
    "alpha_shape": (
        "{layers} with an alpha that has a dimension, first {first}",
        _nothing("it stops with an error", KOHYA),
    ),
    "alpha_zero": (
        "{layers} with alpha 0, first {first}",
        _lost("they are off") | _wrong("read as alpha = rank", KOHYA),
    ),
    "dimensions": (
        "{layers} as a convolution where {base} has a linear layer, or the reverse, first {first}",
        _nothing("it stops with an error", DIFFUSERS, KOHYA),
    ),
    "part_of_attention": (
        "{layers} of a text encoder's attention without the others of q, k, v and out",
        _lost("dropped in part", CPP) | _nothing("it stops with an error", DIFFUSERS),
    ),
    "part_of_joined": (
        "{layers} of a text encoder's attention without the others of q, k, v and out",
        _lost("dropped without a word, as it needs all four", A1111),
    ),
    "attention_unused": ("{layers} of the text encoder's attention", _lost("it has no use for them", CPP)),
    "encoder_alone": ("only text encoders in it", _nothing("it does not recognise the file", INVOKEAI)),
    "no_cross": (
        "no cross-attention to_k or to_v in it",
        _nothing("it cannot tell the base, or takes it for another", INVOKEAI),
    ),
    "other_prefix": (
        "{layers} of the text encoder as of a first of two, first {first}",
        _lost("dropped without a word", INVOKEAI, KOHYA),
    ),
    "other_prefix_joined": ("{layers} of the text encoder as of a first of two", _lost("dropped", A1111)),
    "other_prefix_of_two": (
        "{layers} of the first text encoder as of an only one, first {first}",
        _lost("dropped", A1111, DIFFUSERS, KOHYA) | _nothing("it stops with an error", INVOKEAI),
    ),
    "original_names": (
        f"{{layers}} of the {DENOISER_TITLE} by the original checkpoint's names, not diffusers', "
        "first {first}",
        _lost("dropped", INVOKEAI, KOHYA) | _nothing("it stops with an error", DIFFUSERS),
    ),
    "diffusers_upsampler": (
        "{layers}, an upsampler's convolution, by diffusers' name",
        _lost("dropped", A1111),
    ),
    "mixed_names": (
        "{layers} by diffusers' and others by the original checkpoint's names",
        _nothing("it stops with an error", INVOKEAI)
        | _lost("one half dropped without a word", DIFFUSERS)
        | _unknown("not tried", CPP),
    ),
    "outside": (
        "{layers} among the first and last convolution and the embeddings of time",
        _lost("dropped", CPP, KOHYA),
    ),
    "peft": (
        "PEFT's names (<part>.<path>.lora_A.weight)",
        _wrong("all but the attention", COMFYUI)
        | _nothing("it loads nothing and says nothing", A1111)
        | _nothing("it refuses the file", FORGE)
        | _nothing("it stops with an error", INVOKEAI)
        | _wrong("only some layers", CPP)
        | _nothing("it loads nothing", KOHYA),
    ),
    "peft_among": (
        "{layers} by PEFT's names among others, first {first}",
        _lost("dropped without a word", A1111, KOHYA)
        | _lost("dropped", COMFYUI, FORGE, CPP)
        | _nothing("it refuses the file", INVOKEAI, DIFFUSERS),
    ),
    "peft_alpha": (
        "{layers} by PEFT's names with an alpha that is not the rank",
        _wrong("alpha is not noticed, so the strength is another", DIFFUSERS),
    ),
    "adapter_metadata": ("lora_adapter_metadata beside alphas", _nothing("it loads nothing", DIFFUSERS)),
    "lettered": (
        "{layers} with lora_A and lora_B for lora_down and lora_up",
        _nothing("it stops with an error", INVOKEAI, DIFFUSERS) | _lost("it reads nothing of them", KOHYA),
    ),
    "loha_lokr": (
        "{layers} of LoHa or LoKr",
        _nothing("it stops with an error", DIFFUSERS) | _lost("it reads nothing of them", KOHYA),
    ),
    "lokr_unidentified": ("LoKr of this base", _nothing("it does not identify the file", INVOKEAI)),
    "dora_inputs": (
        "{layers} with a dora_scale",
        _wrong("dora_scale is dropped, so the change is another", CPP, DIFFUSERS, KOHYA),
    ),
    "dora_outputs": (
        "{layers} with a dora_scale along the outputs",
        _wrong("about 2.5 % off", COMFYUI, FORGE)
        | _nothing("it reads garbage without a word", A1111, INVOKEAI)
        | _wrong("dora_scale is dropped, so the change is another", CPP, DIFFUSERS, KOHYA),
    ),
    "untried": ("{layers} of a kind that was not tried ({first})", _unknown("not tried")),
    "no_metadata": ("no metadata", _noted('shown with the version "Unknown"', A1111)),
    "another_version": (
        "its metadata does not say that it is for {base}",
        _noted("its card may be hidden beside such a base", A1111),
    ),
    "long_header": ("a header of more than 1 MiB", _noted("its metadata cannot be viewed", COMFYUI)),
    "embedding_keys": (
        "keys or widths that are not those of an embedding of any base",
        _nothing("it is not recognised", COMFYUI, A1111, INVOKEAI),
    ),
    "embedding_untried": (
        "an embedding",
        _unknown("not tried", FORGE, CPP, DIFFUSERS, KOHYA),
    ),
    "nothing": ("no layer of a LoRA in it", _nothing("there is nothing to load")),
}
GAPS = frozenset({"attention_unused"})
"""What a UI cannot do with any file for the base: no fault of the file."""
