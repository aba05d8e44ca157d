"""What a folder of very many small images takes, and what a dozen large ones take beside their decoding.

`python benchmarks/many_images.py` runs the commands `buckets` (scan and plan) and `doctor` on 1,000, 10,000
and 100,000 captioned images, each in a process of its own, and `doctor` on eight JPEGs of 12 megapixels
beside a loop in which Pillow decodes them. The result is benchmarks/results/many_images.json. On two quiet
cores it takes some eight minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from dataset import draw_small
from figures import Criterion, at_most, criteria_table, machine, table, write_json
from PIL import Image, ImageDraw
from watched import run_command

RESULTS = Path(__file__).parent / "results" / "many_images.json"
COUNTS = (1_000, 10_000, 100_000)
PHOTOS, PHOTO_SIZE = 8, (4000, 3000)
MAX_SECONDS, MAX_PEAK_MB = 360.0, 400.0  # of the largest set
MAX_GROWTH = 1.3  # of the time per image, from the smallest set to the largest
MAX_TIMES_DECODING = 1.5

PHOTOS_AND_PILLOW = """
import json, sys, time
from pathlib import Path
from PIL import Image
from lora_studio.data.doctor import examine_folder
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
def decode():
    for path in sorted(folder.glob("*.jpg")):
        Image.open(path).load()
def seconds(work):
    began = time.process_time()
    work()
    return time.process_time() - began
pairs = [(seconds(decode), seconds(lambda: examine_folder(folder))) for _ in range(rounds + 1)]
print(json.dumps(pairs[1:]))
"""


def sets_of(counts: Sequence[int], scratch: Path) -> list[dict[str, float]]:
    """What `buckets` and `doctor` take for ever more images; each folder links to those of the largest."""
    draw_small(scratch / "all", max(counts))
    names = sorted(path.name for path in (scratch / "all").iterdir())
    rows = []
    for count in counts:
        folder = scratch / str(count)
        folder.mkdir()
        for number, name in enumerate(names[:count]):
            os.link(scratch / "all" / name, folder / name)
            caption = f"zwx squares in many colours, number {number}"
            (folder / name).with_suffix(".txt").write_text(caption, "utf-8")
        plan = run_command(["buckets", str(folder)], scratch)
        doctor = run_command(["doctor", str(folder)], scratch)
        each = {"buckets": plan, "doctor": doctor}
        row = {
            f"{name}_{what}": one for name, took in each.items() for what, one in zip(TOOK, took, strict=True)
        }
        row["ms_per_image"] = 1000 * (plan[0] + doctor[0]) / count
        row["processor_ms_per_image"] = 1000 * (plan[1] + doctor[1]) / count
        rows.append({"images": count} | {name: round(one, 3) for name, one in row.items()})
    return rows


TOOK = ("seconds", "processor_seconds", "peak_mb")


def photograph(number: int) -> Image.Image:
    """Sharp things of many sizes before soft colours, with some noise: about as hard to decode as a photo."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
    drawing = ImageDraw.Draw(image)
    for _ in range(1500):
        x, y = int(rng.integers(0, PHOTO_SIZE[0])), int(rng.integers(0, PHOTO_SIZE[1]))
        side, colour = int(rng.integers(8, 400)), tuple(rng.integers(0, 256, 3).tolist())
        draw = drawing.ellipse if rng.random() < 0.5 else drawing.rectangle
        draw((x, y, x + side, y + side * 0.7), fill=colour)
    noise = rng.integers(-9, 10, (PHOTO_SIZE[1], PHOTO_SIZE[0], 1), dtype=np.int16)
    return Image.fromarray(np.clip(np.asarray(image, np.int16) + noise, 0, 255).astype(np.uint8))


def times_decoding(folder: Path, rounds: int, *, blurred: bool = False) -> dict[str, float]:
    """Processor seconds a photo of Pillow's decoding and of the doctor, in turns in one process."""
    folder.mkdir()
    for number in range(PHOTOS):
        image = photograph(number)
        if blurred:
            image = image.reduce(16).resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.jpg", quality=92)
        (folder / f"{number}.txt").write_text(f"zwx shapes, number {number}", "utf-8")
    command = [sys.executable, "-c", PHOTOS_AND_PILLOW, str(folder), str(rounds)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    row = {"pillow_seconds": median(plain for plain, _ in found) / PHOTOS}
    row |= {"doctor_seconds": median(ours for _, ours in found) / PHOTOS}
    row["ratio"] = median(ours / plain for plain, ours in found)
    return {name: round(one, 4) for name, one in row.items()}


def criteria(rows: Sequence[dict[str, float]], photos: dict[str, float]) -> list[Criterion]:
    """The demands on the largest set and on the photographs."""
    first, last = rows[0], rows[-1]
    seconds, images = last["buckets_seconds"] + last["doctor_seconds"], f"{last['images']:,} images"
    peak, growth = (
        max(last["buckets_peak_mb"], last["doctor_peak_mb"]),
        (last["processor_ms_per_image"] / first["processor_ms_per_image"]),
    )
    return [
        at_most(f"{images}: buckets and doctor, seconds", seconds, MAX_SECONDS),
        at_most(f"{images}: peak memory, MB", peak, MAX_PEAK_MB),
        at_most(f"processor time per image, times that of {first['images']:,}", growth, MAX_GROWTH),
        at_most("photographs: doctor, times Pillow's decoding", photos["ratio"], MAX_TIMES_DECODING),
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sharp = times_decoding(Path(scratch) / "sharp", options.rounds)
        blurred = times_decoding(Path(scratch) / "blurred", options.rounds, blurred=True)
        rows = sets_of(options.counts, Path(scratch))
    judged = criteria(rows, sharp)
    report: dict[str, object] = {"sets": rows, "photographs": sharp, "blurred_photographs": blurred}
    report |= {"criteria": [vars(one) for one in judged], "machine": machine()}
    write_json(report, options.out)
    print(table(tuple(rows[0]), [tuple(row.values()) for row in rows]))
    print(json.dumps({"photographs": sharp, "blurred": blurred}))
    print(criteria_table(judged))
    sys.exit(0 if all(one.passed for one in judged) else 1)


if __name__ == "__main__":
    main()
