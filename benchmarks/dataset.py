"""Images per second of the dataset builder against a plain Pillow and diffusers loop, on the same files.

`python benchmarks/dataset.py` draws its own photographs, lets both sides work on them in turns, and writes
benchmarks/results/dataset.json. The plain loop opens, turns upright, converts, resizes, crops and makes a
tensor of each image, and encodes it with the diffusers VAE; ours also hashes and fully checks every file,
chooses its bucket and writes its latent to the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from figures import at_least, criteria_table, machine, table, write_json
from PIL import Image, ImageOps

from lora_studio.data.buckets import assign, placed
from lora_studio.data.buckets.sizes import bucket_table, fit
from lora_studio.data.cache.encode import LatentCache, ReadyPixels
from lora_studio.data.manifest import Record
from lora_studio.data.scan import scan
from lora_studio.recipe.data import DataConfig

RESULTS = Path(__file__).parent / "results" / "dataset.json"
RESOLUTION, STRIDE = 512, 64
DATA = DataConfig(images=Path("images"), resolution=RESOLUTION)
SHAPES = ((3000, 2000), (2000, 3000), (2400, 2400), (2560, 1440), (1600, 1200))
WANTED_SPEED = 1.5  # times the plain loop, for scan, bucket and resize
PLAN = """
import json, re, sys, time
from pathlib import Path
from lora_studio.data.batches import BatchPlan
from lora_studio.data.buckets import assign
from lora_studio.data.scan import scan
from lora_studio.recipe.data import DataConfig
def peak_bytes():  # of this program; ru_maxrss would include the one that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak_bytes()
began = time.perf_counter()
data = DataConfig(images=sys.argv[1], resolution=64)
manifest = assign(scan(data.images), data, stride=8)
made = BatchPlan(manifest.used, batch_size=4, gradient_accumulation=1, seed=1)
made.average_views(1000)
text = manifest.to_jsonl()
seconds = time.perf_counter() - began
print(json.dumps([len(manifest.used), seconds, peak_bytes(), peak_bytes() - before]))
"""


@dataclass(frozen=True)
class Duel:
    """Seconds of both sides for the same work, in the order of the rounds."""

    plain: list[float]
    ours: list[float]
    images: int

    @property
    def ratios(self) -> list[float]:
        """How many times as fast we are, round by round."""
        return [plain / ours for plain, ours in zip(self.plain, self.ours, strict=True)]

    def report(self) -> dict[str, object]:
        """Median images per second of both, and the ratios."""
        return {
            "images": self.images,
            "plain_images_per_second": round(self.images / median(self.plain), 2),
            "our_images_per_second": round(self.images / median(self.ours), 2),
            "ratios": [round(ratio, 3) for ratio in self.ratios],
            "median_ratio": round(median(self.ratios), 3),
        }


def photograph(number: int, size: tuple[int, int]) -> Image.Image:
    """Smooth colours under fine noise: compresses about as a photograph does."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    noise = rng.integers(-9, 10, (size[1], size[0], 1), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def draw_photographs(folder: Path, count: int) -> Path:
    """Three JPEGs to each PNG, in five shapes, with captions."""
    folder.mkdir(parents=True)
    for number in range(count):
        image = photograph(number, SHAPES[number % len(SHAPES)])
        if number % 4 == 3:
            image.save(folder / f"{number:05}.png", compress_level=1)
        else:
            image.save(folder / f"{number:05}.jpg", quality=92)
    return folder


def draw_small(folder: Path, count: int) -> Path:
    """Images of 96x64, all different."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 255, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 64)).save(folder / f"{number:05}.jpg")
    return folder


def plain_pixels(folder: Path) -> list[torch.Tensor]:
    """The loop that anyone would write."""
    buckets = bucket_table(RESOLUTION**2, STRIDE)
    tensors = []
    for path in sorted(folder.iterdir()):
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        resize, crop = fit(*image.size, buckets.choose(*image.size))
        image = image.resize(resize, Image.Resampling.LANCZOS).crop(crop)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        tensors.append(pixels.float() / 127.5 - 1)
    return tensors


def _shaped(record: Record) -> Record:
    return placed(record, DATA, STRIDE)


def our_pixels(folder: Path) -> list[torch.Tensor]:
    """What a run does up to the VAE: scan with all checks, buckets, resized pixels."""
    ready = ReadyPixels(lambda record: record.sha256)
    found = scan(folder, on_image=lambda record, decoded: ready.offer(_shaped(record), decoded.image))
    used = assign(found, DATA, stride=STRIDE).used
    taken = [ready.take(record.sha256) for record in used]
    return [pixels for pixels in taken if pixels is not None]


def duel(plain: Callable[[], object], ours: Callable[[], object], *, images: int, rounds: int) -> Duel:
    """Both in turns, so that whatever else the machine does hits both; the first round is a warm-up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for side, work in enumerate((plain, ours)):
            began = time.perf_counter()
            work()
            if number:
                seconds[side].append(time.perf_counter() - began)
    return Duel(*seconds, images)


