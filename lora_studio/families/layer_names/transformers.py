"""What files call the layers of the transformer families, and which of them are rows of one weight.

A layer's place is its part and diffusers' path. Files have that path or the original checkpoint's, behind
one of several prefixes; where the original holds q, k and v in one weight, a file with its paths holds them
fused. `layouts/<family>.toml` says which is which; that of flux1 says how it is read.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lora_studio.families.layer_names.spellings import SECOND_TEXT, TEXT, LayerPlace

TRANSFORMER = "transformer"
_BLOCK = re.compile(r"(?<![^._])\d+(?![^._])")


_ENCODERS = {  # the form's prefix -> a text encoder -> its own
    "lora_unet_": {TEXT: "lora_te1_", SECOND_TEXT: "lora_te2_"},
    "transformer.": {TEXT: f"{TEXT}.", SECOND_TEXT: f"{SECOND_TEXT}."},
    "diffusion_model.": {
        TEXT: "text_encoders.clip_l.transformer.",
        SECOND_TEXT: "text_encoders.clip_g.transformer.",
    },
}


class FileForm(NamedTuple):
    """How a file names its layers."""

    prefix: str  # before the path; kohya's ends in "_", and so has a path with underscores, and alphas
    original: bool  # the original checkpoint's paths, and so its fused layers

    @property
    def is_kohya(self) -> bool:
        return self.prefix.endswith("_")

    def stem(self, path: str, part: str = TRANSFORMER) -> str:
        """A key without the tensor's ending, of a path as the form has it; of a text encoder CLIP's."""
        prefix = self.prefix if part == TRANSFORMER else _ENCODERS[self.prefix][part]
        return prefix + (path.replace(".", "_") if self.is_kohya else path)


DIFFUSERS, COMFY = FileForm("transformer.", False), FileForm("diffusion_model.", True)
# What may stand before a path, the longest first.
PREFIXES = (
    *("base_model.model.transformer.", "model.diffusion_model.", "lycoris_transformer_", "base_model.model."),
    *("lora_transformer_", "diffusion_model.", "transformer.", "lora_unet_", "lycoris_", "unet.", ""),
)


class OriginalLayer(NamedTuple):
    """A weight of the original checkpoint."""

    path: str
    rows: tuple[str, ...]  # diffusers' paths of the layers that are its rows, in order; one, if it is no sum

    @property
    def is_fused(self) -> bool:
        return len(self.rows) > 1


class WrittenLayer(NamedTuple):
    """What a key's stem stands for."""

    form: FileForm
    path: str  # whose it is in the form
    rows: tuple[LayerPlace, ...]


def row_counts(number: int, shape: Sequence[int], *, grouped: bool = False) -> tuple[int, ...] | None:
    """How many rows of a weight [out, in] each of its layers has: as many as columns, the last one the rest.

    `grouped`: k and v share what q leaves, with fewer heads. None if it has not so many rows, or q, k and v
    do not go together.
    """
    out, columns = shape
    if grouped:
        each = (out - columns) // 2
        whole = each > 0 and columns + 2 * each == out and columns % each == 0
        return (columns, each, each) if whole else None
    last = out - (number - 1) * columns
    if last <= 0 or (number == 3 and last != columns):
        return None
    return (*[columns] * (number - 1), last)


