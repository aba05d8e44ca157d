"""The verb `buckets`: it parses and prints, and imports nothing heavy before it must."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.console.screen import console
from lora_studio.errors import RecipeError
from lora_studio.quiet import quiet_libraries
from lora_studio.recipe.load import load_recipe

if TYPE_CHECKING:
    from lora_studio.data.buckets.report import BucketPlan
    from lora_studio.data.manifest import Manifest

RESOLUTION, STRIDE = 512, 64  # of Stable Diffusion 1.5


def buckets(
    images: Annotated[
        Path | None, typer.Argument(help="a folder of images, or a recipe; default: the common shapes")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="side of a square of the area; default: 512, or the recipe's")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="what sides are multiples of; default: 64, or the base's")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the numbers as JSON")] = False,
) -> None:
    """Show the sizes that images get in training, and how much of them is cropped away."""
    if images is None:
        _shapes(resolution or RESOLUTION, stride or STRIDE, as_json=as_json)
        return
    quiet_libraries()
    from lora_studio.console.dataset import print_bucket_plan

    if images.is_dir():
        manifest, plan = _of_folder(images, resolution or RESOLUTION, stride or STRIDE)
    elif images.suffix == ".toml":
        manifest, plan = _of_recipe(images, resolution, stride)
    else:
        raise RecipeError(
            f"{images} is neither a folder nor a recipe; give a folder of images or a .toml file."
        )
    excluded = [(record.name, record.excluded) for record in manifest.excluded]
    if as_json:
        console.print_json(json.dumps(asdict(plan) | {"excluded": dict(excluded)}))
    else:
        print_bucket_plan(plan, excluded, console)


def _shapes(resolution: int, stride: int, *, as_json: bool) -> None:
    from lora_studio.console.dataset import print_aspects
    from lora_studio.data.buckets.report import aspect_rows

    rows = aspect_rows(resolution, stride)
    if as_json:
        console.print_json(json.dumps([asdict(row) for row in rows]))
    else:
        print_aspects(rows, console, resolution=resolution, stride=stride)


def _of_folder(folder: Path, resolution: int, stride: int) -> tuple[Manifest, BucketPlan]:
    from lora_studio.data.buckets import assign
    from lora_studio.data.buckets.report import bucket_plan
    from lora_studio.data.scan.folder import scan

    manifest = assign(scan(folder), resolution=resolution, stride=stride)
    return manifest, bucket_plan(manifest.used, [resolution])


def _of_recipe(path: Path, resolution: int | None, stride: int | None) -> tuple[Manifest, BucketPlan]:
    from lora_studio.data.buckets.report import bucket_plan
    from lora_studio.training.prepare.base_model import base_of
    from lora_studio.training.prepare.dataset import read_dataset

    changes = () if resolution is None else (f"data.resolution={resolution}",)
    recipe = load_recipe(path, changes=changes)
    manifest = read_dataset(recipe, stride or base_of(recipe, weights=False).stride)
    return manifest, bucket_plan(manifest.used, recipe.data.all_resolutions)
