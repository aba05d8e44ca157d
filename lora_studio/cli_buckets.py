"""The verb `buckets`: it parses and prints, and imports nothing heavy before it must."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lora_studio.errors import RecipeError
from lora_studio.quiet import quiet_libraries
from lora_studio.recipe import load_recipe

if TYPE_CHECKING:
    from lora_studio.data.bucket_report import BucketPlan
    from lora_studio.data.manifest import Manifest

console = Console(highlight=False)
RESOLUTION, STRIDE = 512, 64  # of Stable Diffusion 1.5


def buckets(
    pictures: Annotated[
        Path | None, typer.Argument(help="a folder of pictures, or a recipe; default: the common shapes")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="side of a square of the area; default: 512, or the recipe's")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="what sides are multiples of; default: 64, or the base's")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the numbers as JSON")] = False,
) -> None:
    """Show the sizes that pictures get in training, and how much of them is cropped away."""
    if pictures is None:
        _shapes(resolution or RESOLUTION, stride or STRIDE, as_json=as_json)
        return
    quiet_libraries()
    from lora_studio.printing_buckets import print_bucket_plan

    if pictures.is_dir():
        manifest, plan = _of_folder(pictures, resolution or RESOLUTION, stride or STRIDE)
    elif pictures.suffix == ".toml":
        manifest, plan = _of_recipe(pictures, resolution, stride)
    else:
        raise RecipeError(
            f"{pictures} is neither a folder nor a recipe; give a folder of pictures or a .toml file."
        )
    excluded = [(record.name, record.excluded) for record in manifest.excluded]
    if as_json:
        console.print_json(json.dumps(asdict(plan) | {"excluded": dict(excluded)}))
    else:
        print_bucket_plan(plan, excluded, console)


def _shapes(resolution: int, stride: int, *, as_json: bool) -> None:
    from lora_studio.data.bucket_report import aspect_rows
    from lora_studio.printing_buckets import print_aspects

    rows = aspect_rows(resolution, stride)
    if as_json:
        console.print_json(json.dumps([asdict(row) for row in rows]))
    else:
        print_aspects(rows, console, resolution=resolution, stride=stride)


def _of_folder(folder: Path, resolution: int, stride: int) -> tuple[Manifest, BucketPlan]:
    from lora_studio.data.bucket_report import bucket_plan
    from lora_studio.data.buckets import assign
    from lora_studio.data.scan import scan

    manifest = assign(scan(folder), resolution=resolution, stride=stride)
    return manifest, bucket_plan(manifest.used, [resolution])


def _of_recipe(path: Path, resolution: int | None, stride: int | None) -> tuple[Manifest, BucketPlan]:
    from lora_studio.data.bucket_report import bucket_plan
    from lora_studio.training.base import base_of
    from lora_studio.training.dataset import read_dataset

    changes = () if resolution is None else (f"data.resolution={resolution}",)
    recipe = load_recipe(path, changes=changes)
    manifest = read_dataset(recipe, stride or base_of(recipe, weights=False).stride)
    return manifest, bucket_plan(manifest.used, recipe.data.all_resolutions)
