"""Images within a page: small, and together no more than a browser opens at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from lora_studio.data.images.decode import data_url

MOST_BYTES = 12_000_000  # of all images of a page, as they stand in it
_LARGEST_SIDE = 256  # pixels of an image's file: more than the page shows, for fine screens
_QUALITY = 82


@dataclass(frozen=True)
class ReportImages:
    """Where the page's images come from, each asked for only if it is shown; None of what is not there.

    `drawn`: by the number of the question, the seed, and whether it is the tuned model's. `training`: by the
    name in `Near.training_image`.
    """

    drawn: Callable[[int, int, bool], Image.Image | None]
    training: Callable[[str], Image.Image | None] = lambda name: None


class Thumbnails:
    """Gives images out as data URIs until the page has `most_bytes` of them; counts what came too late."""

    def __init__(self, images: ReportImages, *, most_bytes: int = MOST_BYTES) -> None:
        self._images, self._left = images, most_bytes
        self.left_out = 0

    def drawn(self, question: int, seed: int, *, tuned: bool) -> str:
        """The URI of what the base or the tuned model drew, "" if there is none, or no room for it."""
        return self._uri(lambda: self._images.drawn(question, seed, tuned))

    def training(self, name: str) -> str:
        """Likewise of a training image."""
        return self._uri(lambda: self._images.training(name))

    def _uri(self, image_of: Callable[[], Image.Image | None]) -> str:
        if self._left <= 0:
            self.left_out += 1
            return ""
        image = image_of()
        if image is None:
            return ""
        uri = data_url(small(image), quality=_QUALITY)
        if len(uri) > self._left:
            self._left = 0  # smaller ones behind it would leave holes
            self.left_out += 1
            return ""
        self._left -= len(uri)
        return uri


def small(image: Image.Image, side: int = _LARGEST_SIDE) -> Image.Image:
    """An RGB copy within side x side pixels, of pixels alone."""
    copy = image.convert("RGB")
    copy.thumbnail((side, side), Image.Resampling.LANCZOS)
    return copy


def png_of(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
