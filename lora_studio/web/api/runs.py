"""/api/runs: runs, their measurements, previews and files."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse
from PIL import Image
from pydantic import BaseModel

from lora_studio.errors import StudioError, reason_of
from lora_studio.evaluate.preview_sheet import cell_of, prompts_on
from lora_studio.evaluate.saved import saved_evaluation
from lora_studio.recipe.preview_prompts import ask_for_prompts
from lora_studio.recipe.run_recipe import load_run_recipe
from lora_studio.runs import METRICS, VALIDATION
from lora_studio.text import shown
from lora_studio.web.answers import FILE_POLICY
from lora_studio.web.live import checkpoints_of, preview_sheets
from lora_studio.web.studio import studio

router = APIRouter(prefix="/api/runs", tags=["runs"])

SHOWN: dict[str, str] = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".toml": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
}
"""What a browser shows; everything else is handed over as a file to keep."""


@router.get("")
def list_runs() -> list[dict[str, Any]]:
    """The newest first."""
    return [one.to_json() for one in studio().live.runs()]


@router.get("/{run}")
def show_run(run: str) -> dict[str, Any]:
    """A run as it is now, with its checkpoints and preview sheets."""
    now = studio().live.run(run)
    return now.to_json() | {
        "checkpoints": checkpoints_of(now.folder),
        "previews": preview_sheets(now.folder),
    }


@router.get("/{run}/metrics")
def read_metrics(run: str, after: int = Query(-1, ge=-1)) -> list[dict[str, Any]]:
    """What each step came to: loss, gradient norm, learning rate and seconds, of the steps `after` one."""
    return _rows(run, METRICS, after)


@router.get("/{run}/validation")
def read_validation(run: str, after: int = Query(-1, ge=-1)) -> list[dict[str, Any]]:
    """The loss on validation images, and its share of the base's."""
    return _rows(run, VALIDATION, after)


def _rows(run: str, name: str, after: int) -> list[dict[str, Any]]:
    there = studio().live
    return [row for row in there.rows(there.run(run).folder, name).rows if row["step"] > after]


@router.get("/{run}/recipe")
def read_recipe(run: str) -> dict[str, Any]:
    """The recipe as run, with every default."""
    return load_run_recipe(studio().live.run(run).folder).model_dump(mode="json")


@router.get("/{run}/evaluation")
def read_run_evaluation(run: str) -> dict[str, Any]:
    """Its measures with intervals, and the verdicts."""
    return saved_evaluation(studio().live.run(run).folder).to_json()


class AskedPrompts(BaseModel):
    """What the next previews of a run are to show."""

    prompts: list[str]


@router.put("/{run}/prompts")
def change_prompts(run: str, asked: AskedPrompts) -> dict[str, Any]:
    """Other prompts for the next previews of a run that is at work; the last ones have the recipe's again."""
    now = studio().live.look_at(run)
    if not now.at_work:
        raise StudioError(f"{now.name} is {now.state}; prompts are changed while a run is at work.")
    if not load_run_recipe(now.folder).samples.every:
        raise StudioError("samples.every is 0: the run draws no previews before its end; try a prompt.")
    return {"prompts": ask_for_prompts(studio().folders.resolve(now.folder), asked.prompts)}


@router.get("/{run}/previews/{sheet}/{row}/{column}.png")
def read_preview(run: str, sheet: str, row: int, column: int) -> Response:
    """An image of a sheet of previews: the row is the prompt's, column 0 the base, 1 what was tuned."""
    folder = studio().live.run(run).folder
    if sheet not in preview_sheets(folder):
        raise StudioError(f"there is no sheet {shown(sheet, limit=100)} of this run.")
    path = studio().folders.resolve(f"previews/{sheet}", within=folder)
    prompts = prompts_on(path) or load_run_recipe(folder).samples.prompts
    content = cut_image(path, (row, column), (max(1, len(prompts)), 2))
    return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=60"})


def cut_image(path: Path, place: tuple[int, int], grid: tuple[int, int]) -> bytes:
    """A PNG of one image of a sheet. Raises StudioError for a sheet that has none there, or is damaged."""
    try:
        with Image.open(path, formats=["PNG"]) as sheet:
            cell = sheet.crop(cell_of(sheet.size, place, grid))
        buffer = io.BytesIO()
        cell.save(buffer, "png")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise StudioError(f"{shown(path.name)} has no image there ({reason_of(error)}).") from None
    return buffer.getvalue()


@router.get("/{run}/files/{path:path}")
def read_file(run: str, path: str) -> FileResponse:
    """A file of the run's folder."""
    folder = studio().live.run(run).folder
    return file_answer(studio().folders.resolve(path, within=folder))


def file_answer(path: Path, *, keep: bool = False) -> FileResponse:
    """A file that was found to be allowed; what a browser shows of it, it shows without running anything.

    Raises StudioError if it is not there.
    """
    if not path.is_file():
        raise StudioError(f"there is no file {shown(path.name, limit=200)}.")
    kind = SHOWN.get(path.suffix.lower())
    headers = {"content-security-policy": FILE_POLICY, "cache-control": "private, no-cache"}
    if kind is None or keep:
        return FileResponse(path, media_type="application/octet-stream", filename=path.name, headers=headers)
    return FileResponse(path, media_type=kind, headers=headers)


def read_facts(folder: Path, name: str) -> Mapping[str, Any]:
    """A JSON file of a run's folder; empty if it is not there or none."""
    try:
        values = json.loads((folder / name).read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
