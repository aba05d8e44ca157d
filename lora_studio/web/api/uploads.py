"""/api/uploads: files that are dropped, kept in the project's folder beside everything else."""

from __future__ import annotations

import shutil
from asyncio import Semaphore
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from lora_studio.errors import StudioError
from lora_studio.files import check_ending, writing_atomically
from lora_studio.text import file_size, shown
from lora_studio.web.dataset.dropping import harmless_name
from lora_studio.web.settings import MOST_UPLOADS, UPLOAD_BYTES, UPLOADS_AT_ONCE
from lora_studio.web.studio import studio

router = APIRouter(prefix="/api/uploads", tags=["uploads"])
FOLDER = "dropped"
_SPARE_BYTES = 2**30  # of the disk, that dropped files leave free
_at_once = Semaphore(UPLOADS_AT_ONCE)


@router.put("/{name}", status_code=201)
async def upload(name: str, request: Request) -> dict[str, Any]:
    """A .safetensors file, as the body; kept as dropped/<name>. Nothing that is there is replaced."""
    check_ending(Path(name), ".safetensors", "the file")
    folder = studio().folders.project / FOLDER
    if _at_once.locked():
        raise StudioError(
            f"{UPLOADS_AT_ONCE} files are on their way already; send this one when one is done."
        )
    async with _at_once:
        path = free_place(folder, name)
        taken = 0
        with writing_atomically(path) as file:
            async for part in request.stream():
                taken += len(part)
                if taken > UPLOAD_BYTES:
                    raise StudioError(f"{shown(name)} has more than {file_size(UPLOAD_BYTES)}.")
                file.write(part)
    return {"file": studio().folders.shortened(path), "bytes": taken}


def free_place(folder: Path, name: str) -> Path:
    """Where a dropped file may be written: a number is added to a name that is there.

    Raises StudioError if the folder or the disk is full.
    """
    wanted = harmless_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    if sum(1 for _ in folder.iterdir()) >= MOST_UPLOADS:
        raise StudioError(f"{folder} holds {MOST_UPLOADS:,} files already; move some away, then drop more.")
    if shutil.disk_usage(folder).free < _SPARE_BYTES:
        raise StudioError(
            f"the disk of {folder} has less than {file_size(_SPARE_BYTES)} left; make room first."
        )
    path = folder / wanted
    number = 2
    while path.exists() or path.is_symlink():
        path, number = folder / f"{Path(wanted).stem}_{number}{Path(wanted).suffix}", number + 1
    return path
