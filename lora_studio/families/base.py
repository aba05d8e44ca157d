"""The seam between the trainer and a base model: four methods and four facts."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from lora_studio.families.layer_names.transformers import TransformerLayout

from lora_studio.families.fingerprints import (
    PartSource,
    in_float32,
    is_dropped,
    part_fingerprint,
    reading_fingerprint,
)
from lora_studio.families.stored import cast_weights, drop_weights
from lora_studio.objectives.base import Objective, ObjectiveOptions
from lora_studio.quantization import has_tensors, linear_paths
from lora_studio.rng import generator

Conditioning = dict[str, "Tensor"]
"""The text side, batch first. Only the family that wrote it reads it; cache and loop just carry it.

On the family's device, but for masks (bool), which a run keeps in main memory.
"""
PromptTensors = dict[str, "Tensor | list[Tensor]"]
PIPELINE = "pipeline"  # beside the parts' configurations: what a diffusers folder says of its own
Parts = dict[str, "nn.Module"]
Arrange = Callable[["nn.Module"], Callable[[], None]]  # what undoes it
Tokenizers = dict[str, "PreTrainedTokenizerBase"]


@dataclass(frozen=True)
class FileTraits:
    """What a LoRA file of this family says about its base in its metadata, in the words that UIs know."""

    base_model_version: str  # ss_base_model_version
    is_v2: bool  # ss_v2
    architecture: str  # modelspec.architecture
    prediction_type: str  # modelspec.prediction_type; empty: the key is left out, as for flow matching
    implementation: str = "https://github.com/Stability-AI/generative-models"  # modelspec.implementation


class SameInput(NamedTuple):
    """The endings of the paths of layers that get the same input: those side by side, or all with them."""

    endings: tuple[str, ...]
    argument: str = ""  # of the part's forward pass, if that is what all of them get


class UsualSampling(NamedTuple):
    """With what a base is sampled by default."""

    steps: int
    guidance: float  # classifier-free, as UIs count it: 1 is none


class ProbeInputs(NamedTuple):
    """What a denoiser is asked when its predictions are compared; always the same for a family."""

    latents: Tensor  # [2, C, h, w], float32
    timestep: Tensor  # [2]: an early and a late one
    geometry: Tensor  # [2, 6]


@dataclass(frozen=True)
class Miniature:
    """A tiny random denoiser of a family's kind, to try what a machine can do."""

    denoiser: nn.Module
    endings: tuple[str, ...]  # of the paths of its layers that learn
    predict: Callable[[torch.device, torch.dtype], Tensor]  # for inputs that are always the same


def random_network(make: Callable[..., nn.Module], **sizes: object) -> nn.Module:
    """Frozen, of these sizes, with random weights that are always the same; no other draw is changed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(**sizes).requires_grad_(False).eval()


def self_test_inputs(
    shapes: Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Normal numbers for a miniature's inputs of these shapes, always the same."""
    import torch

    return [
        torch.randn(shape, generator=generator("self-test", shape[1])).to(device, dtype) for shape in shapes
    ]


def innermost_blocks(denoiser: nn.Module) -> Iterator[nn.Module]:
    """The innermost of the blocks that diffusers keeps whole: what is compiled, sharded and offloaded."""
    names = set(getattr(denoiser, "_no_split_modules", None) or ())
    for module in denoiser.modules():
        inside = (one for one in module.modules() if one is not module)
        if type(module).__name__ in names and not any(type(one).__name__ in names for one in inside):
            yield module


