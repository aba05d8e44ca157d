"""Write the lists of the published bases' layers, from diffusers: `python tests/published_names.py`.

Each line of `families/layer_names/key_lists/<base>.txt` is a layer: its part, diffusers' path and the
original checkpoint's with underscores for dots ("-" where it has none of its own), and its weight's shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from full_size import full_size_family, full_size_sd2, full_size_sdxl
from torch import nn

from lora_studio.families import layer_names
from lora_studio.families.base import ModelFamily
from lora_studio.families.original.names import original_unet

FOLDER = Path(layer_names.__file__).parent / "key_lists"
BASES = {"sd1": full_size_family, "sd2": full_size_sd2, "sdxl": full_size_sdxl}


def listed(family: ModelFamily) -> str:
    """The text of a base's list."""
    return "".join(f"{line}\n" for part in family.parts for line in _lines(family, part))


def _lines(family: ModelFamily, part: str) -> Iterator[str]:
    original = _original_paths(family.parts[part]) if part == family.denoiser else {}
    for path, module in family.parts[part].named_modules():
        own = family.canonical_path(part, path)
        if isinstance(module, nn.Linear | nn.Conv2d) and (original or ".layers." in own):
            shape = " ".join(map(str, module.weight.shape))
            names = (one.replace(".", "_") for one in (own, original.get(path, "-")))
            yield f"{part} {' '.join(names)} {shape}"


def _original_paths(unet: nn.Module) -> dict[str, str]:
    """diffusers' path -> the original's, of which diffusers' own conversion makes it again."""
    prefix = "model.diffusion_model."
    names = dict(zip(unet.state_dict(), original_unet(unet), strict=True))
    numbers = {name: torch.tensor(number) for number, name in enumerate(names)}
    again = convert_ldm_unet_checkpoint({names[one]: numbers[one] for one in names}, dict(unet.config))
    assert again == numbers
    paths = {one.rpartition(".")[0]: other.rpartition(".")[0] for one, other in names.items()}
    return {one: other.removeprefix(prefix) for one, other in paths.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, base in BASES.items():
        (FOLDER / f"{name}.txt").write_text(listed(base()), encoding="utf-8")
