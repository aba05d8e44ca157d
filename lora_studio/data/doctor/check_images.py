"""Images without the detail that their size promises, with borders, badly cut, or there more than once."""

from __future__ import annotations

from collections.abc import Iterator

from lora_studio.data.buckets import crop_loss as cropped_share
from lora_studio.data.doctor.finding import Finding
from lora_studio.data.doctor.likeness import Pair
from lora_studio.data.doctor.look import SOMEWHAT_SOFT, Case, Look
from lora_studio.data.manifest import Record
from lora_studio.data.scan.layouts import is_by_choice

# Sharp photographs and drawings have 0.2 to 0.6; blurred by a Gaussian of 2 pixels 0.9 and more.
_SOFT = 0.95
_TRACE = 5.5  # what was never enlarged stays below 4.5
_BLANK = 3.0  # grey levels
_JPEG_QUALITY = 50  # at full size; an image that is made smaller bears more
_BLOCKINESS = 1.45  # as of JPEG qualities below 20 to 40
_ENLARGED = 1.25  # times, along a side; less is hardly seen
_CROPPED = 0.12  # share of the image; photographs of 2:3 may lose a tenth at coarse strides
_ASPECT = 2.5  # wider than cinema's 21:9


def blank(case: Case) -> Iterator[Finding]:
    """Images of a single tone."""
    for record, look in case.seen:
        if look.contrast < _BLANK:
            detail = f"nearly a single tone: its brightness varies by {look.contrast:.1f} of 255 levels"
            yield _worse_than_none(record, detail, "Remove it; there is nothing to learn.")


def blur(case: Case) -> Iterator[Finding]:
    """Images of which no part is sharp at the size that is trained."""
    for record, look in case.seen:
        if look.contrast >= _BLANK and look.edge_width > _SOFT and not _factor(record, look):
            advice = "Replace it by a sharper one; a model learns the blur as well."
            yield _worse_than_none(record, f"{_edges(look)}; 0.3 to 0.6 is sharp", advice)


def upscaled(case: Case) -> Iterator[Finding]:
    """Images that were enlarged before, and have less detail than is trained."""
    for record, look in case.seen:
        if look.contrast >= _BLANK and (evidence := _factor(record, look)):
            advice = "Use the original, or a lower data.resolution: enlarging adds no detail. "
            advice += "Pixel art may stay as it is."
            yield _worse_than_none(record, evidence, advice)


def heavy_compression(case: Case) -> Iterator[Finding]:
    """Images with the traces of strong JPEG compression."""
    advice = "Use a better copy: a model learns the blocks and halos as well."
    for record, look in case.seen:
        shrinks, quality = _shrinks(record), look.jpeg_quality
        if quality is not None:
            if quality < _JPEG_QUALITY / shrinks:
                yield _worse_than_none(record, f"JPEG of quality {quality}", advice)
        elif look.pixel_block == 1 and shrinks < 2 and look.blockiness >= _BLOCKINESS:
            steps = f"{look.blockiness:.1f} times those elsewhere"
            detail = f"steps along a grid of 8x8 pixels are {steps}, as JPEG leaves them"
            yield _worse_than_none(record, detail, advice)


def _worse_than_none(record: Record, detail: str, advice: str) -> Finding:
    return Finding("warning", record.name, detail, advice, leave_out=True)


def _edges(look: Look) -> str:
    return f"its sharpest edges are {look.edge_width:.1f} pixels wide at the size that is trained"


def _factor(record: Record, look: Look) -> str:
    """What speaks for enlarging, if it costs detail at the size that is trained; else nothing."""
    if (side := look.pixel_block) > 1:
        size = f"{record.width // side}x{record.height // side}"
        squares = f"it consists of squares of {side}x{side} equal pixels, so it is an image of {size}"
        return squares if _shrinks(record) < side else ""
    if look.trace >= _TRACE and SOMEWHAT_SOFT < look.edge_width < float("inf"):
        pattern = f"its pixels repeat a pattern as of enlarging ({look.trace:.0f} times the usual)"
        return f"{pattern}, and {_edges(look)}"
    return ""


def _shrinks(record: Record) -> float:
    """How many pixels of the file, along a side, become one that is trained; 1 if it is not made smaller."""
    width, height = record.resize or (record.width, record.height)
    return max(1.0, min(record.width / width, record.height / height))


