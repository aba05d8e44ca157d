"""Class images: what the frozen base draws for captions without their trigger, kept as PNG.

Beside one's own pictures they keep the class what it was: prior preservation, arXiv 2208.12242, sec. 3.2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from lora_studio.data.manifest import Bucket, Record
from lora_studio.data.sizes import fit
from lora_studio.data.store import mark_as_used
from lora_studio.data.wishes import Wish
from lora_studio.errors import DatasetError
from lora_studio.run import write_atomically

DRAWN = "class prompt"  # who captioned a picture that was drawn from its caption
_FORMAT = 1  # raise it when pictures are drawn differently
_BATCH_PIXELS, _MAX_BATCH = 2**20, 4  # four pictures of 512x512 at a time, one of 1024x1024


@dataclass(frozen=True)
class DrawOptions:
    """How the base draws."""

    steps: int
    guidance: float
    seed: int


Draw = Callable[[Sequence[Wish]], list[Image.Image]]
OnProgress = Callable[[int, int], None]  # pictures drawn, pictures to draw


class ClassImages:
    """Drawn pictures of one base: `fingerprint` names all of it that a picture depends on.

    A .json beside each says what was asked for, and the picture's hash: a picture without it, or of another
    hash, is drawn again.
    """

    def __init__(self, folder: Path, fingerprint: str, options: DrawOptions) -> None:
        self._folder, self._fingerprint, self._options = folder, fingerprint, options
        self.drawn = 0

    def key(self, wish: Wish) -> str:
        """The name of the files: a hash of all that the picture depends on."""
        parts = ["class image", _FORMAT, asdict(wish), asdict(self._options), self._fingerprint]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def load_or_draw(
        self,
        wishes: Sequence[Wish],
        draw: Draw,
        *,
        weight: float = 1.0,
        on_progress: OnProgress | None = None,
    ) -> list[Record]:
        """A record with the role prior for each wish, in their order; only what is not there is drawn.

        `draw` gets wishes of one size, always as many of each size: the last ones are filled up with copies,
        since a picture's last bits depend on how many are drawn together. After a stop it goes on.
        """
        digests = {wish: self._digest(wish) for wish in wishes}
        missing = [wish for wish, digest in digests.items() if not digest]
        for batch in _batches(missing):
            filled = batch + batch[-1:] * (_batch_size(batch[0]) - len(batch))
            for wish, picture in zip(batch, draw(filled), strict=False):
                digests[wish] = self._save(wish, picture)
                self.drawn += 1
                if on_progress:
                    on_progress(self.drawn, len(missing))
        return [self._record(wish, digests[wish], weight) for wish in wishes]

    def _paths(self, wish: Wish) -> tuple[Path, Path]:
        path = self._folder / f"{self.key(wish)}.png"
        return path, path.with_suffix(".json")

    def _digest(self, wish: Wish) -> str:
        """The hash of the picture, or nothing if it is not there as it was written."""
        picture, about = self._paths(wish)
        try:
            digest = json.loads(about.read_text("utf-8"))["sha256"]
            if digest != hashlib.sha256(picture.read_bytes()).hexdigest():
                return ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        for path in (picture, about):
            mark_as_used(path)
        return str(digest)

    def _save(self, wish: Wish, picture: Image.Image) -> str:
        file = BytesIO()
        picture.save(file, "PNG")
        digest = hashlib.sha256(file.getvalue()).hexdigest()
        path, about = self._paths(wish)
        facts = {"prompt": wish.prompt, "width": picture.width, "height": picture.height}
        facts |= {"number": wish.number, **asdict(self._options)}
        facts |= {"base": self._fingerprint, "sha256": digest}
        try:
            write_atomically(path, file.getvalue())
            write_atomically(about, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
        except OSError as error:
            message = f"the cache folder {self._folder} cannot be written to ({error.strerror or error})"
            raise DatasetError(f"{message}; free space there or choose another folder.") from None
        return digest

    def _record(self, wish: Wish, digest: str, weight: float) -> Record:
        path, _ = self._paths(wish)
        width, height = wish.bucket.width, wish.bucket.height
        resize, crop = fit(width, height, wish.bucket)
        return Record(
            path=str(path.absolute()),
            name=f"class_images/{path.name[:12]}.png",
            sha256=digest,
            width=width,
            height=height,
            caption=wish.prompt,
            captioned_by=DRAWN,
            role="prior",
            weight=weight,
            bucket=wish.bucket,
            resize=resize,
            crop=crop,
        )


def _batches(wishes: Sequence[Wish]) -> list[list[Wish]]:
    by_bucket: dict[Bucket, list[Wish]] = {}
    for wish in wishes:
        by_bucket.setdefault(wish.bucket, []).append(wish)
    batches = []
    for group in by_bucket.values():
        size = _batch_size(group[0])
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches


def _batch_size(wish: Wish) -> int:
    return min(_MAX_BATCH, max(1, _BATCH_PIXELS // (wish.bucket.width * wish.bucket.height)))
