"""The sheet of previews: a row a prompt, a column a model; and where each image lies on it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from lora_studio.recipe.preview_prompts import prompts_in

SHOWN_SIDE = 256  # smaller images are enlarged to about this, so that grids can be looked at
_GAP, _LINE = 12, 26  # pixels
_PROMPTS = "prompts"  # in a sheet's file, where they are not the recipe's


def sheet_of(prompts: Sequence[str], columns: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """A sheet with a row a prompt: its words, then its image in every column, whose titles stand above."""
    first = next(iter(columns.values()))[0]
    scale = max(1, round(SHOWN_SIDE / max(first.size)))
    width, height = first.width * scale, first.height * scale
    gap, line = _GAP, _LINE
    wide = len(columns) * (width + gap) + gap
    sheet = Image.new("RGB", (wide, line + len(prompts) * (height + line + gap)), "white")
    drawing = ImageDraw.Draw(sheet)
    drawing.font = ImageFont.load_default(size=15)
    for row, prompt in enumerate(prompts):
        place = (gap, line + row * (height + line + gap) + 4)
        drawing.text(place, _shortened(prompt, drawing, wide - 2 * gap), fill="#444")
    for column, (title, images) in enumerate(columns.items()):
        left = gap + column * (width + gap)
        drawing.text((left, 5), _shortened(title, drawing, width), fill="black")
        for row, image in enumerate(images):
            large = image.resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(large, (left, 2 * line + row * (height + line + gap)))
    return sheet


def _shortened(text: str, drawing: ImageDraw.ImageDraw, width: int) -> str:
    while drawing.textlength(text) > width:
        text = text[:-4].rstrip() + "..."
    return text


def cell_of(
    size: tuple[int, int], place: tuple[int, int], grid: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of an image on a sheet of this `size` (width, height), in pixels.

    `place` and `grid` are rows and columns: where it is, and how many there are. Raises ValueError if
    the sheet has no such place.
    """
    (row, column), (rows, columns) = place, grid
    width = (size[0] - _GAP) // columns - _GAP
    height = (size[1] - _LINE) // rows - _LINE - _GAP
    if not (0 <= row < rows and 0 <= column < columns and width > 0 and height > 0):
        raise ValueError(f"a sheet of {size} with {grid} images has none at {place}")
    left, top = _GAP + column * (width + _GAP), 2 * _LINE + row * (height + _LINE + _GAP)
    return left, top, left + width, top + height


def png_with_prompts(sheet: Image.Image, prompts: Sequence[str]) -> bytes:
    """The sheet's file, which says itself what it shows: prompts that are not the recipe's."""
    said, buffer = PngInfo(), io.BytesIO()
    said.add_itxt(_PROMPTS, json.dumps(list(prompts), ensure_ascii=False))
    sheet.save(buffer, "png", pnginfo=said)
    return buffer.getvalue()


def prompts_on(sheet: Path) -> tuple[str, ...] | None:
    """What a sheet's file says that it shows; None if that is the recipe's prompts, or it cannot be read."""
    try:
        with Image.open(sheet, formats=["PNG"]) as image:
            said = image.info.get(_PROMPTS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return prompts_in(said) if isinstance(said, str) else None