def tiny(case: Case) -> Iterator[Finding]:
    """Images that have to be enlarged; one finding if most have, as then the resolution is in question."""
    side, usable = case.requirements.resolution, case.manifest.usable
    times_larger = [(record, side / (record.width * record.height) ** 0.5) for record in usable]
    small = [(record, factor) for record, factor in times_larger if factor > _ENLARGED]
    advice = f"Use larger originals, or a data.resolution below {side}."
    if len(small) > max(3, len(usable) / 2):
        smallest = min((record for record, _ in small), key=lambda record: record.width * record.height)
        detail = f"{len(small)} of {len(usable)} images are much smaller than {side}x{side}: "
        detail += f"the smallest is {smallest.name} with {_size(smallest)}"
        yield Finding("warning", "", detail, advice)
        return
    for record, factor in small:
        detail = f"{_size(record)}: to cover {side}x{side} it is enlarged {factor:.1f} times"
        yield _worse_than_none(record, detail, advice)


def extreme_aspect(case: Case) -> Iterator[Finding]:
    """Images far wider or higher than others."""
    for record in case.manifest.usable:
        if _aspect(record) > _ASPECT:
            aspect, cropped = f"{_aspect(record):.1f}", f"{cropped_share(record):.0%}"
            detail = f"{_size(record)}: one side is {aspect} times the other; {cropped} of it is cropped away"
            advice = "Cut out the part that matters, or several parts as images of their own."
            yield Finding("warning", record.name, detail, advice)


def crop_loss(case: Case) -> Iterator[Finding]:
    """Images of which much is cropped away."""
    for record in case.manifest.usable:
        if cropped_share(record) > _CROPPED and _aspect(record) <= _ASPECT:
            bucket = record.bucket.name if record.bucket else ""
            cropped = f"{cropped_share(record):.0%} of it is cropped away"
            detail = f"{cropped}: {_size(record)} goes into {bucket}"
            advice = "Look at the crop (--html); if something that matters is lost, cut the image yourself, "
            advice += "or set its crop or focus in a metadata.jsonl."
            yield Finding("warning", record.name, detail, advice)


def border(case: Case) -> Iterator[Finding]:
    """Bars and frames that belong to the file and not to what it shows."""
    for record, look in case.seen:
        if found := look.border:
            where = ", ".join(f"{side} {pixels}" for side, pixels in found._asdict().items() if pixels)
            detail = f"bars of one colour that end in a straight edge, in pixels: {where}"
            advice = "Cut it off; a model learns frames and bars very quickly."
            yield Finding("warning", record.name, detail, advice)


def _size(record: Record) -> str:
    return f"{record.width}x{record.height}"


def _aspect(record: Record) -> float:
    return max(record.width, record.height) / min(record.width, record.height)


def exact_duplicate(case: Case) -> Iterator[Finding]:
    """Files with the bytes of another, which are left out."""
    for record, kept in _copies(case, leak=False):
        advice = "Remove one. To weigh an image more, use data.repeats, or repeats in a metadata.jsonl."
        yield Finding("warning", record.name, record.excluded, advice, other=kept.name)


def near_duplicate(case: Case) -> Iterator[Finding]:
    """Images that look the same: scaled, saved again, slightly cropped or mirrored."""
    for first, second, pair in case.alike:
        if first.role == second.role or "validation" not in (first.role, second.role):
            worse, better = sorted((first, second), key=lambda one: (one.width * one.height, one is first))
            advice = "Keep the better of the two, or this image counts twice: data.exclude leaves one out, "
            advice += "and doctor --write-exclude writes such a list."
            detail = f"looks like {better.name}{_how(pair)}"
            yield Finding("warning", worse.name, detail, advice, other=better.name, leave_out=True)


def leakage(case: Case) -> Iterator[Finding]:
    """Images to train on that are validation images, too: what is measured on those is then too good."""
    advice = "Take it out of one of the two, or the measurement says nothing about new images."
    for record, kept in _copies(case, leak=True):
        detail = f"the same bytes as {kept.name}, a validation image; the copy is not trained on"
        yield Finding("warning", record.name, detail, advice, other=kept.name)
    for first, second, pair in case.alike:
        if first.role != second.role and "validation" in (first.role, second.role):
            held, other = (first, second) if first.role == "validation" else (second, first)
            detail = f"looks like {held.name}{_how(pair)}, a validation image"
            yield Finding("error", other.name, detail, advice, other=held.name, leave_out=True)


def _copies(case: Case, *, leak: bool) -> Iterator[tuple[Record, Record]]:
    """Excluded records with the usable one of the same bytes; `leak`: that one alone is for validation."""
    by_sha256 = {record.sha256: record for record in case.manifest.usable}
    for record in case.manifest.records:
        kept = by_sha256.get(record.sha256) if record.sha256 else None
        if not kept or not record.excluded or is_by_choice(record.excluded):
            continue
        if leak == (kept.role == "validation" and record.role != "validation"):
            yield record, kept


def _how(pair: Pair) -> str:
    mirrored = " mirrored" if pair.mirrored else ""
    return f"{mirrored} ({pair.bits} of 63 bits of their perceptual hashes differ)"
