"""A diffusers folder: what it lists, what its parts' configurations and weights say, and its parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.families.configuration import (
    CONDITIONER,
    INDEXES,
    WORDS,
    contradiction,
    facts_of_shapes,
    fault_of,
    index_of,
    read_json,
    text_alone,
    tokenizer_fault,
)
from lora_studio.families.loading.shapes_only import shapes_only
from lora_studio.families.original.checkpoint import Checkpoint, open_checkpoint
from lora_studio.families.original.configurations import WHOLE, lacking_files
from lora_studio.families.original.names import TensorOrigin
from lora_studio.families.stored import StoredPart, StoredTensor, shapes_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

INDEX = INDEXES[0]
LIBRARIES = ("diffusers", "transformers")  # classes are taken from these two alone, never from the folder
TREE = "text_model."  # in front of the names of a CLIP's layers, as libraries' versions have it or not
HEADED = "model."  # likewise of a language model's, in a file of one with its head
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_)?model(\.fp16)?(?P<piece>-\d{5}-of-\d{5})?(\.fp16)?\.safetensors"
)
# A model of text and images -> what reads the text in it, which is all that is asked of it.
TEXT_ALONE = {
    "Qwen2_5_VLForConditionalGeneration": "Qwen2_5_VLTextModel",
    "Mistral3ForConditionalGeneration": "MistralModel",
    "PixtralProcessor": "PreTrainedTokenizerFast",
    **dict.fromkeys(("Qwen3VLModel", "Qwen3VLForConditionalGeneration"), "Qwen3VLTextModel"),
    "Qwen3ForCausalLM": "Qwen3Model",  # without its head
}
UNUSED = (
    *("feature_extractor", "safety_checker", "image_encoder", "watermarker"),
    *("guider", "image_processor"),
)
READERS = {WORDS: CONDITIONER}  # whose network is not called as the tokenizer is


@dataclass(frozen=True)
class BaseFolder:
    """A diffusers folder, which the user calls `model`; every method raises BaseModelError for its faults."""

    path: Path
    model: str

    @cached_property
    def parts(self) -> dict[str, tuple[str, str]]:
        return listed_parts(self.path)

    @cached_property
    def index(self) -> dict[str, Any]:
        """With the class that it was saved by: an editor of images can have the parts of a plain base."""
        return read_json(index_of(self.path))

    @property
    def is_distilled(self) -> bool | None:
        """As its pipeline is told, if it is."""
        said = self.index.get("is_distilled")
        return said if isinstance(said, bool) else None

    @property
    def present(self) -> list[str]:
        return [name for name in self.parts if (self.path / name).is_dir()]

    @cached_property
    def configurations(self) -> dict[str, dict[str, Any]]:
        """By part, also the scheduler's, checked by the shapes of its weights, which complete the UNet's."""
        found = {}
        for name in self.present:
            if not is_tokenizer(name):
                config = text_alone(read_json(self.path / name / config_name(name)))
                shapes = self._shapes(name)
                self._refuse(name, contradiction(name, config, shapes))
                found[name] = config if name != "unet" else facts_of_shapes(name, shapes) | config
        return found

    def check_complete(self, needs: tuple[str, ...]) -> None:
        """Raise BaseModelError that names every part that is not there."""
        lacking = [name for name in needs if name not in self.present]
        if lacking:
            raise BaseModelError(
                f"the base model {self.model} lacks the part(s) {', '.join(lacking)}, which are folders "
                f"beside {INDEX} that it lists; download the model again."
            )

    def network(self, name: str) -> nn.Module:
        """A part with shapes only."""
        return self._read(name, empty_network)

    def fill(self, name: str, part: nn.Module, dtype: torch.dtype | None) -> StoredPart:
        """Give a part its weights, on the CPU, from safetensors; what stays in its files' dtype is mapped.

        Without a dtype it is only looked where they lie.
        """
        return self._read(name, lambda loader, folder: fill_from_folder(part, folder, dtype))

    def tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        """Of CLIP's without its vocabulary the library makes one of two tokens, and says nothing."""
        folder = self.path / name
        if self.parts[name][1].startswith("CLIP") and (lacking := lacking_files(folder)):
            fault = f"it has no {' and no '.join(lacking)}, nor a {WHOLE}; download it again"
            raise self._unreadable(name, BaseModelError(fault))
        try:
            return self._read(
                name, lambda loader, place: loader.from_pretrained(place, local_files_only=True)
            )
        except BaseModelError:
            for file in sorted(folder.glob("*.json")):  # the library does not say which is damaged
                read_json(file)
            raise

    def _read(self, name: str, read: Callable[[Any, Path], Any]) -> Any:
        library, class_name = self.parts[name]
        try:
            return read(
                getattr(import_module(library), TEXT_ALONE.get(class_name, class_name)), self.path / name
            )
        except Exception as error:  # libraries meet a configuration that somebody made up with any error
            raise self._unreadable(name, error) from None

    def _unreadable(self, name: str, error: Exception) -> BaseModelError:
        what = f"the part {name} of the base model {self.model}"
        return BaseModelError(f"{what} cannot be loaded: {reason_of(error).removesuffix('.')}.")

    def check_configurations(self, needs: tuple[str, ...]) -> None:
        """Raise BaseModelError for one that is absurd, so that nothing is built from it."""
        for name in needs:
            if name in self.configurations:
                self._refuse(name, fault_of(name, self.configurations[name], self._shapes(name)))

    def check_tokenizers(
        self, tokenizers: Mapping[str, PreTrainedTokenizerBase], parts: Mapping[str, Any]
    ) -> None:
        """Raise BaseModelError for one whose tokens its text encoder cannot read."""
        for name, tokenizer in tokenizers.items():
            facts = parts[READERS.get(name, name.replace("tokenizer", "text_encoder"))].config
            places = getattr(facts, "max_position_embeddings", tokenizer.model_max_length)
            words = facts.target_vocab_size if name in READERS else facts.vocab_size
            fault = tokenizer_fault(tokenizer, words, places)
            self._refuse(name, fault)

    def _refuse(self, name: str, fault: str) -> None:
        if fault:
            raise BaseModelError(
                f"{name}/{config_name(name)} of the base model {self.model} {fault}; they belong to "
                "different models, or are damaged: download the model again."
            )

    def _shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Of every tensor in a part's safetensors files, of which only the headers are read, once."""
        if name not in self._read_shapes:
            try:
                files = [open_checkpoint(path) for path in weight_files(self.path / name)]
            except BaseModelError as error:
                raise self._unreadable(name, error) from None
            self._read_shapes[name] = {key: shape for file in files for key, shape in file.shapes.items()}
        return self._read_shapes[name]

    @cached_property
    def _read_shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        return {}


