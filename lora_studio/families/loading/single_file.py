"""A base from the one file in the original layout that UI users have: SD1.x, SD2.x or SDXL, offline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import BaseModelError, preview_names
from lora_studio.families.fingerprints import Stamp
from lora_studio.families.loading.shapes_only import shapes_only
from lora_studio.families.original import BaseKind, Shapes, detect
from lora_studio.families.original.checkpoint import Checkpoint, find_prediction, open_checkpoint
from lora_studio.families.original.configurations import configurations_of, tokenizers_for
from lora_studio.families.original.names import TensorOrigin, origins, sort_rest
from lora_studio.families.stored import StoredPart, sides, squeezed, stored_in
from lora_studio.text import plural

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase


_DISTILLED = re.compile(r"turbo|schnell|lightning|hyper|distill|klein|[-_.]\d+[-_]?steps?(?![a-z])", re.I)
_UNDONE = re.compile(r"de[-_. ]?(turbo|distill)|klein.*base|base.*klein", re.I)  # FLUX.2 klein-base-4B


def named_distilled(name: str) -> bool:
    """Whether a base's name says that it makes its images in a few steps."""
    return bool(_DISTILLED.search(name)) and not _UNDONE.search(name)


@dataclass(frozen=True)
class SingleFileOptions:
    """What the user says about a file that the file itself does not."""

    prediction_type: str = "auto"  # or "epsilon" or "v_prediction"; auto: as the file's hints say
    tokenizer: Path | None = None  # a folder; None: CLIP's vocabulary in the package
    allow_pickle: bool = False
    text_encoders: tuple[str, ...] = ()  # of a transformer alone: folders, files, or ids on the hub
    vae: str = ""  # likewise; loaded by whoever asks for another one
    distilled: bool | None = None  # of few steps; None: as its name says


@dataclass(frozen=True)
class Loaded:
    """A whole base in diffusers' words, as its diffusers folder would give it."""

    parts: dict[str, nn.Module]
    stored: dict[str, StoredPart]  # nothing without weights
    tokenizers: dict[str, PreTrainedTokenizerBase]
    configurations: dict[str, dict[str, Any]]  # by part, plus "scheduler"
    notes: tuple[str, ...]  # what the user should know: the kind, the prediction, what was left out
    stamps: Mapping[str, Mapping[Path, Stamp]] = field(default_factory=dict)  # of parts of other files


@dataclass(frozen=True)
class SingleFile:
    """A file whose header was found to be that of a whole base; its weights are not read yet."""

    checkpoint: Checkpoint
    kind: BaseKind
    configurations: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    options: SingleFileOptions

    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """Without its networks. Raises BaseModelError when the folder named for them does not hold them."""
        return tokenizers_for(self.kind, self.configurations, self.options.tokenizer)

    def load(self, *, weights: bool = True, dtype: torch.dtype | None = None, fill: bool = True) -> Loaded:
        """All parts on the CPU in `dtype`, by default and the VAE always in float32; or shapes only.

        Weights are mapped and copied tensor by tensor, so that no more than one whole copy is ever held.
        Raises BaseModelError that names what is missing or should not be there.
        """
        import torch

        tokenizers = self.tokenizers()
        names = ("unet", "vae", *(encoder.part for encoder in self.kind.text_encoders))
        parts = {name: empty_part(name, self.configurations[name]) for name in names}
        found = origins(self.kind, self.checkpoint.shapes, self.configurations)
        notes = _check(self, parts, found)
        placed = parts.items() if weights else ()
        stored = {name: stored_in(self.checkpoint, part, found[name]) for name, part in placed}
        # copies, as a file that changes on disk must not change the base
        for name, one in stored.items() if fill else ():
            wanted = dtype if dtype is not None and name != "vae" else torch.float32
            one.fill(parts[name], wanted, copies=True)
        return Loaded(parts, stored, tokenizers, self.configurations, (*self.notes, *notes))


def open_single_file(path: Path, options: SingleFileOptions | None = None) -> SingleFile:
    """Look at a checkpoint's header. Raises BaseModelError that says what a file is that is no whole base."""
    options = options or SingleFileOptions()
    checkpoint = open_checkpoint(path, allow_pickle=options.allow_pickle)
    kind = detect(path.name, checkpoint.shapes)
    prediction = find_prediction(kind, checkpoint, options.prediction_type)
    configurations = configurations_of(
        kind, checkpoint.shapes, prediction=prediction.type, zero_snr=prediction.zero_snr
    )
    predicted = "v" if prediction.type == "v_prediction" else prediction.type
    note = f"{kind.title}, predicts {predicted} ({prediction.source})"
    return SingleFile(checkpoint, kind, configurations, (note,), options)


def empty_part(name: str, values: dict[str, Any]) -> nn.Module:
    """A part with shapes only; its buffers, which no file holds, are real."""
    with shapes_only():
        return part_as_configured(name, values)


def part_as_configured(name: str, values: Mapping[str, Any]) -> nn.Module:
    """A part with the numbers that its class begins with."""
    import diffusers
    import transformers

    if "architectures" in values:
        loader = getattr(transformers, values["architectures"][0])
        return loader(loader.config_class(**values))
    loader = getattr(diffusers, values.get("_class_name", _CLASSES.get(name, "")))
    return loader.from_config(values)


_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}


def _check(
    file: SingleFile, parts: dict[str, nn.Module], found: dict[str, dict[str, TensorOrigin]]
) -> list[str]:
    """Every tensor of every part is there in its shape, and nothing else; the notes on what is left out."""
    shapes, name = file.checkpoint.shapes, file.checkpoint.path.name
    used: set[str] = set()
    for part, module in parts.items():
        wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        missing = [f"{part}.{key}" for key in wanted if key not in found[part]]
        if missing:
            raise BaseModelError(
                f"{name} lacks {_counted(missing, 'tensor')} of a {file.kind.title} base; download it again."
            )
        _check_shapes(name, part, wanted, found[part], shapes)
        used |= {found[part][key].name for key in wanted}
    averaged, harmless, unexpected = sort_rest(file.kind, shapes, used)
    if unexpected:
        raise BaseModelError(
            f"{name} holds {_counted(unexpected, 'tensor')} that no {file.kind.title} base has; "
            "it is of another kind, or damaged."
        )
    notes = [f"left out: {_counted(averaged, 'averaged (EMA) weight')}"] if averaged else []
    return notes + ([f"left out: {_counted(harmless, 'tensor')} not needed"] if harmless else [])


def _check_shapes(
    name: str, part: str, wanted: dict[str, tuple[int, ...]], found: dict[str, TensorOrigin], shapes: Shapes
) -> None:
    wrong = [
        f"{found[key].name} is {sides(found[key].shape(shapes))}, not {sides(shape)}"
        for key, shape in wanted.items()
        if squeezed(found[key].shape(shapes)) != squeezed(shape)
    ]
    if wrong:
        raise BaseModelError(f"{name} has {_counted(wrong, 'tensor')} of another size in its {part}.")


def _counted(names: Sequence[str], noun: str) -> str:
    """ "5 tensors (a, b, c and 2 more)"."""
    return f"{plural(len(names), noun)} ({preview_names(names)})"
