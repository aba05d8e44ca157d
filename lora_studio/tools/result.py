"""Results as files: in a given dtype, and never over anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lora_studio.adapters.layer import Factors
from lora_studio.errors import ExportMismatch, StudioError
from lora_studio.families.base import FileTraits
from lora_studio.families.layer_names.spellings import LayerPlace
from lora_studio.families.layer_names.transformers import TransformerLayout
from lora_studio.files import check_ending, say_unwritable
from lora_studio.lora_file.factors import PlainLora, balanced, energy
from lora_studio.lora_file.forms import LayerSizes, spell_form
from lora_studio.lora_file.lora_file import LoraFile
from lora_studio.lora_file.rounding import Rounding
from lora_studio.lora_file.write import DTYPES, write_described
from lora_studio.metadata import key_table
from lora_studio.metadata.write import base_keys, hashes
from lora_studio.version import __version__


def check_output(
    path: Path,
    *,
    force: bool,
    inputs: Sequence[Path] = (),
    ending: str = ".safetensors",
    option: str = "-o",
) -> None:
    """Raise StudioError if writing there would replace something, or make what the name does not say.

    Inputs are never replaced. `ending` is the file's, "" that of a folder.
    """
    check_ending(path, ending, option)
    if any(path.exists() and one.exists() and path.samefile(one) for one in inputs):
        raise StudioError(f"{path} is what is read; give another path with {option}.")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise StudioError(f"{path} is a pipe or a device; give another path with {option}.")
    if path.is_dir() or (path.exists() and not force):
        advice = "" if path.is_dir() else ", or --force"
        raise StudioError(f"{path} is there already; give another path with {option}{advice}.")


class Result:
    """A LoRA file in the making: its layers, cast as they come, and what casting cost."""

    def __init__(
        self,
        dtype: str,
        alpha: float,
        layout: TransformerLayout | None = None,
        size_of: Callable[[str], tuple[int, int] | None] | None = None,
    ) -> None:
        """`alpha` of every layer; the scale that a layer's rank makes of it goes into its factors.

        `layout` is a transformer family's, in whose files alpha is the rank; `size_of` its layers' sizes.
        """
        if dtype not in DTYPES:
            raise StudioError(f"--dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
        self.dtype, self._dtype = DTYPES[dtype], dtype
        self._alpha = torch.tensor(alpha).to(self.dtype)  # as it can be written
        self._layout, self._size_of = layout, size_of
        self.tensors: dict[str, Tensor] = {}
        self.ranks: dict[str, int] = {}
        self.energy = 0.0  # the sum of squares of all changes
        self.rounding = Rounding(self.dtype)

    @property
    def alpha(self) -> float:
        return float(self._alpha.item() if self._layout is None else self.span[1])

    @property
    def span(self) -> tuple[int, int]:
        """The least and the largest rank."""
        return min(self.ranks.values()), max(self.ranks.values())

    def add(self, name: str, factors: Factors, shape: Sequence[int], *, squares: float | None = None) -> None:
        """A layer whose weight has this shape; `squares` is its energy, where that is known.

        Raises ExportMismatch if it does not fit into the dtype.
        """
        rank = len(factors.down)
        alpha = self.alpha if self._layout is None else rank
        scaled = balanced(Factors(factors.down, factors.up * (rank / alpha)))
        down, up = (one.to(self.dtype) for one in scaled)
        if not (down.isfinite().all() and up.isfinite().all()):
            raise ExportMismatch(f"{name} does not fit into {self._dtype}; give --dtype float32.")
        whole = energy(factors) if squares is None else squares
        self.rounding.add_factors(scaled, Factors(down, up), alpha / rank, whole)
        self.energy += whole
        self.ranks[name] = rank
        self.tensors[f"{name}.lora_down.weight"] = down.view(rank, *shape[1:])
        self.tensors[f"{name}.lora_up.weight"] = up.view(shape[0], rank, *(1 for _ in shape[2:]))
        if self._layout is None:
            self.tensors[f"{name}.alpha"] = self._alpha

    def write(self, path: Path, metadata: Mapping[str, str]) -> int:
        """Write it, with the hashes that UIs know it by; how many bytes it has.

        Raises StudioError, and writes nothing, if the dtype would leave nothing of it.
        """
        self.rounding.check_something()
        tensors = self.tensors if self._layout is None else self._formed(self._layout)
        with say_unwritable(path):
            write_described(path, tensors, lambda block: {**metadata, **hashes(block)})
        return path.stat().st_size

    def _formed(self, layout: TransformerLayout) -> dict[str, Tensor]:
        """In the form that every UI loads, which changes no digit."""
        plain = {}
        for name in self.ranks:
            down, up = (self.tensors[f"{name}.{end}"] for end in ("lora_down.weight", "lora_up.weight"))
            plain[LayerPlace(*name.split(".", 1))] = PlainLora(down, up, 1.0)
        sizes = {path: (len(one.up), one.down[0].numel()) for (_, path), one in plain.items()}
        size_of = self._size_of or LayerSizes(layout, sizes)
        tensors = spell_form(plain, layout, layout.best, size_of)
        return {key: one.to(self.dtype) for key, one in tensors.items()}


def metadata_of(files: Sequence[LoraFile], result: Result, path: Path, *, how: str) -> dict[str, str]:
    """Of a file made of others; `how` is what was done, in a few words."""
    metadata = {
        key: files[0].metadata[key]
        for key in key_table("shared")
        if all(key in file.metadata for file in files) and len({file.metadata[key] for file in files}) == 1
    }
    if triggers := list(dict.fromkeys(file.trigger for file in files if file.trigger)):
        metadata["modelspec.trigger_phrase"] = ", ".join(triggers)
        # tags, not sentences: the way A1111 and Forge learn the trigger
        metadata["ss_tag_frequency"] = json.dumps({"trigger": dict.fromkeys(triggers, 1)})
    titles = [file.metadata.get("modelspec.title") or file.path.stem for file in files]
    return metadata | _of_result(result, path, how) | {"modelspec.merged_from": ", ".join(titles)}


def metadata_of_base(traits: FileTraits, result: Result, path: Path, *, how: str) -> dict[str, str]:
    """Of a file that was made of whole bases."""
    return base_keys(traits) | _of_result(result, path, how)


def _of_result(result: Result, path: Path, how: str) -> dict[str, str]:
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(result.span[1]),
        "ss_network_alpha": f"{result.alpha:g}",
        "ss_network_args": "{}",
        "ss_output_name": path.stem,
        "ss_training_comment": how,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": path.stem,
        "lora_studio.version": __version__,
    }
