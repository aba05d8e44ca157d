"""What a base is, at a glance: from a file's header, a folder's configuration or a known id; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.families.configuration import index_of, read_json
from lora_studio.families.original import KINDS, BaseKind, detect
from lora_studio.families.original.checkpoint import open_checkpoint
from lora_studio.families.original.published import PUBLISHED
from lora_studio.families.original.transformers import (
    TransformerKind,
    find_transformer,
    supported,
    trained,
)
from lora_studio.families.original.transformers.published import known_transformer
from lora_studio.families.vaes import native_side
from lora_studio.files import expanded
from lora_studio.pocket import EMBEDDED, pocket_note
from lora_studio.tensor_file import FILE_ENDINGS

_LEAST_SIDE = 256  # pixels; what is below is a miniature
_MOST_LEVELS = 12  # of a VAE


@dataclass(frozen=True)
class BaseGlance:
    """What is known of a base before it is loaded; nothing of an id that is not published."""

    model: str
    kind: BaseKind | TransformerKind | None = None  # of the published ones
    side: int = 0  # pixels of the square images that it was made for; 0: not known
    doubt: str = ""  # why nothing is known of what is there

    @property
    def title(self) -> str:
        if self.model in EMBEDDED:
            return "the pocket base" if self.model == "pocket" else f"the pocket base {self.model}"
        return self.kind.title if self.kind else "a base that is not known before it is loaded"

    @property
    def note(self) -> str:
        """What its user should know."""
        return pocket_note(self.model) if self.model in EMBEDDED else ""

    def is_as(self, other: BaseGlance) -> bool:
        """Whether what suits one suits the other, a miniature or not, as far as both are known."""
        if self.kind is None or other.kind is None:
            return True
        return self.kind is other.kind and (self.side < _LEAST_SIDE) == (other.side < _LEAST_SIDE)


def glance_at_base(model: str) -> BaseGlance:
    """Raises BaseModelError for a file or folder of another kind of model; what cannot be read is a doubt."""
    path = EMBEDDED[model] if model in EMBEDDED else expanded(model)
    if path.is_file() or path.suffix in FILE_ENDINGS:
        try:
            checkpoint = open_checkpoint(path)
        except BaseModelError as error:
            return BaseGlance(model, doubt=str(error))
        transformer = find_transformer(path.name, checkpoint.shapes)
        if transformer is not None:
            return BaseGlance(model, transformer.kind, transformer.kind.side)
        return _of_kind(model, detect(path.name, checkpoint.shapes))
    if path.is_dir():
        return _folder(model, path)
    if (known := known_transformer(model)) is not None:
        return BaseGlance(model, known.kind, known.kind.side)
    published = PUBLISHED.get(model)
    return _of_kind(model, published.kind) if published else BaseGlance(model)


def _of_kind(model: str, kind: BaseKind) -> BaseGlance:
    return BaseGlance(model, kind, kind.sides["epsilon"])


def _folder(model: str, path: Path) -> BaseGlance:
    """By its parts and its denoiser's configuration; `load_base` looks closer."""
    try:
        listed = read_json(index_of(path))
        unet = read_json(path / "unet" / "config.json") if "unet" in listed else None
        transformer = read_json(path / "transformer" / "config.json") if "transformer" in listed else {}
        vae = read_json(path / "vae" / "config.json") if "vae" in listed else {}
    except BaseModelError as error:
        what = f"{path} is no diffusers folder that can be read ({reason_of(error)})"
        return BaseGlance(model, doubt=f"{what}; give one, or a .safetensors file.")
    for kind in trained() if unet is None else ():
        guided = transformer.get("guidance_embeds", True)
        if transformer.get("_class_name") == kind.class_name and kind.guided in (None, guided):
            side = vae.get("sample_size")
            if isinstance(levels := vae.get("temperal_downsample"), list) and len(levels) < _MOST_LEVELS:
                side = native_side(vae)
            return BaseGlance(model, kind, side if isinstance(side, int) else kind.side)
    if unet is None:
        raise BaseModelError(
            f"the base model {model} has no UNet and no transformer that can be trained, so it is no Stable "
            f"Diffusion 1.x, 2.x or XL, and no {supported()}; give another base."
        )
    levels, size = vae.get("block_out_channels"), unet.get("sample_size")
    side = 0
    if isinstance(levels, list) and isinstance(size, int) and len(levels) < _MOST_LEVELS:
        side = size * 2 ** (len(levels) - 1)
    return BaseGlance(model, next((kind for kind in KINDS if kind.has_unet(unet)), None), side)
