"""The layers of the published transformer bases, and the base that a file's layers fit.

Their lists, in the files of their families, are written by tests/published_transformers.py: what names the
layers of a run has no part in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from lora_studio.families.layer_names import Encoder
from lora_studio.families.layer_names.transformers import TransformerLayout, layouts
from lora_studio.pocket import POCKET_FLOW, layer_shapes

_RANGE = re.compile(r"\[(\d+)-(\d+)\]")
_OF_UNET = re.compile(r"(?:^|[._])(?:(?:down|up|input|output)_blocks|mid_block|middle_block)[._]")
Size = tuple[int, int]


@dataclass(frozen=True, eq=False)  # each is itself alone
class PublishedTransformer:
    """A base that UIs know."""

    title: str
    listed: str  # its layers: whose path, the path, its weight's sides
    layout: TransformerLayout  # of its family

    original: ClassVar[bool] = False
    encoders: ClassVar[Mapping[str, Encoder]] = {}  # as `PublishedBase` has it; none is trained
    quirks: ClassVar[tuple[str, ...]] = ()

    @property
    def family(self) -> str:
        return self.layout.key

    @property
    def version(self) -> tuple[str, ...]:
        """How ss_base_model_version begins, in one of these ways."""
        return self.layout.versions

    @cached_property
    def shapes(self) -> Mapping[str, Size]:
        """The path of a layer, in diffusers or in the original checkpoint -> its weight's [out, in]."""
        found: dict[str, Size] = {}
        for line in self.listed.splitlines():
            _, path, rows, columns = line.split(" ")
            found |= dict.fromkeys(_expanded(path), (int(rows), int(columns)))
        return found

    def fitting(self, sizes: Mapping[str, Size | None]) -> int:
        """How many layers, by their paths, it has in this size; of a file that does not tell it, in any."""
        return sum(
            path in self.shapes and (size is None or self.shapes[path] == size)
            for path, size in sizes.items()
        )


def _expanded(path: str) -> Iterator[str]:
    found = _RANGE.search(path)
    if found is None:
        yield path
        return
    for number in range(int(found[1]), int(found[2]) + 1):
        yield f"{path[: found.start()]}{number}{path[found.end() :]}"


class PocketTransformer(PublishedTransformer):
    """The one in the package, of which no UI knows; a file for it may have the original's names, too."""

    quirks = ("in_no_ui",)

    @cached_property
    def shapes(self) -> Mapping[str, Size]:
        """As its weights beside it have them, and those that the original's paths would have."""
        found = {path: (shape[0], shape[1]) for (_, path), shape in layer_shapes(POCKET_FLOW).items()}
        for path in tuple(found):
            if whole := self.layout.original(path):
                rows = [found[row] for row in whole.rows]
                found[whole.path] = (sum(row[0] for row in rows), rows[0][1])
        return found


PUBLISHED_TRANSFORMERS = tuple(
    PublishedTransformer(*one, layout) for layout in layouts().values() for one in layout.published.values()
)
POCKET_TRANSFORMER = PocketTransformer("the pocket base pocket_flow", "", layouts()["z_image"])
_KNOWN = (*PUBLISHED_TRANSFORMERS, POCKET_TRANSFORMER)


def fitting_base(
    layout: TransformerLayout, sizes: Mapping[str, Size | None], version: str
) -> PublishedTransformer | None:
    """The known base of a layout that all of these layers fit best, or None if none fits any.

    `version` is what the file says of itself, which decides between those that fit as well.
    """
    found = [(one.fitting(sizes), one) for one in _KNOWN if one.layout is layout]
    most, best = max(found, key=lambda pair: pair[0])
    return best if most else None


def layout_of_file(stems: Mapping[str, Size | None], version: str) -> TransformerLayout | None:
    """The layout of the family that a file with these layers, by its keys' stems, is for; None if of none.

    That which knows the most of them; of several, the one with a published base whose sizes are theirs; then
    the one that the file names; then the one whose fused layers need not be of unequal rows; then the first.
    """
    of_unet = sum(_OF_UNET.search(stem) is not None for stem in stems)
    if 2 * of_unet >= len(stems):
        return None
    known = {layout: _paths(layout, stems) for layout in layouts().values()}
    most = max(map(len, known.values()))
    if most <= of_unet:
        return None
    likely = [layout for layout, paths in known.items() if len(paths) == most]
    ranked = {layout: _rank(layout, known[layout], version) for layout in likely}
    return max(likely, key=lambda layout: ranked[layout])


def _paths(layout: TransformerLayout, stems: Mapping[str, Size | None]) -> dict[str, Size | None]:
    found = {}
    for stem, size in stems.items():
        if (written := layout.read(stem)) is not None:
            found[written.path] = size
    return found


def _rank(
    layout: TransformerLayout, sizes: Mapping[str, Size | None], version: str
) -> tuple[int, bool, bool]:
    fitting = max(one.fitting(sizes) for one in _KNOWN if one.layout is layout)
    return fitting, bool(version) and version.startswith(layout.versions), not layout.grouped
