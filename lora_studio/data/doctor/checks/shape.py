"""Size and shape of pictures, and what is lost of them."""

from __future__ import annotations

from collections.abc import Iterator

from lora_studio.data.buckets import crop_loss
from lora_studio.data.doctor.finding import Finding
from lora_studio.data.doctor.look import Case
from lora_studio.data.manifest import Record

_ENLARGED = 1.25  # times, along a side; less is hardly seen
_CROPPED = 0.12  # share of the picture; photographs of 2:3 may lose a tenth at coarse strides
_ASPECT = 2.5  # wider than cinema's 21:9


def tiny(case: Case) -> Iterator[Finding]:
    """Pictures that have to be enlarged; one finding if most have, as then the resolution is in question."""
    small = [(record, factor) for record in case.usable if (factor := _enlarged(record, case)) > _ENLARGED]
    side = case.resolution
    advice = f"Use larger originals, or a resolution below {side}."
    if len(small) > max(3, len(case.usable) / 2):
        smallest = min((record for record, _ in small), key=lambda record: record.width * record.height)
        detail = f"{len(small)} of {len(case.usable)} pictures are much smaller than {side}x{side}: "
        detail += f"the smallest is {smallest.name} with {smallest.width}x{smallest.height}"
        yield Finding("warning", "", detail, advice)
        return
    for record, factor in small:
        detail = f"{record.width}x{record.height}: to cover {side}x{side} it is enlarged {factor:.1f} times"
        yield Finding("warning", record.name, detail, advice, leave_out=True)


def extreme_aspect(case: Case) -> Iterator[Finding]:
    """Pictures far wider or higher than others."""
    for record in case.usable:
        if _aspect(record) > _ASPECT:
            size = f"{record.width}x{record.height}"
            detail = f"{size}: one side is {_aspect(record):.1f} times the other; {_cropped(record)}"
            advice = "Cut out the part that matters, or several parts as pictures of their own."
            yield Finding("warning", record.name, detail, advice)


def crop_lost(case: Case) -> Iterator[Finding]:
    """Pictures of which much is cropped away."""
    for record in case.usable:
        if crop_loss(record) > _CROPPED and _aspect(record) <= _ASPECT:
            size, bucket = f"{record.width}x{record.height}", record.bucket.name if record.bucket else ""
            detail = f"{_cropped(record)}: {size} goes into {bucket}"
            advice = "Look at the crop; cut the picture yourself if something that matters is lost."
            yield Finding("warning", record.name, detail, advice)


def border(case: Case) -> Iterator[Finding]:
    """Bars and frames that belong to the file and not to what it shows."""
    for record, look in case.seen(case.usable):
        if found := look.border:
            sides = {"left": found.left, "top": found.top, "right": found.right, "bottom": found.bottom}
            where = ", ".join(f"{side} {pixels}" for side, pixels in sides.items() if pixels)
            detail = f"bars of one colour that end in a straight edge, in pixels: {where}"
            advice = "Cut it off; a model learns frames and bars very quickly."
            yield Finding("warning", record.name, detail, advice)


def _enlarged(record: Record, case: Case) -> float:
    """How many times longer the sides of the area asked for are."""
    return case.resolution / (record.width * record.height) ** 0.5


def _aspect(record: Record) -> float:
    return max(record.width, record.height) / min(record.width, record.height)


def _cropped(record: Record) -> str:
    return f"{crop_loss(record):.0%} of it is cropped away"