def listed_parts(folder: Path) -> dict[str, tuple[str, str]]:
    """Part -> (library, class) from a folder's index, without the parts that training has no use for."""
    listed = {name: _class_of(entry) for name, entry in read_json(index_of(folder)).items()}
    return {
        name: (str(entry[0]), str(entry[1]))
        for name, entry in listed.items()
        if len(entry) == 2 and entry[0] in LIBRARIES and name not in UNUSED
    }


def _class_of(entry: object) -> list[object]:
    """Library and class; a modular pipeline's have what they are loaded from beside them."""
    if not isinstance(entry, list):
        return []
    if len(entry) == 3 and isinstance(entry[2], dict) and entry[0] is None:  # saved before it was loaded
        hint = entry[2].get("type_hint")
        return hint if isinstance(hint, list) else []
    return entry[:2] if len(entry) == 3 and isinstance(entry[2], dict) else entry


def is_tokenizer(part: str) -> bool:
    return "tokenizer" in part


def config_name(part: str) -> str:
    if part == "scheduler":
        return "scheduler_config.json"
    return "tokenizer_config.json" if is_tokenizer(part) else "config.json"


def is_half(name: str) -> bool:
    """Whether a file's name says that it holds a part in half precision."""
    return ".fp16" in name


def heavy_files(names: Iterable[str], *, half: bool = False) -> list[str]:
    """Of the names in a part's folder its weights: plain ones, or else those of fp16; `half`: these first.

    One file where there is one, else its pieces. Others that lie there (`non_ema`, other frameworks') are not
    the part's weights.
    """
    found = {name: match for name in sorted(names) if (match := WEIGHTS.fullmatch(name))}
    ours = [name for name in found if is_half(name) == half] or [*found]
    return [name for name in ours if not found[name]["piece"]] or ours


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a part's folder that are read."""
    return [folder / name for name in heavy_files(path.name for path in folder.glob("*.safetensors"))]


def fill_from_folder(part: nn.Module, folder: Path, dtype: torch.dtype | None) -> StoredPart:
    """Raises ValueError for weights that are missing or of another shape, OSError and BaseModelError."""
    files = [open_checkpoint(path) for path in weight_files(folder)]
    if not files:
        raise ValueError(f"there are no weights in {folder.name}, which are in safetensors files")
    stored = stored_part(part, {name: one for one in files for name in one.shapes})
    if dtype is not None:
        stored.fill(part, dtype, copies=False)
    return stored


def stored_part(part: nn.Module, files: Mapping[str, Checkpoint]) -> StoredPart:
    """Where the part's tensors lie, by the names that files have for them; ValueError if some are missing."""
    renamed = {name: name for name in files}
    if hasattr(part, "_fix_state_dict_keys_on_load"):  # diffusers' own memory of its older names
        part._fix_state_dict_keys_on_load(renamed)  # type: ignore[operator]
    found, tied = {}, getattr(part, "_tied_weights_keys", None) or {}  # which files hold once
    for name, shape in shapes_of(part).items():
        spelled = _spelled(name) + (_spelled(tied[name]) if name in tied else ())
        stored = next((renamed[one] for one in spelled if one in renamed), None)
        if stored is not None:
            found[name] = StoredTensor(files[stored], TensorOrigin(stored), shape)
    missing = sorted(shapes_of(part).keys() - found.keys())
    if missing:
        raise ValueError(f"its file lacks {len(missing)} tensors, first {missing[0]}")
    return StoredPart(found).checked()


def _spelled(name: str) -> tuple[str, ...]:
    """By libraries' versions, and with or without what a language model was published with."""
    bare = name.removeprefix(TREE), name.removeprefix(HEADED)
    before = (HEADED, f"{HEADED}language_model.", f"language_model.{HEADED}", "language_model.")
    return (name, f"{TREE}{name}", *bare, *(start + name for start in before))


def empty_network(loader: Any, folder: Path) -> nn.Module:
    """A network of shapes, as its configuration says; diffusers and transformers spell that differently.

    Its buffers, which no file holds, are real.
    """
    with shapes_only():
        if hasattr(loader, "load_config"):
            return loader.from_config(loader.load_config(folder, local_files_only=True))
        return loader(loader.config_class.from_pretrained(folder, local_files_only=True))