class ModelFamily(ABC):
    """A frozen base: its `parts` by their diffusers names, and what is asked of them."""

    denoiser: ClassVar[str]  # the part that is trained by default
    needs: ClassVar[tuple[str, ...]]  # parts, tokenizers and scheduler that a diffusers folder of it has
    # Text encoder -> what UIs call its vectors in a learned token's file; empty: none can be learned.
    embedding_keys: ClassVar[Mapping[str, str]] = {}
    card_version: ClassVar[str] = ""  # what A1111 and Forge call it in the file of facts beside a LoRA
    # What it predicts -> what a finished file says about its base.
    file_traits: ClassVar[Mapping[str, FileTraits]] = {}
    # How its LoRA files name the layers, if they do not have them by `ui_name` one by one.
    file_layout: ClassVar[TransformerLayout | None] = None
    # Name of a choice of blocks -> part -> patterns of the layers that learn then, and no others.
    block_choices: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {}
    # Whether some of its bases make images in a few steps, which their weights do not show.
    has_distilled: ClassVar[bool] = False
    undistilled: ClassVar[str] = ""  # on the hub, what to train on for those
    # Whether its parts are so large that each is read when its turn comes, and fingerprinted by its files.
    staged: ClassVar[bool] = False
    most_chunks: ClassVar[int] = 1  # windows that captions can fill; 1: they are read in one go

    max_chunks: int = 1  # windows of its text encoder that a caption may fill; to be set before encoding
    distilled: bool = False  # it makes its images in a few steps
    told_distilled: bool | None = None  # so the folder's own index says, if it does
    pinned_parts: frozenset[str] = frozenset()  # that stay where they are, whatever `place` is told
    is_spread: bool = False  # over several processes, which all have to run it at once
    notes: tuple[str, ...] = ()  # what its user should know of how it was read, in short sentences
    _device: torch.device | None = None
    _on_device: tuple[str, ...] | None = None  # all parts, where they were loaded
    _precision: torch.dtype | None = None  # as it was loaded

    def __init__(
        self, parts: Parts, tokenizers: Tokenizers, *, source: str, scheduler: Mapping[str, object]
    ) -> None:
        self.parts, self.tokenizers, self.source = parts, tokenizers, source
        self.scheduler = dict(scheduler)
        self.sources: dict[str, PartSource] = {}  # of parts that are as their files have them
        self.kept_texts: dict[str, Conditioning] = {}  # caption -> on the CPU
        self.kept_prompts: dict[tuple[str, str, bool], PromptTensors] = {}  # what `encode_prompt` was asked
        # Of a staged family: part -> how it comes from main memory, where it is read, to the device.
        self.arranged: dict[str, Arrange] = {}
        self._undo: dict[str, Callable[[], None]] = {}
        for part in parts.values():
            part.requires_grad_(False)
            part.eval()

    @classmethod
    @abstractmethod
    def recognises(cls, configurations: dict[str, dict[str, object]]) -> bool:
        """Whether configurations (by part, plus "scheduler") without a `refusal` are of this family.

        The denoiser's own class is looked at first: no base is recognised by two families.
        """

    @classmethod
    def refusal(cls, configurations: Mapping[str, Mapping[str, object]]) -> str:
        """Why a base of this family's kind, or of a relative of it, cannot be trained; empty if it can.

        Empty, too, for bases with the denoiser of others.
        """
        return ""

    @property
    @abstractmethod
    def native_side(self) -> int:
        """Side in pixels of the square images the base was made for."""

    @property
    @abstractmethod
    def pixels_per_latent(self) -> int:
        """How many times an image's side is its latents'."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Bucket sides are multiples of this many pixels."""

    @property
    @abstractmethod
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Part -> the endings of the module paths that learn."""

    @property
    def guidance_rescale(self) -> float:
        """How far its pipeline scales a guided prediction back to the other's spread: 0 not, 1 fully."""
        return 0.0

    @property
    def seems_distilled(self) -> bool | None:
        """As `distilled`, by its own configuration; None: that does not tell."""
        return self.told_distilled

    @property
    def usual_sampling(self) -> UsualSampling:
        return UsualSampling(25, 7.5)

    @property
    def reads_negative_prompts(self) -> bool:
        return True

    def guided_by(self, guidance: float) -> dict[str, object]:
        """What its pipeline takes for classifier-free guidance of this strength, of which 1 is none."""
        return {"guidance_scale": guidance}

    @property
    def convolutions(self) -> dict[str, tuple[str, ...]]:
        """Part -> the endings of further layers that learn where convolutions are adapted, too."""
        return {}

    def quantised_paths(self) -> list[str]:
        """Of the denoiser's linear layers that can be kept in fewer bits."""
        return linear_paths(self.parts[self.denoiser], self.targets[self.denoiser])

    @property
    def together(self) -> dict[str, tuple[SameInput, ...]]:
        """Part -> which of its layers get the same input."""
        return {}

    @property
    def unread(self) -> dict[str, tuple[str, ...]]:
        """Part -> how the canonical paths begin of layers whose output nothing reads."""
        return {}

    def own_layers(self, part: str) -> tuple[str, ...]:
        """Paths of a part's layers that have tensors of their own and act on its output.

        Not the part itself, whose tensors, such as what fills up a row of tokens, are no layer's.
        """
        idle = self.unread.get(part, ())
        return tuple(
            path
            for path, module in self.parts[part].named_modules()
            if path and has_tensors(module) and not self.canonical_path(part, path).startswith(idle)
        )

    @property
    @abstractmethod
    def traits(self) -> FileTraits:
        """What a finished file says about its base."""

    @abstractmethod
    def objective(self, options: ObjectiveOptions) -> Objective:
        """The objective the base was trained with, weighted as asked."""

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] in -1..1 -> mean and standard deviation of the latents, each [B, C, h, w].

        Scaled as the denoiser was trained. Both, so that a cache can hold the distribution and every step can
        draw its own sample.
        """

    @abstractmethod
    def encode_text(self, captions: list[str], *, like: Sequence[str] = ()) -> Conditioning:
        """Captions -> conditioning as long as the longest of `captions` and `like`; gradients may flow."""

    @abstractmethod
    def join(self, rows: Sequence[Conditioning], empty: Conditioning) -> Conditioning:
        """One batch of captions' conditioning [1, ...], each as it is alone; `empty`: an empty caption's."""

    @abstractmethod
    def denoise(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning, geometry: Tensor
    ) -> Tensor:
        """[B, C, h, w], [B], conditioning, [B, 6] -> the denoiser's prediction [B, C, h, w]."""

    @abstractmethod
    def probe_inputs(self) -> ProbeInputs:
        """On the CPU."""

    @classmethod
    @abstractmethod
    def miniature(cls) -> Miniature:
        """Frozen, float32, on the CPU, always with the same weights."""

    @abstractmethod
    def canonical_path(self, part: str, path: str) -> str:
        """A module's path as today's libraries spell it -> its spelling in our files, which never changes."""

    @abstractmethod
    def ui_name(self, part: str, path: str) -> str:
        """What UIs call the layer at a canonical path, without the tensor's ending."""

    def layer(self, part: str, path: str) -> nn.Module:
        modules = self.parts[part].named_modules()
        return next(module for own, module in modules if self.canonical_path(part, own) == path)

    @abstractmethod
    def original_tensors(self) -> dict[str, Tensor]:
        """All of the base under its names in a single file, as UIs load it; BaseModelError if it has none."""

    def companions(self, layers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Parts and canonical paths of layers that UIs want in a file that has these, though untrained."""
        return []

    @abstractmethod
    def pipeline(self) -> DiffusionPipeline:
        """A diffusers pipeline over the same parts (not copies), for previews."""

    @abstractmethod
    def encode_prompt(
        self, pipeline: DiffusionPipeline, prompt: str, negative_prompt: str, *, guided: bool
    ) -> PromptTensors:
        """What its pipeline takes in place of a prompt, so that it needs no text encoder any more.

        Batch first, or one tensor in a list where its pipeline takes a list of unequal ones. `guided`: with
        classifier-free guidance, for which alone the negative prompt is encoded.
        """

    @property
    def text_encoders(self) -> list[str]:
        return [name for name in self.parts if name.startswith("text_encoder")]

    @property
    def caption_tokenizers(self) -> Tokenizers:
        """Those whose `model_max_length` says how much of a caption is read."""
        return self.tokenizers

    def tokenizer_of(self, text_encoder: str) -> PreTrainedTokenizerBase:
        return self.tokenizers[text_encoder.replace("text_encoder", "tokenizer")]

    def keep_texts(self, captions: Sequence[str]) -> None:
        """Of a staged family: encode them now, so that `conditioning_of` needs no text encoder for them."""
        if wanted := [one for one in captions if self.staged and one not in self.kept_texts]:
            with self.placed(*self.text_encoders):
                for caption in wanted:
                    found = self.encode_text([caption])
                    self.kept_texts[caption] = {name: tensor.cpu() for name, tensor in found.items()}

    def conditioning_of(self, captions: list[str]) -> Conditioning:
        """As `encode_text`, of which some was kept."""
        if any(one not in self.kept_texts for one in captions):
            return self.encode_text(captions)
        rows = [self.kept_texts[one] for one in captions]
        return {name: tensor.to(self.device) for name, tensor in self.join(rows, rows[0]).items()}

    @property
    def probed(self) -> list[str]:
        """The parts that a prediction takes."""
        return [self.denoiser] if self.staged else [name for name in self.parts if name != "vae"]

    def fingerprint(self, part: str) -> str:
        """sha256 over a part's class, scale and weights: the key of everything that is cached from it."""
        return part_fingerprint(self.parts[part], self.sources.get(part))

    def text_fingerprint(self) -> str:
        """Of all that conditioning depends on but the caption: every text encoder, and how it reads."""
        encoders = [self.fingerprint(name) for name in sorted(self.text_encoders)]
        return "+".join([*encoders, self._reading(), f"{self.max_chunks} chunks"])

    def drawing_fingerprint(self) -> str:
        """Of all that the base's own images depend on but the call: every part, how it reads, and its noise.

        The noise as its pipeline steps through it, so that what a scheduler leaves unsaid is what it means.
        """
        scheduler: Mapping[str, object] = self.pipeline().scheduler.config
        noise = {key: value for key, value in scheduler.items() if not key.startswith("_")}
        steps = hashlib.sha256(json.dumps(noise, sort_keys=True).encode()).hexdigest()
        return "+".join([*(self.fingerprint(part) for part in sorted(self.parts)), self._reading(), steps])

    def _reading(self) -> str:
        return reading_fingerprint({name: self.parts[name] for name in self.text_encoders}, self.tokenizers)

    def exact(self, part: str, names: Sequence[str]) -> dict[str, Tensor]:
        """An unadapted part's tensors in float32, of which no digit is lost: what is cast is read again."""
        module, source = self.parts[part], self.sources.get(part)
        if source is None or (in_float32(module) and not is_dropped(module)):
            state = module.state_dict()
            return {name: state[name].float() for name in names}
        return source.stored.exact(names)

    def await_weights(self, dtype: torch.dtype) -> None:
        """All parts have shapes only from now on, until each is placed; weights come in `dtype`."""
        self._precision, self._on_device = dtype, ()
        for name, part in self.parts.items():
            if name in self.sources:
                drop_weights(part, self.dtype_of(name))

    def is_awaited(self, part: str) -> bool:
        """Whether it is one of a staged family that has shapes only yet."""
        return self.staged and part in self.sources and is_dropped(self.parts[part])

    def read_denoiser(
        self, device: torch.device, shrink: Callable[[list[str]], None], paths: Sequence[str]
    ) -> None:
        """Read it onto the device block by block, with `shrink` for those of these layers in each block."""
        part = self.parts[self.denoiser]
        blocks = set(innermost_blocks(part))
        starts = [f"{path}." for path, module in part.named_modules() if module in blocks]
        names = list(part.state_dict())
        pieces = [[name for name in names if name.startswith(start)] for start in starts]
        inside = {name for piece in pieces for name in piece}
        pieces.append([name for name in names if name not in inside])
        places = [[path for path in paths if path.startswith(start)] for start in starts]
        places.append([path for path in paths if not path.startswith(tuple(starts))])
        source, dtype = self.sources[self.denoiser], self.dtype_of(self.denoiser)
        for layers, _ in zip(places, source.read_in_pieces(part, pieces, dtype, device), strict=True):
            shrink(layers)

    def drop(self, *names: str) -> None:
        """Let go of the weights of unadapted parts, which `place` reads again when they are wanted."""
        for name in names:
            if name in self.sources and name not in self.pinned_parts:
                drop_weights(self.parts[name])
                self._undo.pop(name, lambda: None)()

    def whole(self, part: str) -> nn.Module:
        """A part with its weights, which are read again if they were dropped."""
        module = self.parts[part]
        if is_dropped(module) and part in self.sources:
            self.sources[part].read_again(module, self.dtype_of(part))
        return module

    def cast(self, dtype: torch.dtype) -> None:
        """Every part but the VAE in `dtype`, where it lies: half precision overflows in some VAEs."""
        self._precision = dtype
        for name, part in self.parts.items():
            if is_dropped(part) and name in self.sources:  # it will be read so
                continue
            if next(part.parameters()).dtype != self.dtype_of(name):
                cast_weights(part, self.dtype_of(name))

    def dtype_of(self, part: str) -> torch.dtype:
        """Of its frozen weights."""
        import torch

        return torch.float32 if part == "vae" else self.precision

    def borrow(self, owner: ModelFamily) -> None:
        """Use the parts of another of the same base, as that has them and where they lie."""
        self.parts, self._device, self._precision = owner.parts, owner.device, owner.precision
        self.sources, self.kept_texts = owner.sources, owner.kept_texts
        self.pinned_parts, self.arranged, self._undo = owner.pinned_parts, owner.arranged, owner._undo

    def place(self, device: torch.device, *names: str) -> None:
        """Have these parts on the device; first the others go to main memory. Only what moves is visited."""
        import torch

        self._device, self._on_device = device, names
        leaving = [name for name in self.parts if name not in names]
        for wanted, place in ((leaving, torch.device("cpu")), (names, device)):
            for name in wanted:
                part = self.parts[name]
                if is_dropped(part):
                    if wanted is leaving or name not in self.sources:
                        continue
                    at_once = self.staged and name not in self.arranged
                    to, copies = device if at_once else None, self.staged and name == self.denoiser
                    # whose layers are laid elsewhere: of a mapped file they would be there twice
                    self.sources[name].read_again(part, self.dtype_of(name), to, copies=copies)
                    if name in self.arranged:
                        self._undo[name] = self.arranged[name](part)
                elif wanted is leaving and self.staged and name in self.sources and name != self.denoiser:
                    self.drop(name)
                    continue
                if name not in self.pinned_parts and next(part.parameters()).device != place:
                    part.to(place)

    @contextmanager
    def placed(self, *names: str) -> Iterator[None]:
        """Within it these parts are on the device, and no others; afterwards it is as it was before."""
        device, before = self.device, self._on_device
        try:
            self.place(device, *names)  # which may run out of memory, with some of them moved
            yield
        finally:
            self.place(device, *(self.parts if before is None else before))

    def also_placed(self, *names: str) -> AbstractContextManager[None]:
        """As `placed`, but what is on the device stays there."""
        return self.placed(*dict.fromkeys((*self.on_device, *names)))

    @property
    def on_device(self) -> tuple[str, ...]:
        """The parts that are where `place` wants them to work; all, where none was moved."""
        return tuple(self.parts) if self._on_device is None else self._on_device

    @property
    def precision(self) -> torch.dtype:
        """Of its frozen weights, the VAE's left out; layers that are trained themselves have float32."""
        return self._precision or next(self.parts[self.denoiser].parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where its parts work: as `place` said, or where the denoiser lies."""
        return self._device or next(self.parts[self.denoiser].parameters()).device
