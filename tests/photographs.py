"""Images like photographs, made in the test, and a folder of them to plant faults in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def photograph(seed: int, width: int = 320, height: int = 320) -> Image.Image:
    """Clouds whose detail falls off as in photographs (amplitude 1/f), and some sharp things."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    channels = []
    shared = rng.standard_normal((height, width))
    for _ in range(3):
        waves = np.fft.fft2(shared + 0.3 * rng.standard_normal((height, width))) / frequency
        clouds = np.fft.ifft2(waves).real
        channels.append(128 + 42 * (clouds - clouds.mean()) / clouds.std())
    image = Image.fromarray(np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8))
    drawing = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, max(1, width - 60)), rng.integers(0, max(1, height - 60))
        size, colour = rng.integers(25, 90), tuple(rng.integers(0, 256, 3).tolist())
        drawing.ellipse((x, y, x + size, y + size * 0.7), fill=colour)
    return image


class Planted:
    """A folder of good images with captions, into which faults are put."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seed = 0
        folder.mkdir()

    def fresh(self, width: int = 320, height: int = 320) -> Image.Image:
        """An image that is not there yet."""
        self.seed += 1
        return photograph(self.seed, width, height)

    def add(self, name: str, image: Image.Image | None = None, **options: object) -> Path:
        """Save it, by default a fresh one, with a caption of its own."""
        path = self.folder / name
        (image or self.fresh()).save(path, **options)  # type: ignore[arg-type]
        caption = f"an image called {path.stem.replace('_', ' ')}, zwx style"
        path.with_suffix(".txt").write_text(caption, "utf-8")
        return path
