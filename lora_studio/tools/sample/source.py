"""What images are drawn from: a LoRA file on its base, or a run's base with what its checkpoints hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lora_studio.errors import RecipeError, StudioError
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.files import digest
from lora_studio.lora_file.lora_file import LoraFile, base_layers, lora_file, refuse_part
from lora_studio.lora_file.open import fits, in_base_names, unknown_layers
from lora_studio.pocket import EMBEDDED, embedded_base
from lora_studio.processes import default_precision, find_device
from lora_studio.recipe import Recipe
from lora_studio.recipe.run_recipe import RUN_RECIPE
from lora_studio.recipe.training import SamplesConfig
from lora_studio.runs import ReadOnlyRun, Run, step_of
from lora_studio.runs.reading import STATE
from lora_studio.tensor_file.header import read_header
from lora_studio.training.evaluating.artist import WeightChange, added, at_strength, strength_fault
from lora_studio.training.finish.export import Checkpoint, checkpoint_of, finished_recipe, revive
from lora_studio.training.loop.state import load_state
from lora_studio.training.prepare.base_model import base_of
from lora_studio.verify.uis import base_of_file
from lora_studio.verify.uis.findings import is_embedding

AXES = ("prompts", "strengths", "checkpoints")
POCKET_SAMPLES = SamplesConfig(guidance=4, steps=20)  # as their cards have it


@dataclass(frozen=True)
class SampleRequest:
    """What is drawn; what is empty or None is as the run has it, or as is usual for the base."""

    prompts: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()  # empty: 1
    checkpoints: tuple[Checkpoint, ...] = ()
    seeds: tuple[int, ...] = ()
    grid: frozenset[str] = frozenset()  # of AXES: several of what is not given
    negative_prompt: str | None = None
    steps: int | None = None
    guidance: float | None = None
    side: int | None = None  # pixels
    base: str | None = None  # of a file
    device: str = ""
    folder: Path | None = None  # None: samples/ in the run, <name>_samples beside a file
    fingerprint: bool = (
        False  # whether `SampleSource.base_fingerprint` is wanted, which reads all of the base
    )


class SampleSource(ABC):
    """A base, and something that can be in it."""

    family: ModelFamily
    samples: SamplesConfig  # as it is usually drawn, with prompts of its own
    side: int  # pixels
    folder: Path  # for its images
    base_name: str  # as a recipe or --base names it
    base_fingerprint: str = ""  # of all that the base's own images depend on but the call, if it was wanted
    lacking_words: tuple[str, ...] = ()  # that its run learned, and it does not have
    recipe: Recipe | None  # of the run that made it, if that is there
    run: Run | None

    @abstractmethod
    def steps_of(self, wanted: Sequence[Checkpoint], *, everything: bool) -> list[int | None]:
        """The steps of the checkpoints; of a file None. Raises StudioError for those that are not there."""

    @abstractmethod
    def check(self, strengths: Iterable[float]) -> None:
        """Raises StudioError for strengths that it cannot be shown with."""

    @abstractmethod
    def learned(self, step: int | None) -> str:
        """SHA-256 of the checkpoint or the file."""

    @abstractmethod
    def drawing(self, step: int | None, strength: float | None) -> AbstractContextManager[ModelFamily]:
        """Within it the family with what was learned, or without a strength as it is by itself."""


def open_source(target: Path, request: SampleRequest) -> SampleSource:
    """A run's folder, or a LoRA file. Raises StudioError for anything else."""
    if (target / RUN_RECIPE).is_file():
        if request.base is not None:
            raise RecipeError("--base is for a file; a run has the base that it was trained on.")
        return RunSource(target, request)
    if target.is_dir():
        raise StudioError(f"{target} is no run's folder; give one, such as runs/my_style, or a LoRA file.")
    return FileSource(target, request)


class RunSource(SampleSource):
    """With any kind of adapter, and learned tokens."""

    def __init__(self, folder: Path, request: SampleRequest) -> None:
        self.run = self._run = run = ReadOnlyRun(folder)
        recipe = finished_recipe(run)
        if request.device:
            machine = recipe.machine.model_copy(update={"device": request.device})
            recipe = recipe.model_copy(update={"machine": machine})

        def look(family: ModelFamily) -> None:
            self.base_fingerprint = family.drawing_fingerprint() if request.fingerprint else ""

        self._trained, self._state = revive(run, recipe, on_base=look)
        self._loaded: int | None = None
        self.recipe, self.base_name = recipe, recipe.base.model
        self.family, self.samples, self.side = self._trained.family, recipe.samples, recipe.data.resolution
        if not self.samples.prompts and recipe.data.trigger:
            self.samples = self.samples.model_copy(update={"prompts": (recipe.data.trigger,)})
        self.folder = folder / "samples"

    def steps_of(self, wanted: Sequence[Checkpoint], *, everything: bool) -> list[int | None]:
        if everything and not wanted:
            wanted = [step_of(path) for path in self._run.checkpoints()]
        return list(dict.fromkeys(checkpoint_of(self._run, one)[1] for one in wanted or [None]))

    def check(self, strengths: Iterable[float]) -> None:
        if fault := strength_fault(self._trained, strengths):
            raise StudioError(f"{fault}.")

    def learned(self, step: int | None) -> str:
        """Of the state, which has the digests of all else in the checkpoint."""
        return digest(checkpoint_of(self._run, step)[0] / STATE)

    @contextmanager
    def drawing(self, step: int | None, strength: float | None) -> Iterator[ModelFamily]:
        """At strength 1 through the adapters, else with their changes in the weights; words as learned."""
        adapters = self._trained.adapters
        if strength is None:
            with adapters.disabled():
                yield self.family
            return
        if step != self._loaded:
            load_state(checkpoint_of(self._run, step)[0], self._state)
            self._loaded = step
        with self._state.shown(), at_strength(adapters, strength):
            yield self.family


