"""What the grid shows of images, a block at a time: a page costs what it shows, not what the set holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlencode

from lora_studio.text import shown
from lora_studio.web.dataset import DatasetImage

BLOCK = 48  # images that a page asks for at once: a screen's, and as many to scroll to


@dataclass(frozen=True)
class ImageFilter:
    """Which of a set are shown: as `Dataset.shown` takes them."""

    words: str = ""
    kind: str = ""
    which: str = "all"

    @property
    def query(self) -> str:
        """As an address has it."""
        return urlencode(asdict(self))


def row_of(image: DatasetImage) -> dict[str, Any]:
    """What the grid shows of it; all of it is text."""
    size = f"{image.size[0]}×{image.size[1]}" if image.size else ""
    badges = [
        {"severity": one.severity, "title": shown(one.title), "detail": shown(one.detail)}
        for one in image.badges
    ]
    if image.caption_fault:
        badges.insert(0, {"severity": "error", "title": "no text", "detail": shown(image.caption_fault)})
    if image.excluded:
        badges.insert(0, {"severity": "", "title": "not used", "detail": shown(image.excluded)})
    return {
        "key": image.key,
        "name": shown(image.name),
        "label": shown(image.label, limit=400),
        "caption": "\n".join(map(shown, image.caption.split("\n"))),
        "facts": f"{size} → {image.bucket}" if size and image.bucket else size,
        "badges": badges,
        "mask": bool(image.mask),
        "excluded": bool(image.excluded),
        "unreadable": bool(image.caption_fault),
        "focus": image.focus,
        "crop": image.crop,
        "ratio": image.size[0] / image.size[1] if image.size else None,
    }
