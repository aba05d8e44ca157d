"""How the plan and the verb `buckets` show what becomes of images' shapes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.table import Table

from lora_studio.data.buckets.report import AspectRow, BucketPlan
from lora_studio.errors import preview_names


def bucket_lines(plan: BucketPlan) -> list[tuple[str, str]]:
    """The buckets of a set of images as (title, text) pairs."""
    lines = [
        ("buckets", ", ".join(f"{name}: {count}" for name, count in plan.buckets.items())),
        ("", f"{plan.crop_share:.1%} of an image is cropped away on average"),
    ]
    if len(plan.resolutions) > 1:
        areas = ", ".join(f"{count} at {side}" for side, count in plan.resolutions.items())
        lines.append(("areas", f"{areas}; an epoch shows an image at each of its own"))
    if plan.smaller:
        lines.append(("", f"too small for the area asked for, in smaller buckets: {_names(plan.smaller)}"))
    if plan.enlarged:
        most = max(plan.enlarged.values())
        lines.append(("", f"enlarged, up to {most:.2f} times: {_names(list(plan.enlarged))}"))
    if plan.crops > 1:
        lines.append(("crops", f"up to {plan.crops} of an image, one by chance each time"))
    if plan.mirrored:
        lines.append(("mirrored", f"{plan.mirrored:.0%} of the showings"))
    if plan.captions_with_sides:
        what = "captions that say left or right, which is wrong of a mirrored image"
        lines.append(("warning", f"{what}: {plan.captions_with_sides}"))
    if plan.latents > plan.images:
        lines.append(("latents", f"{plan.latents} of {plan.images} images"))
    if plan.overrides:
        lines.append(("", f"with settings of their own: {_names(plan.overrides)}"))
    return lines


def print_aspects(rows: Sequence[AspectRow], console: Console, *, resolution: int, stride: int) -> None:
    """A table of the common shapes and their means."""
    table = Table(title=f"buckets at {resolution}, stride {stride}", title_justify="left")
    for name in ("shape", "bucket", "cropped", "area"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.aspect, row.bucket.name, f"{row.cropped:.1%}", f"{row.area:.0%}")
    console.print(table)
    usual = [row for row in rows if row.aspect not in ("21:9", "9:21")]
    for words, some_rows in ((f"all {len(rows)}", rows), (f"the {len(usual)} without 21:9", usual)):
        cropped, area = fmean(row.cropped for row in some_rows), fmean(row.area for row in some_rows)
        console.print(f"mean of {words}: {cropped:.2%} cropped, {area:.1%} of the area asked for")


def print_bucket_plan(plan: BucketPlan, excluded: Sequence[tuple[str, str]], console: Console) -> None:
    """The buckets of a folder or recipe, line by line."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("images", f"{plan.images} used, {len(excluded)} excluded")
    for name, reason in excluded:
        table.add_row("", f"excluded: {name} ({reason})")
    for title, text in bucket_lines(plan):
        table.add_row(title, text)
    console.print(table, markup=False)


def _names(names: Sequence[str]) -> str:
    return f"{len(names)} ({preview_names(names)})"