class FileSource(SampleSource):
    """A LoRA file from anywhere, added to the base's weights as UIs do."""

    def __init__(self, path: Path, request: SampleRequest) -> None:
        if request.checkpoints or "checkpoints" in request.grid:  # before the base is read
            raise RecipeError("a file has no checkpoints; give the folder of its run.")
        header = read_header(path)
        if is_embedding(header):
            raise StudioError(f"{path.name} is an embedding; give the folder of the run that made it.")
        file = lora_file(header)
        refuse_part(file)
        self._file, run = file, ReadOnlyRun(path.parent)
        self.run = run if (run.folder / RUN_RECIPE).is_file() else None
        self.recipe = None if self.run is None else finished_recipe(self.run)
        self.lacking_words = tuple(one.token for one in self.recipe.tokens) if self.recipe else ()
        self.base_name = _base_name(file, request, self.recipe)
        self.family, self.samples, self.side = self._base(request)
        if request.fingerprint:
            self.base_fingerprint = self.family.drawing_fingerprint()
        self.folder = path.with_name(f"{path.stem}_samples")
        if not self.samples.prompts and file.trigger:
            self.samples = self.samples.model_copy(update={"prompts": (file.trigger,)})
        self._changes = _changes(file, self.family)

    def steps_of(self, wanted: Sequence[Checkpoint], *, everything: bool) -> list[int | None]:
        return [None]

    def check(self, strengths: Iterable[float]) -> None:
        """It can be shown with any."""

    def learned(self, step: int | None) -> str:
        """Of the file's bytes."""
        return digest(self._file.path)

    def _base(self, request: SampleRequest) -> tuple[ModelFamily, SamplesConfig, int]:
        """On the device, with how it is drawn and the side in pixels, of the run's if it is that base."""
        device = find_device(request.device)
        if device is None:
            raise RecipeError(f'--device is {request.device!r}, which this machine does not have; use "cpu".')
        dtype, model, recipe = default_precision(device), self.base_name, self.recipe
        if recipe is not None and request.base is None:
            family, samples, side = base_of(recipe, dtype=dtype), recipe.samples, recipe.data.resolution
        else:
            family = load_base(model, dtype=dtype)
            samples, side = POCKET_SAMPLES if model in EMBEDDED else SamplesConfig(), family.native_side
        family.place(device, family.denoiser)
        return family, samples, side

    @contextmanager
    def drawing(self, step: int | None, strength: float | None) -> Iterator[ModelFamily]:
        with added(self._changes if strength else (), strength or 0.0):
            yield self.family


def _base_name(file: LoraFile, request: SampleRequest, recipe: Recipe | None) -> str:
    """As named with --base, by the run's recipe beside the file, or by the file if it is in the package."""
    if model := request.base or (recipe.base.model if recipe else embedded_base(file.metadata)):
        return model
    kind = base_of_file(file).title
    raise RecipeError(f"{file.name} does not say which base it is for ({kind}); name it with --base.")


def _changes(file: LoraFile, family: ModelFamily) -> list[WeightChange]:
    """Raises StudioError for a file that is damaged, or of another kind of base."""
    file, layers, changes = in_base_names(file), base_layers(family), list[WeightChange]()
    if fault := unknown_layers(file, layers):
        raise StudioError(fault)
    if not file.layers:
        raise StudioError(f"{file.name} holds no layer of a LoRA; `lora-studio verify` says more.")
    for name, layer in file.layers.items():
        weight = layers[name].weight
        fault = next(iter(layer.faults(any_dtype=True)), "")
        if layer.state == "not finite":
            fault = "it is not finite"
        elif not fault and layer.size and not fits(layer.size, weight.shape):
            fault = f"it changes a weight of {layer.size}, but this base's is {tuple(weight.shape)}"
        if fault:
            raise StudioError(f"{name} of {file.name}: {fault}; `lora-studio verify` says more.")
        changes.append((weight, partial(layer.delta, weight)))
    return changes
