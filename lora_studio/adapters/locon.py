"""LoCon (arXiv 2309.14859): LoRA of the convolutions, too."""

from __future__ import annotations

from typing import ClassVar

from lora_studio.adapters.lora import Lora


class Locon(Lora):
    """Of a convolution `down` is one of k x k to r channels, and `up` one of 1 x 1."""

    convolutions: ClassVar[bool] = True


LOCON = Locon()
