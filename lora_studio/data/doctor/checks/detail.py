"""Pictures without the detail that their size promises."""

from __future__ import annotations

from collections.abc import Iterator

from lora_studio.data.doctor.finding import Finding
from lora_studio.data.doctor.look import Case, Look
from lora_studio.data.manifest import Record

# Sharp photographs and drawings have 0.2 to 0.6; blurred by a Gaussian of 2 pixels 0.9 and more.
_SOFT = 0.95
_SOMEWHAT_SOFT = 0.55  # enough if there are traces of enlarging as well
_TRACE = 5.5  # what was never enlarged stays below 4.5
_BLANK = 3.0  # grey levels
_JPEG_QUALITY = 50  # at full size; a picture that is made smaller bears more
_BLOCKINESS = 1.45  # as of JPEG qualities below 20 to 40


def blank(case: Case) -> Iterator[Finding]:
    """Pictures of a single tone."""
    for record, look in case.seen(case.usable):
        if look.contrast < _BLANK:
            detail = f"nearly a single tone: its brightness varies by {look.contrast:.1f} of 255 levels"
            yield Finding(
                "warning", record.name, detail, "Remove it; there is nothing to learn.", leave_out=True
            )


def blur(case: Case) -> Iterator[Finding]:
    """Pictures of which no part is sharp at the size that is trained."""
    for record, look in case.seen(case.usable):
        if look.contrast >= _BLANK and look.edge_width > _SOFT and not _factor(record, look):
            detail = f"its sharpest edges are {look.edge_width:.1f} pixels wide at the size that is trained; "
            detail += "0.3 to 0.6 is sharp"
            advice = "Replace it by a sharper one; a model learns the blur as well."
            yield Finding("warning", record.name, detail, advice, leave_out=True)


def upscaled(case: Case) -> Iterator[Finding]:
    """Pictures that were enlarged before, and have less detail than is trained."""
    for record, look in case.seen(case.usable):
        if look.contrast >= _BLANK and (evidence := _factor(record, look)):
            advice = "Use the original, or a lower resolution; enlarging adds no detail."
            yield Finding("warning", record.name, evidence, advice, leave_out=True)


def heavy_compression(case: Case) -> Iterator[Finding]:
    """Pictures with the traces of strong JPEG compression."""
    for record, look in case.seen(case.usable):
        if evidence := _compressed(record, look):
            advice = "Use a better copy: a model learns the blocks and halos as well."
            yield Finding("warning", record.name, evidence, advice, leave_out=True)


def _factor(record: Record, look: Look) -> str:
    """What speaks for enlarging, if it costs detail at the size that is trained; else nothing."""
    if look.pixel_block > 1:
        small = (record.width // look.pixel_block, record.height // look.pixel_block)
        if _shrinks(record) < look.pixel_block:
            block = f"{look.pixel_block}x{look.pixel_block}"
            return (
                f"it consists of squares of {block} equal pixels, so it is a picture of {small[0]}x{small[1]}"
            )
        return ""
    if look.trace >= _TRACE and _SOMEWHAT_SOFT < look.edge_width < float("inf"):
        return (
            f"its pixels repeat a pattern as of enlarging ({look.trace:.0f} times the usual), and its "
            f"sharpest edges are {look.edge_width:.1f} pixels wide at the size that is trained"
        )
    return ""


def _compressed(record: Record, look: Look) -> str:
    shrinks = _shrinks(record)
    if look.jpeg_quality is not None:
        if look.jpeg_quality >= _JPEG_QUALITY / shrinks:
            return ""
        return f"JPEG of quality {look.jpeg_quality}"
    if look.pixel_block > 1 or shrinks >= 2 or look.blockiness < _BLOCKINESS:
        return ""
    steps = f"{look.blockiness:.1f} times those elsewhere"
    return f"steps along a grid of 8x8 pixels are {steps}, as JPEG leaves them"


def _shrinks(record: Record) -> float:
    """How many pixels of the file, along a side, become one that is trained; 1 if it is not made smaller."""
    return (
        max(1.0, min(record.width / record.resize[0], record.height / record.resize[1]))
        if record.resize
        else 1.0
    )