@dataclass(frozen=True, eq=False)  # each is itself alone
class TransformerLayout:
    """How files name the layers of a family; see layouts/flux1.toml."""

    key: str  # the family's name
    title: str
    versions: tuple[str, ...]  # how ss_base_model_version begins
    best: FileForm  # of the one file that every UI loads
    trainer: FileForm  # of kohya's own trainers
    layers: Mapping[str, tuple[str, ...]]  # the original's path -> diffusers', with # for a block's number
    whole: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    grouped: bool = False  # queries have more heads than the keys and values in one weight with them
    published: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # base -> title, list of layers

    def name(self, place: LayerPlace) -> str:
        """What a layer is called by itself in our hands; in a file it may be a part of a fused one."""
        return f"{place.part}.{place.path}"

    def spells(self, name: str, place: LayerPlace) -> bool:
        return name == self.name(place)

    def read(self, stem: str) -> WrittenLayer | None:
        """What a key without its tensor's ending stands for; None if it is no layer of this family."""
        for prefix in PREFIXES:
            if stem.startswith(prefix):
                path = stem.removeprefix(prefix)
                found = self._find(path, underscored=prefix.endswith("_"))
                if found is not None:
                    original, rows = found
                    return WrittenLayer(
                        FileForm(prefix, original is not None), original or rows[0], _of(rows)
                    )
        return None

    def _find(self, path: str, *, underscored: bool) -> tuple[str | None, tuple[str, ...]] | None:
        """The original's path, or None of one of diffusers', and diffusers' paths."""
        table = self._underscored if underscored else self._dotted
        for key, number in _with_block(path):
            if key in table:
                original, rows = table[key]
                return original and _numbered(original, number), tuple(_numbered(one, number) for one in rows)
        return None

    @cached_property
    def _dotted(self) -> dict[str, tuple[str | None, tuple[str, ...]]]:
        """A path with # for the block's number -> the original's path, if it is one, and diffusers'."""
        originals = {path: (path, rows) for path, rows in self.layers.items() if rows != (path,)}
        return originals | {one: (None, (one,)) for rows in self.layers.values() for one in rows}

    @cached_property
    def _underscored(self) -> dict[str, tuple[str | None, tuple[str, ...]]]:
        return {path.replace(".", "_"): found for path, found in self._dotted.items()}

    def original(self, path: str) -> OriginalLayer | None:
        """The original checkpoint's layer that has a layer of diffusers; None of one that is not known."""
        for key, number in _with_block(path):
            if key in self._originals:
                original = self._originals[key]
                rows = tuple(_numbered(one, number) for one in self.layers[original])
                return OriginalLayer(_numbered(original, number), rows)
        return None

    @cached_property
    def _originals(self) -> dict[str, str]:
        return {one: path for path, rows in self.layers.items() for one in rows}

    @property
    def is_fused(self) -> bool:
        """Whether any weight of the original is several layers of diffusers."""
        return any(len(rows) > 1 for rows in self.layers.values())

    def lycoris(self, path: str) -> str:
        """The stem of a layer's keys in a file of LyCORIS' kinds, one layer each, as ComfyUI reads them.

        LyCORIS' own of diffusers' path, which ComfyUI puts on the rows of a fused weight; of a family without
        those the original's path, which it knows for every family.
        """
        if self.is_fused:
            return FileForm("lycoris_", False).stem(path)
        layer = self.original(path)
        return FileForm("lora_unet_", True).stem(path if layer is None else layer.path)

    def companions(self, paths: Collection[str], form: FileForm | None = None) -> list[str]:
        """Layers of diffusers that UIs want beside these, though untrained, in a file of a form.

        All rows of a weight that is one in the original, where the file has them one by one:
        stable-diffusion.cpp puts them together and leaves out what is not whole. And those that tell a UI
        what the file is for.
        """
        form, found = form or self.best, dict[str, None]()
        for wanted in self.whole.get(form.prefix, ()):
            like = re.compile(re.escape(wanted).replace(r"\#", r"\d+"))
            if not any(map(like.fullmatch, paths)):
                found[_numbered(wanted, "0")] = None
        if not form.original:
            wholes = (self.original(path) for path in (*paths, *found))
            found |= {row: None for whole in wholes if whole is not None for row in whole.rows}
        return [path for path in found if path not in set(paths)]


def _of(rows: Sequence[str]) -> tuple[LayerPlace, ...]:
    return tuple(LayerPlace(TRANSFORMER, one) for one in rows)


def _with_block(path: str) -> Iterator[tuple[str, str]]:
    """The path as it is, and with # for its first number, which is given, too."""
    yield path, ""
    if found := _BLOCK.search(path):
        yield f"{path[: found.start()]}#{path[found.end() :]}", found[0]


def _numbered(path: str, number: str) -> str:
    return path.replace("#", number)


@cache
def layouts() -> dict[str, TransformerLayout]:
    """Every transformer family's, by its name; those that are like others come behind them."""
    tables = layout_tables()
    return {key: _layout(key, row, tables) for key, row in tables.items()}


def layout_tables() -> dict[str, dict[str, Any]]:
    """Family -> what its file in layouts/ has, in the order of `layouts`."""
    tables = {
        path.stem: tomllib.loads(path.read_text("utf-8"))
        for path in sorted((Path(__file__).parent / "layouts").glob("*.toml"))
    }
    return dict(sorted(tables.items(), key=lambda pair: "like" in pair[1]))


def _layout(key: str, row: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> TransformerLayout:
    origin = tables[row.get("like", key)]
    return TransformerLayout(
        key,
        row["title"],
        tuple(row["versions"]),
        _form(row["best"]),
        _form(row["trainer"]),
        {path: (rows,) if isinstance(rows, str) else tuple(rows) for path, rows in origin["layers"].items()},
        {prefix: tuple(paths) for prefix, paths in origin.get("whole", {}).items()},
        row.get("grouped", False),
        {base: (one["title"], one["layers"]) for base, one in row["published"].items()},
    )


def _form(values: Sequence[str]) -> FileForm:
    prefix, whose = values
    return FileForm(prefix, whose == "original")
