"""WD taggers (SmilingWolf's): tags of drawings, each with a probability, on ONNX Runtime."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lora_studio.data.captioners import CaptionResult, CaptionWriter, Settings, WriterOptions
from lora_studio.data.captioners.vision_language import model_name
from lora_studio.data.images.decode import load_image
from lora_studio.data.manifest import Record
from lora_studio.errors import CaptionError, reason_of
from lora_studio.files import expanded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


# Numbers in selected_tags.csv -> names, in the order in which they stand in a caption.
CATEGORIES = {9: "rating", 4: "character", 3: "copyright", 1: "artist", 0: "general", 5: "meta"}
THRESHOLDS = {"character": 0.85, "general": 0.35}  # the authors' own; a category without one is left out
MODEL, TABLE = "model.onnx", "selected_tags.csv"


@dataclass(frozen=True)
class Tag:
    words: str
    category: str


class Wd14(CaptionWriter):
    """Tags with commas between, the likeliest first within each category."""

    name = "wd14"
    uses = ("model", "device", "thresholds")
    batch_size = 4
    default_model: ClassVar[str] = "SmilingWolf/wd-vit-tagger-v3"

    def __init__(self, options: WriterOptions) -> None:
        super().__init__(options)
        if unknown := [name for name in options.thresholds if name not in CATEGORIES.values()]:
            known = ", ".join(CATEGORIES.values())
            raise CaptionError(f"wd14 has no tags of the category {unknown[0]!r}; known: {known}.")
        self.model = options.model or self.default_model
        self.thresholds = {**THRESHOLDS, **options.thresholds}

    @property
    def settings(self) -> Settings:
        return {"model": model_name(self.model), **self.thresholds}

    def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
        """Tags for each image. Raises CaptionError if the model or ONNX Runtime is missing."""
        import numpy as np

        session, tags = self._loaded
        (wanted,) = session.get_inputs()
        batch, side = wanted.shape[0], wanted.shape[1]
        pixels = np.stack([prepare(load_image(record.path), int(side)) for record in records])
        size = batch if isinstance(batch, int) else len(records)  # some files take one image at a time
        parts = [pixels[start : start + size] for start in range(0, len(records), size)]
        rows = np.concatenate([session.run(None, {wanted.name: part})[0] for part in parts])
        if rows.shape != (len(records), len(tags)):
            counts = f"{rows.shape[-1]} outputs, but its table {len(tags)} tags"
            raise CaptionError(f"the model {self.model} has {counts}; take both from the same place.")
        return [CaptionResult(", ".join(chosen_tags(row, tags, self.thresholds))) for row in rows]

    @cached_property
    def _loaded(self) -> tuple[Any, list[Tag]]:
        model, table = tagger_files(self.model)
        return open_session(model, self.options.device), read_tags(table)


def prepare(image: Image.Image, side: int) -> NDArray[np.float32]:
    """RGB -> [side, side, 3], blue first, 0 to 255, padded with white to a square: as they were trained."""
    import numpy as np
    from PIL import Image, ImageOps

    square = max(image.size)
    padded = ImageOps.pad(image, (square, square), color="white")
    resized = padded.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized, dtype=np.float32)[:, :, ::-1])


def chosen_tags(row: NDArray[np.float32], tags: Sequence[Tag], thresholds: Mapping[str, float]) -> list[str]:
    """The tags at or above the threshold of their category; of the ratings the likeliest alone."""
    chosen = []
    for category in (one for one in CATEGORIES.values() if one in thresholds):
        found = [(-float(row[i]), i) for i, tag in enumerate(tags) if tag.category == category]
        likely = [tags[i].words for minus, i in sorted(found) if -minus >= thresholds[category]]
        chosen += likely[:1] if category == "rating" else likely
    return chosen


def read_tags(table: Path) -> list[Tag]:
    """The tags of selected_tags.csv in the order of the outputs. Raises CaptionError if it is none."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            lines = [(line["name"], line["category"]) for line in csv.DictReader(file)]
            return [Tag(words_of(name), CATEGORIES.get(int(number), number)) for name, number in lines]
    except (OSError, KeyError, ValueError, TypeError) as error:
        reason = f"no table of tags with name and category ({error})"
        raise CaptionError(f"{table} is {reason}; download the model again.") from None


def words_of(tag: str) -> str:
    """ "long_hair" -> "long hair"; faces such as "^_^" and "o_o" stay."""
    return tag.replace("_", " ") if re.search(r"[^\W\d_]{2}", tag) else tag


def tagger_files(model: str) -> tuple[Path, Path]:
    """The model and its table of tags, from a folder or the hub. Raises CaptionError if one is missing."""
    folder = expanded(model)
    if folder.is_dir():
        if missing := [name for name in (MODEL, TABLE) if not (folder / name).is_file()]:
            raise CaptionError(f"the folder {model} holds no {' and no '.join(missing)}; wd14 needs both.")
        return folder / MODEL, folder / TABLE
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, MODEL)), Path(hf_hub_download(model, TABLE))
    except Exception as error:  # of which HTTP library it is depends on the version of the hub's own one
        advice = f"give --model a folder with {MODEL} and {TABLE}, or a hub id"
        raise CaptionError(f"the model {model} cannot be loaded ({reason_of(error)}); {advice}.") from None


def open_session(model: Path, device: str) -> Any:
    """A session on a GPU if ONNX Runtime has one, else on the CPU. Raises CaptionError if there is none."""
    try:
        import onnxruntime
    except ImportError:
        command = "pip install onnxruntime (or onnxruntime-gpu)"
        raise CaptionError(f"wd14 needs ONNX Runtime; install it with: {command}.") from None
    providers = _providers(device, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised anyway
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # its errors share no base class
        reason = f"no ONNX model that can be run ({reason_of(error)[:200]})"
        raise CaptionError(f"{model} is {reason}; download it again.") from None
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or not isinstance(inputs[0].shape[1], int):
        raise CaptionError(f"{model} does not take images as [B, side, side, 3], so it is no WD tagger.")
    return session


def _providers(device: str, available: list[str]) -> list[str | tuple[str, dict[str, int]]]:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    if not device:  # never the first of all: some builds put providers first that send the work elsewhere
        return [name for name in (cuda, cpu) if name in available]
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return [cpu]
    if kind == "cuda" and cuda in available and (not number or number.isdigit()):
        return [(cuda, {"device_id": int(number or 0)})]
    advice = "leave it out, or install onnxruntime-gpu"
    raise CaptionError(f"ONNX Runtime cannot use --device {device!r} here; {advice}.")
