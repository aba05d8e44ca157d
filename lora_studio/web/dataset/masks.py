"""Loss masks painted on the page: `name.mask.png` beside the image, white where it is learned."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from PIL import Image

from lora_studio.data.images import MASK_SUFFIX, UnreadableFile, read_bytes
from lora_studio.data.images.decode import decode
from lora_studio.errors import DatasetError
from lora_studio.text import same_text, shown
from lora_studio.web.dataset import Dataset, DatasetImage
from lora_studio.web.dataset.backups import SafeWriter, current

MOST_PAINTED_BYTES = 1_000_000
_MOST_PAINTED_PIXELS = 4_194_304


def mask_path(image: DatasetImage) -> Path:
    """The image's mask, or the one that it would get. Raises DatasetError for one of another format."""
    if not image.mask_path:
        return image.path.with_name(image.path.stem + MASK_SUFFIX)
    path = Path(image.mask_path)
    if path.suffix.lower() != ".png":
        raise DatasetError(
            f"its mask is {shown(image.mask)}, and only PNG files are painted on; save that as PNG first."
        )
    return path


def painted(image: DatasetImage, side: int) -> bytes | None:
    """The mask as a PNG with no side longer than `side`; None without one. DatasetError: unreadable."""
    if not image.mask_path:
        return None
    try:
        mask = decode(read_bytes(Path(image.mask_path)), background="black").image.convert("L")
    except UnreadableFile as reason:
        raise DatasetError(f"{shown(image.mask)} cannot be used ({reason}); paint it anew.") from None
    mask.thumbnail((side, side), Image.Resampling.BOX)
    return _png(mask)


def save_mask(dataset: Dataset, image: DatasetImage, png: bytes, writer: SafeWriter) -> Path:
    """Write what was painted, as large as the image; an older mask is kept first.

    Raises DatasetError for what is no PNG, has another shape, or is black all over, and where another image
    of the same name would get it, too.
    """
    twins = [one.name for one in dataset.images.values() if _share(one, image)]
    if len(twins) > 1:
        names = " and ".join(map(shown, twins))
        raise DatasetError(
            f"{names} have the same name but for the ending, and a mask could be either's; rename one."
        )
    if not png.startswith(b"\x89PNG\r\n") or len(png) > MOST_PAINTED_BYTES:
        raise DatasetError(f"a painted mask is a PNG file of at most {MOST_PAINTED_BYTES:,} bytes.")
    try:
        width, height = decode(read_bytes(image.path), enough_pixels=1).size
        mask = decode(png, background="black").image.convert("L")
    except UnreadableFile as reason:
        raise DatasetError(f"the mask of {shown(image.name)} cannot be saved ({reason}).") from None
    if mask.width * mask.height > _MOST_PAINTED_PIXELS or not _same_shape(mask.size, (width, height)):
        raise DatasetError(
            f"the mask has not the shape of {shown(image.name)}, {width}x{height}; paint it anew."
        )
    if mask.getextrema() == (0, 0):
        raise DatasetError("the mask is black all over, so nothing would be learned; paint white what is.")
    path = mask_path(image)
    resized = mask.resize((width, height), Image.Resampling.BILINEAR)
    writer.write(path, _png(resized), expected=current(path))
    return path


def remove_mask(image: DatasetImage, writer: SafeWriter) -> None:
    """Take it away: it is in the backup, and can be taken back."""
    if image.mask_path and (data := current(Path(image.mask_path))) is not None:
        writer.write(Path(image.mask_path), None, expected=data)


def _share(one: DatasetImage, other: DatasetImage) -> bool:
    same_folder = one.path.parent == other.path.parent
    return same_folder and not one.excluded and same_text(one.path.stem) == same_text(other.path.stem)


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """As far as whole pixels can have it."""
    wide, high = size[0] / other[0], size[1] / other[1]
    return abs(wide - high) * max(other) <= 1.5


def _png(image: Image.Image) -> bytes:
    written = BytesIO()
    image.save(written, "PNG", optimize=False)
    return written.getvalue()
