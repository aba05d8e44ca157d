"""The encoders: classes of transformers and the pocket base's own pair, all used alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lora_studio.errors import StudioError, reason_of
from lora_studio.evaluate.encoders.files import (
    PREPROCESSOR,
    EncoderFolder,
    EncoderKind,
    digest_of_files,
    encoder_folder,
)
from lora_studio.evaluate.encoders.pixels import Pixels, pixels_of
from lora_studio.evaluate.encoders.pooling import features_of
from lora_studio.pocket import WEIGHTS as POCKET_FOLDER
from lora_studio.text import shown

_BATCH = 32


class TowerEncoder(ABC):
    """A vision transformer, with a text encoder beside it if it has one; weights in float32."""

    name: str
    digest: str
    device: torch.device
    pixels: Pixels

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, D] of length 1; see `pooling.features_of`."""
        return self._batched(images, lambda pixels: features_of(*self._look(pixels)))

    @torch.inference_mode()
    def aligned(self, images: Sequence[Image.Image]) -> Tensor | None:
        """[N, E] of length 1 in the space that it shares with texts, if there is one."""
        return self._batched(images, lambda pixels: F.normalize(self._look(pixels)[0], dim=-1))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor | None:
        """[N, E] of length 1, of texts cut to its length, if it reads any."""
        found = [self._read(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)]
        return F.normalize(torch.cat(found), dim=-1).cpu()

    def _batched(self, images: Sequence[Image.Image], function: Callable[[Tensor], Tensor]) -> Tensor:
        batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
        return torch.cat([function(self.pixels(one).to(self.device)).float().cpu() for one in batches])

    @abstractmethod
    def _look(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The embedding [B, E], and the patches after each layer [B, P, C]."""

    @abstractmethod
    def _read(self, texts: Sequence[str]) -> Tensor:
        """[B, E]"""


class HubEncoder(TowerEncoder):
    """One that transformers saved: a folder of it, or a hub id."""

    kind: ClassVar[EncoderKind]
    network_class: ClassVar[str]

    def __init__(self, model: str, device: torch.device) -> None:
        folder = encoder_folder(self.kind, model)
        self.name, self.digest, self.device = self.kind.name, folder.digest, device
        self.pixels = pixels_of(folder.json(PREPROCESSOR), shown(str(folder.path / PREPROCESSOR)))
        self.network = _network(folder, self.network_class).to(device)
        self.tokenizer = _tokenizer(folder) if self.kind.reads_texts else None

    def _ids(self, texts: Sequence[str], length: int) -> Tensor:
        assert self.tokenizer is not None
        how = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        ids: Tensor = self.tokenizer(list(texts), **how).input_ids
        return ids.to(self.device)


class ClipEncoder(HubEncoder):
    """CLIP (Radford et al. 2021); its image embedding is that of `aligned`."""

    kind = EncoderKind("clip", "openai/clip-vit-large-patch14", "clip")
    network_class = "CLIPModel"

    def _look(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        seen = self.network.vision_model(pixels, output_hidden_states=True)
        return self.network.visual_projection(seen.pooler_output), _patches(seen, first=1)

    def _read(self, texts: Sequence[str]) -> Tensor:
        ids = self._ids(texts, self.network.config.text_config.max_position_embeddings)
        found: Tensor = self.network.text_projection(self.network.text_model(ids).pooler_output)
        return found


class Siglip2Encoder(HubEncoder):
    """SigLIP 2 of one size of image (Tschannen et al. 2025); its texts are lower case, 64 tokens long."""

    kind = EncoderKind("siglip2", "google/siglip2-base-patch16-224", "siglip")
    network_class = "SiglipModel"

    def _look(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        seen = self.network.vision_model(pixels, output_hidden_states=True)
        return seen.pooler_output, _patches(seen, first=0)

    def _read(self, texts: Sequence[str]) -> Tensor:
        lower = [text.lower() for text in texts]  # as it was trained; the hub's tokenizers leave it to us
        ids = self._ids(lower, self.network.config.text_config.max_position_embeddings)
        found: Tensor = self.network.text_model(ids).pooler_output
        return found


class Dinov2Encoder(HubEncoder):
    """DINOv2 (Oquab et al. 2023): images alone, told apart without any caption."""

    kind = EncoderKind("dinov2", "facebook/dinov2-base", "dinov2", reads_texts=False)
    network_class = "Dinov2Model"

    def aligned(self, images: Sequence[Image.Image]) -> None:
        """None: it shares no space with texts."""

    def texts(self, texts: Sequence[str]) -> None:
        """None: it reads none."""

    def _look(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        seen = self.network(pixels, output_hidden_states=True)
        return seen.pooler_output, _patches(seen, first=1)

    def _read(self, texts: Sequence[str]) -> Tensor:
        raise NotImplementedError


class PocketEncoder(TowerEncoder):
    """The pair that the pocket base's texts were learned with; it knows the pocket world alone."""

    def __init__(self, model: str, device: torch.device) -> None:
        if model:
            raise StudioError(
                f"the encoder pocket ships with the package, so it is read from nowhere else ({shown(model)})"
                "; leave that out, or name the encoder that it is: clip, siglip2 or dinov2."
            )
        from safetensors.torch import load_file
        from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

        how: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
        images, texts = POCKET_FOLDER / "image_encoder", POCKET_FOLDER / "text_encoder"
        projection = images / "text_projection.safetensors"
        self.name, self.device = "pocket", device
        self.digest = digest_of_files([images / "model.safetensors", projection, texts / "model.safetensors"])
        self.vision = CLIPVisionModelWithProjection.from_pretrained(images, **how).eval().to(device)
        self.text = CLIPTextModel.from_pretrained(texts, **how).eval().to(device)
        self.projection = load_file(projection)["text_projection.weight"].float().to(device)
        self.tokenizer = CLIPTokenizer.from_pretrained(POCKET_FOLDER / "tokenizer", local_files_only=True)
        side = self.vision.config.image_size
        half = (0.5, 0.5, 0.5)
        self.pixels = Pixels(side, (side, side), Image.Resampling.BICUBIC, 1 / 255, half, half)

    def _look(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        seen = self.vision(pixels, output_hidden_states=True)
        return seen.image_embeds, _patches(seen, first=1)

    def _read(self, texts: Sequence[str]) -> Tensor:
        how = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        length = self.text.config.max_position_embeddings
        ids = self.tokenizer(list(texts), max_length=length, **how).input_ids.to(self.device)
        found: Tensor = self.text(ids).pooler_output @ self.projection.T
        return found


def _patches(seen: Any, *, first: int) -> tuple[Tensor, ...]:
    """After the embeddings and each layer, without the tokens in front that are no patches."""
    return tuple(one[:, first:] for one in seen.hidden_states)


def _network(folder: EncoderFolder, network_class: str) -> Any:
    import transformers

    how = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    made = getattr(transformers, network_class)
    try:
        network, about = made.from_pretrained(folder.path, output_loading_info=True, **how)
    except Exception as error:  # whatever the library makes of a damaged file
        what = f"the encoder in {shown(str(folder.path))} cannot be loaded ({shown(reason_of(error))})"
        raise StudioError(f"{what}; download it again.") from None
    if lacking := sorted(about["missing_keys"]):  # which transformers would fill with noise
        what = f"the weights in {shown(str(folder.path))} lack {shown(lacking[0])}"
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise StudioError(f"{what}{more}; download the encoder again.")
    return network.eval()


def _tokenizer(folder: EncoderFolder) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder.path, local_files_only=True)
    except Exception as error:  # as above
        what = f"the tokenizer in {shown(str(folder.path))} cannot be loaded ({shown(reason_of(error))})"
        raise StudioError(f"{what}; download the encoder again.") from None
