"""/api/datasets: thumbnails and masks of the images that a page has open."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from lora_studio.data.images import UnreadableFile
from lora_studio.errors import StudioError
from lora_studio.text import shown
from lora_studio.web.answers import FILE_POLICY
from lora_studio.web.dataset import DatasetImage
from lora_studio.web.dataset.masks import MOST_PAINTED_BYTES, painted, save_mask
from lora_studio.web.dataset.opened import opened
from lora_studio.web.dataset.rows import BLOCK, row_of
from lora_studio.web.dataset.thumbnails import SIDES, thumbnail
from lora_studio.web.studio import studio


class AskedDataset(BaseModel):
    """What is to be looked at."""

    target: str  # a folder of images, or a recipe


_MOST_ROWS = 1000
router = APIRouter(prefix="/api/datasets", tags=["data sets"])
_HEADERS = {"content-security-policy": FILE_POLICY, "cache-control": "private, max-age=60"}


@router.post("", status_code=201)
async def open_set(asked: AskedDataset) -> dict[str, Any]:
    """Open a folder of images, or a recipe's: its key, and each image with its key, caption and mask."""
    path = studio().folders.resolve(asked.target)
    there = await asyncio.to_thread(opened.open, path, studio().folders)
    return {"dataset": there.key, "images": [_listed(one) for one in there.dataset.images.values()]}


def _listed(image: DatasetImage) -> dict[str, Any]:
    words = {"name": shown(image.name), "caption": image.caption, "excluded": shown(image.excluded)}
    return {"image": image.key, **words, "mask": shown(image.mask), "fault": shown(image.caption_fault)}


@router.get("/{dataset}/images")
def list_images(
    dataset: str,
    first: int = Query(0, ge=0),
    count: int = Query(BLOCK, ge=1, le=_MOST_ROWS),
    words: str = "",
    kind: str = "",
    which: str = "all",
) -> dict[str, Any]:
    """Images of an open set from the `first` on, of those that the filter chooses; and how many these are."""
    chosen = opened.at(dataset).dataset.shown(words=words, kind=kind, which=which)
    return {"count": len(chosen), "images": [*map(row_of, chosen[first : first + count])]}


@router.get("/{dataset}/{image}/thumbnail.jpg")
async def small_image(dataset: str, image: str, side: int = SIDES[0]) -> Response:
    """A small JPEG of an image of a set that is open. `side`: 256, or 1600 pixels."""
    path = studio().folders.resolve(opened.at(dataset).image(image).path)
    try:
        made = await asyncio.to_thread(thumbnail, path, SIDES[0] if side <= SIDES[0] else SIDES[1])
    except UnreadableFile as reason:
        raise StudioError(f"this image cannot be shown ({reason}).") from None
    return Response(made, media_type="image/jpeg", headers=_HEADERS)


@router.get("/{dataset}/{image}/mask.png")
async def mask_of(dataset: str, image: str) -> Response:
    """Its loss mask, white where it is learned; 404 without one."""
    found = opened.at(dataset).image(image)
    if found.mask_path:
        studio().folders.resolve(Path(found.mask_path))
    made = await asyncio.to_thread(painted, found, 1024)
    headers = {**_HEADERS, "cache-control": "no-store"}
    return Response(made or b"", status_code=200 if made else 404, media_type="image/png", headers=headers)


@router.put("/{dataset}/{image}/mask.png")
async def paint_mask(dataset: str, image: str, request: Request) -> dict[str, Any]:
    """Save a painted mask, a PNG of the image's shape as the body; an older one is kept in the backup."""
    there = opened.at(dataset)
    found = there.image(image)
    studio().folders.resolve(found.path.parent)
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MOST_PAINTED_BYTES:
            raise StudioError(f"a painted mask has at most {MOST_PAINTED_BYTES:,} bytes.")
    path = await asyncio.to_thread(save_mask, there.dataset, found, bytes(data), there.writer)
    return {"mask": path.name}
