"""/api/uploads/images: images and captions that are dropped on a page, kept in a folder of the project."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from lora_studio.errors import StudioError
from lora_studio.text import shown
from lora_studio.web.dataset.opened import opened
from lora_studio.web.settings import IMAGE_BYTES, UPLOADS_AT_ONCE

router = APIRouter(prefix="/api/uploads/images", tags=["uploads"])
_at_once = asyncio.Semaphore(UPLOADS_AT_ONCE)


@router.put("/{drop}/{name}", status_code=201)
async def drop_file(drop: str, name: str, request: Request) -> JSONResponse:
    """An image, a caption or a mask, as the body. `drop`: the key that a page was given for its folder."""
    folder, data = opened.drop(drop), bytearray()
    if _at_once.locked():
        raise StudioError(
            f"{UPLOADS_AT_ONCE} files are on their way already; send this one when one is done."
        )
    async with _at_once:
        async for part in request.stream():
            data += part
            if len(data) > IMAGE_BYTES:
                raise StudioError(f"{shown(name, limit=100)} has more than {IMAGE_BYTES // 10**6} MB.")
        answer: dict[str, Any] = {"file": await asyncio.to_thread(folder.take, name, bytes(data))}
    return JSONResponse(answer, 201)
