"""Images of noise, the same in every run and in every order of tests."""

from __future__ import annotations

import numpy as np
from PIL import Image


def grey_noise(size: tuple[int, int], deviation: int) -> Image.Image:
    """Normal noise around the middle grey, as `Image.effect_noise` draws, which cannot be seeded.

    Another image for every size and every deviation.
    """
    draws = np.random.default_rng([*size, deviation])
    levels = draws.normal(128, deviation, (size[1], size[0]))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))
