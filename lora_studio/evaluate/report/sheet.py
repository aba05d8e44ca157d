"""evaluation.png: verdict, bars and a few pairs on one sheet, for model cards and beside files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lora_studio.evaluate.report.bars import bar_of
from lora_studio.evaluate.report.thumbnails import ReportImages, png_of, small
from lora_studio.evaluate.report.words import (
    GROUP_TITLES,
    gravest,
    headline,
    interval_in_words,
    measure_words,
    variant_in_words,
)
from lora_studio.evaluate.result import GROUPS, Evaluation
from lora_studio.evaluate.verdicts import THRESHOLDS
from lora_studio.text import plural, shown

_WIDTH, _EDGE = 1200, 32
_ROW, _BAR = 34, (330, 840)  # height of a measure's row; where its bar begins and ends
_SIDE, _GAP = 256, 16  # of an image
_INK, _SOFT, _LINE, _REACH = "#23211e", "#6b655d", "#d8d2c7", "#a9bd97"
_COLOURS = {"good": "#2e6b3a", "warning": "#8a5a00", "error": "#b3261e", "note": "#2b5f8f"}


def report_sheet(evaluation: Evaluation, images: ReportImages) -> bytes:
    """A PNG 1200 pixels wide; of each group the first prompt that has images of base and tuned model.

    It goes where a file goes, so it has no prompt that may be a training image's caption.
    """
    pairs = _pairs(evaluation, images)
    measures = [one for one in evaluation.measures if one.interval.value == one.interval.value]
    top = 150
    below = top + len(measures) * _ROW + 24
    height = below + (2 * (_SIDE + 22) + 44 if pairs else 0) + 16
    sheet = Image.new("RGB", (_WIDTH, height), "white")
    drawing = ImageDraw.Draw(sheet)
    _draw_head(drawing, evaluation)
    for row, one in enumerate(measures):
        _draw_measure(drawing, evaluation, one.name, top + row * _ROW)
    for column, (words, base, tuned) in enumerate(pairs):
        left = _EDGE + column * (_SIDE + _GAP + 22)
        _draw_text(drawing, (left, below), words, size=15, width=_SIDE, fill=_SOFT)
        for row, (label, image) in enumerate((("base", base), ("tuned", tuned))):
            y = below + 26 + row * (_SIDE + 24)
            sheet.paste(image, (left, y))
            _draw_text(drawing, (left, y + _SIDE + 1), label, size=14, width=_SIDE, fill=_SOFT)
    return png_of(sheet)


def _draw_head(drawing: ImageDraw.ImageDraw, evaluation: Evaluation) -> None:
    words = headline(evaluation)
    colour = _COLOURS.get(gravest(words.split(", ")), _SOFT)
    _draw_text(drawing, (_EDGE, 22), evaluation.name, size=30, width=_WIDTH - 2 * _EDGE)
    asked = f"{plural(len(evaluation.questions), 'prompt')}, {plural(len(evaluation.seeds), 'seed')} each"
    told = f"{variant_in_words(evaluation.variant)}; {asked}; 95 % intervals"
    _draw_text(drawing, (_EDGE, 62), told, size=16, width=_WIDTH - 2 * _EDGE, fill=_SOFT)
    _draw_text(drawing, (_EDGE, 92), words, size=28, width=_WIDTH - 2 * _EDGE, fill=colour)


def _draw_measure(drawing: ImageDraw.ImageDraw, evaluation: Evaluation, name: str, top: int) -> None:
    """Its title, the bar with the base as a line and thresholds in red, and the figures."""
    measured, words = evaluation.measure(name), measure_words(name)
    assert measured is not None
    bar = bar_of(measured.interval, words, [one for one in THRESHOLDS if one.measure == name])
    _draw_text(drawing, (_EDGE, top), words.title, size=18, width=_BAR[0] - _EDGE - 12)
    start, end = _BAR

    def across(share: float) -> float:
        return start + share * (end - start)

    drawing.rectangle((start, top + 2, end, top + 22), outline=_LINE)
    drawing.rectangle(
        (across(bar.low), top + 6, max(across(bar.high), across(bar.low) + 2), top + 18), fill=_REACH
    )
    drawing.line((across(bar.unchanged), top + 2, across(bar.unchanged), top + 22), fill=_SOFT, width=2)
    for _, place in bar.limits:
        for y in range(top - 1, top + 26, 7):
            drawing.line((across(place), y, across(place), y + 4), fill=_COLOURS["error"], width=2)
    middle = across(bar.value)
    drawing.rectangle((middle - 2, top + 2, middle + 2, top + 22), fill=_INK)
    told = interval_in_words(measured.interval, words)
    _draw_text(drawing, (end + 20, top + 1), told, size=18, width=_WIDTH - _EDGE - end - 20)


def _pairs(evaluation: Evaluation, images: ReportImages) -> list[tuple[str, Image.Image, Image.Image]]:
    found = []
    for group in GROUPS:
        for number, one in enumerate(evaluation.questions):
            drawn = one.group == group and [
                images.drawn(number, evaluation.seeds[0], it) for it in (False, True)
            ]
            if drawn and drawn[0] is not None and drawn[1] is not None:
                words = GROUP_TITLES[group] if group == "like_training" else one.prompt
                found.append((words, _framed(drawn[0]), _framed(drawn[1])))
                break
    return found


def _framed(image: Image.Image) -> Image.Image:
    """Within the square that the sheet has for it; tiny ones are enlarged."""
    copy = small(image, _SIDE)
    scale = _SIDE / max(copy.size)
    copy = copy.resize((round(copy.width * scale), round(copy.height * scale)), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (_SIDE, _SIDE), "white")
    square.paste(copy, ((_SIDE - copy.width) // 2, (_SIDE - copy.height) // 2))
    return square


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's, which has the letters of more languages than Pillow's own."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _draw_text(
    drawing: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    *,
    size: int,
    width: float,
    fill: str = _INK,
) -> None:
    """One line, cut where it would be wider than `width` pixels."""
    text, font = shown(text, limit=400), _font(size)
    if drawing.textlength(text, font=font) > width:
        while text and drawing.textlength(f"{text}...", font=font) > width:
            text = text[:-1]
        text = f"{text.rstrip()}..."
    drawing.text(place, text, fill=fill, font=font)