def compare_pixels(folder: Path, rounds: int) -> Duel:
    """Scan, bucket and resize; both sides must have made the same images, to half a step of 255."""
    plain, ours = plain_pixels(folder), our_pixels(folder)
    assert len(plain) == len(ours), "both use every image"
    for one, other in zip(plain, ours, strict=True):
        assert one.shape == other.shape and (one - other).abs().mean() * 127.5 < 0.5, "the same pixels"
    images = len(plain)
    del plain, ours
    return duel(lambda: plain_pixels(folder), lambda: our_pixels(folder), images=images, rounds=rounds)


def compare_encoding(folder: Path, scratch: Path, rounds: int) -> tuple[Duel, dict[str, object]]:
    """From files to latents with the pocket base's VAE, then what a second run takes."""
    from lora_studio.families.loading import load_base

    family = load_base("pocket")
    vae: Any = family.parts["vae"]

    @torch.no_grad()
    def plain() -> list[torch.Tensor]:
        return [vae.encode(pixels[None]).latent_dist.mean for pixels in plain_pixels(folder)]

    def ours(cache: Path) -> int:
        latents = LatentCache(cache, "vae")
        found = scan(
            folder, on_image=lambda record, decoded: latents.ready.offer(_shaped(record), decoded.image)
        )
        latents.load_or_encode(assign(found, DATA, stride=STRIDE).used, family.encode_image)
        return latents.encoded

    def cold() -> None:
        shutil.rmtree(scratch / "cache", ignore_errors=True)
        ours(scratch / "cache")

    images = len(list(folder.iterdir()))
    found = duel(plain, cold, images=images, rounds=rounds)
    began = time.perf_counter()
    encoded = ours(scratch / "cache")
    rate = images / (time.perf_counter() - began)
    return found, {"encoded": encoded, "images_per_second": round(rate, 2)}


def batching(rounds: int) -> list[dict[str, object]]:
    """What batches bring to the VAE alone, in images per second, on this machine."""
    from lora_studio.families.loading import load_base

    family = load_base("pocket")
    rows: list[dict[str, object]] = []
    for side in (64, 512):
        speeds: dict[str, list[float]] = {"1": [], "4": []}
        for _ in range(rounds):
            for size in (1, 4):
                pixels = [torch.rand(size, 3, side, side) * 2 - 1 for _ in range(8 // size)]
                began = time.perf_counter()
                for one in pixels:
                    family.encode_image(one)
                speeds[str(size)].append(8 / (time.perf_counter() - began))
        rows.append({"side": side} | {f"batch_{size}": round(median(v), 1) for size, v in speeds.items()})
    return rows


def scaling(folder: Path, counts: Sequence[int]) -> list[dict[str, object]]:
    """Scan and plan of ever more small images, each count in a process of its own."""
    draw_small(folder / "all", max(counts))
    names = sorted(path.name for path in (folder / "all").iterdir())
    rows: list[dict[str, object]] = []
    for count in counts:
        part = folder / str(count)
        part.mkdir()
        for name in names[:count]:
            os.link(folder / "all" / name, part / name)
        command = [sys.executable, "-c", PLAN, str(part)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        used, seconds, peak, grown = json.loads(result.stdout)
        assert used == count
        rows.append(
            {
                "images": count,
                "seconds": round(seconds, 2),
                "images_per_second": round(count / seconds),
                "peak_mb": round(peak / 1e6),
                "grown_mb": round(grown / 1e6, 1),
                "bytes_per_image": round(grown / count),
            }
        )
    return rows


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--encoded", type=int, default=10, help="images that also go through the VAE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 500, 5000, 20000])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        photographs = draw_photographs(scratch / "photographs", options.images)
        pixels = compare_pixels(photographs, options.rounds)
        few = draw_photographs(scratch / "few", options.encoded)
        encoding, second = compare_encoding(few, scratch, options.rounds)
        sizes = scaling(scratch / "small", options.counts)
    criteria = [
        at_least("scan, bucket and resize: times the plain loop", median(pixels.ratios), WANTED_SPEED),
        at_least("files to cached latents: times the plain loop", median(encoding.ratios), 1.0),
    ]
    report: dict[str, object] = {
        "scan_bucket_resize": pixels.report(),
        "encoding": encoding.report(),
        "second_run": second,
        "vae_in_batches": batching(options.rounds),
        "scan_and_plan": sizes,
        "criteria": [vars(criterion) for criterion in criteria],
        "settings": {"resolution": RESOLUTION, "shapes": SHAPES, "rounds": options.rounds},
        "machine": machine(),
    }
    write_json(report, options.out)
    print(criteria_table(criteria))
    print(table(tuple(sizes[0]), [tuple(row.values()) for row in sizes]))
    print(
        json.dumps(
            {key: report[key] for key in ("scan_bucket_resize", "encoding", "second_run", "vae_in_batches")}
        )
    )
    sys.exit(0 if all(criterion.passed for criterion in criteria) else 1)


if __name__ == "__main__":
    main()
