"""Runs whose effect is known: shipped recipes, methods with one change, and ones that are made to go wrong.

What `agreement.py` and `planted.py` train and draw, each once: a run that went to its end is not trained
again, and an image that was drawn is kept as a PNG.
"""

from __future__ import annotations

import ast
import inspect
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from diffusers import StableDiffusionPipeline
from experiments import Question, style_questions, subject_questions
from images import DEFAULT_BASE, LORA_GUIDANCE, Prompt, generate, load_pipeline
from methods import METHODS, STYLE_RECIPE, SUBJECT_RECIPE, Method, slug_of
from PIL import Image
from trained import trained

from lora_studio.pocket.samples import (
    FLOW_STYLE,
    STYLE,
    STYLE_FOLDER,
    SUBJECT,
    SUBJECT_FOLDER,
    TRIGGERS,
)
from lora_studio.pocket.scenes import NATIVE, draw, held_out_scenes, sample_scene
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import PRESET_FOLDER, load_recipe

SAMPLES = Path(__file__).parents[1] / "sample_images"
ARMS = ("called", "plain")
QUESTIONS, SEEDS = 24, (0, 500_000)  # prompts of each arm; what is added to a prompt's own seed
REFERENCES = 24
FEW_OF_STYLE, MEMORISES, OTHER_STYLE = "style, four images", "subject, four images", "another style"
FEW = {
    FEW_OF_STYLE: (
        "objective.preservation=0",
        "objective.timestep_range=[0,1]",
        "training.steps=800",
        "training.batch_size=4",
        "training.learning_rate=2e-3",
        "training.checkpoint_every=100",
    ),
    MEMORISES: (
        "objective.preservation=0",
        "adapter.rank=32",
        "adapter.alpha=32",
        "training.steps=800",
        "training.batch_size=4",
        "training.checkpoint_every=200",
    ),
}
"""Runs of few images and many steps, with rates and ranks that are high for as many."""
_FEW_IMAGES = {FEW_OF_STYLE: ("01_", "05_", "09_", "12_"), MEMORISES: ("01_", "02_", "06_", "11_")}
OTHER = (f"data.images={SAMPLES / f'style_{FLOW_STYLE}'}", f"data.trigger={TRIGGERS[FLOW_STYLE]}")
_REFERENCE_SEED = 77  # not the questions'


@dataclass(frozen=True)
class Known:
    """A run, and what it was taught: `style` of the pocket world, or the subject."""

    name: str
    seed: int

    @property
    def slug(self) -> str:
        """Of its files and folders."""
        return f"{slug_of(self.name)}_{self.seed}"

    @property
    def style(self) -> str:
        """Empty for the subject."""
        if self.name == OTHER_STYLE:
            return FLOW_STYLE
        return "" if self.name.startswith("subject") else STYLE

    def recipe(self, runs: Path) -> Recipe:
        """What is trained. The folder of few images is made in `runs` if need be."""
        recipe = STYLE_RECIPE if self.style else SUBJECT_RECIPE
        one = METHODS.get(self.name) or Method(recipe, self._changes(runs))
        changes = (*one.changes, f"training.seed={self.seed}", "samples.prompts=[]")
        return load_recipe(PRESET_FOLDER / f"{one.recipe}.toml", changes=changes)

    def _changes(self, runs: Path) -> tuple[str, ...]:
        if self.name == OTHER_STYLE:
            return OTHER
        return (f"data.images={few_images(self.name, runs)}", *FEW[self.name])

    def train(self, runs: Path) -> Path:
        """The LoRA file of the run in `runs`; it goes on where it stopped. Raises SystemExit if it stops."""
        return trained(self.recipe(runs), runs / self.slug)

    def questions(self) -> list[Question]:
        """`QUESTIONS` of `methods.py`'s 48."""
        if not self.style:
            return subject_questions(2 * QUESTIONS, 0)[::2]
        return style_questions(2 * QUESTIONS, 0, self.style)[:QUESTIONS]

    def references(self) -> list[Image.Image]:
        """Renders of what was taught, of scenes that no training image has."""
        scenes = held_out_scenes(REFERENCES, seed=_REFERENCE_SEED)
        if self.style:
            return [draw(one, NATIVE, NATIVE, style=self.style) for one in scenes]
        shown = [
            sample_scene(number, name=SUBJECT, colour="red", background=one.background, pairs=0.0)
            for number, one in enumerate(scenes, start=_REFERENCE_SEED * 10**6)
        ]
        return [draw(one, NATIVE, NATIVE) for one in shown]

    def training_images(self, runs: Path) -> list[Path]:
        """What it was trained on."""
        folder = self.recipe(runs).data.images
        assert folder is not None
        return sorted(one for one in folder.iterdir() if one.suffix != ".txt")


def meaning_of(*things: ModuleType | Callable[..., object]) -> str:
    """What modules and functions do, whatever their comments and docstrings say."""
    trees = [ast.parse(inspect.getsource(one)) for one in things]
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.Module) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
    return "\n".join(map(ast.dump, trees))


def few_images(name: str, runs: Path) -> Path:
    """A folder with four of the samples' images and their captions, for a run of `FEW`."""
    folder = runs / ("four" if name == FEW_OF_STYLE else "four_bolt")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((SAMPLES / (STYLE_FOLDER if name == FEW_OF_STYLE else SUBJECT_FOLDER)).iterdir()):
        if path.name.startswith(_FEW_IMAGES[name]) and not (folder / path.name).is_file():
            shutil.copy(path, folder)
    return folder


def drawn(known: Known, file: Path | None, folder: Path) -> dict[str, list[Image.Image]]:
    """By arm the images of all questions, [question, seed] in order, of the base or of a file on it.

    They are kept as PNGs below `folder`.
    """
    questions, found, pipe = known.questions(), dict[str, list[Image.Image]](), None
    for arm in ARMS:
        texts = [one.with_trigger if arm == "called" else one.without_trigger for one in questions]
        by_seed = list[list[Image.Image]]()
        for added in SEEDS:
            place = folder / (arm if not added else f"{arm}_other")
            paths = [place / f"{number:03}.png" for number in range(len(questions))]
            if not all(path.is_file() for path in paths):
                pipe = pipe or _pipeline(file)
                prompts = [Prompt(text, one.seed + added) for text, one in zip(texts, questions, strict=True)]
                name = f"{folder.name}, {place.name}"
                _keep(generate(pipe, prompts, guidance=LORA_GUIDANCE, name=name), paths)
            by_seed.append([Image.open(path).convert("RGB") for path in paths])
        found[arm] = [image for images in zip(*by_seed, strict=True) for image in images]
    return found


def _keep(images: Sequence[Image.Image], paths: Sequence[Path]) -> None:
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for image, path in zip(images, paths, strict=True):
        image.save(path)


def _pipeline(file: Path | None) -> StableDiffusionPipeline:
    """The base, with a file's layers in its weights."""
    if file is None:
        return _base()
    pipe = load_pipeline(DEFAULT_BASE)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe


@cache
def _base() -> StableDiffusionPipeline:
    return load_pipeline(DEFAULT_BASE)
