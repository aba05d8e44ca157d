"""No option of [data] is inert: each changes what the steps are fed with, or names the test that shows it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import recipe_text

from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.pocket.scenes import draw, sample_scene
from lora_studio.processes import ALONE
from lora_studio.recipe import options
from lora_studio.recipe.data import SourceConfig
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.machine import Machine
from lora_studio.training.prepare.base_model import BuildContext, plan_adapters
from lora_studio.training.prepare.data import (
    encode,
    find_images,
    make_feed,
    with_regularization_images,
)

STEPS = 12  # two epochs and more

FED = {
    "data.images": ("more",),
    "data.recursive": ("true",),
    "data.masks": ("masks",),
    "data.exclude": ("exclude.txt",),
    "data.background": ("black",),
    "data.transparency": ("mask",),
    "data.trigger": ("red",),
    "data.class_words": ("thing",),
    "data.instance_prompt": ("a thing of zwx style",),
    "data.resolution": ("96",),
    "data.extra_resolutions": ("[96]",),
    "data.area_tolerance": ("0.4",),
    "data.max_upscale": ("4.0",),
    "data.crop": ("random", "focus"),
    "data.crops": ("2",),
    "data.flip": ("0.5", "true"),
    "data.repeats": ("2",),
    "data.caption_dropout": ("0.5",),
    "data.caption_lines": ("join",),
    "data.wildcards": ("true",),
    "data.shuffle_tags": ("true",),
    "data.keep_tags": ("2",),
    "data.tag_dropout": ("0.5",),
    "data.caption_prefix": ("an image of ",),
    "data.caption_suffix": (", in colour",),
    "data.max_token_chunks": ("2",),
    "data.regularization_images.count": ("2",),
    "data.regularization_images.images": ("classes",),
    "data.regularization_images.prompt": ("a drawing of a thing",),
    "data.regularization_images.weight": ("0.5",),
    "data.regularization_images.per_image": ("2",),
    "data.regularization_images.steps": ("2",),
    "data.regularization_images.guidance": ("1",),
    "data.regularization_images.seed": ("1",),
}
"""Option -> values that feed the steps with something else."""

DRAWN = ("data.regularization_images.count=1", "data.regularization_images.steps=1")
BESIDE = {
    "data.transparency": ("data.background=black",),
    "data.crop": ("data.masks=masks",),
    "data.class_words": ("objective.preservation=0.9",),
    "data.crops": ("data.crop=random",),
    "data.keep_tags": ("data.shuffle_tags=true",),
    "data.regularization_images.prompt": DRAWN,
    "data.regularization_images.weight": DRAWN,
    "data.regularization_images.per_image": DRAWN,
    "data.regularization_images.steps": DRAWN,
    "data.regularization_images.guidance": DRAWN,
    "data.regularization_images.seed": DRAWN,
    "data.trigger": ("objective.preservation=0.9",),
}
"""What an option is of no use without."""

ELSEWHERE = {
    "data.captioner": "../data/test_sidecar.py",
    "data.latent_memory_gb": "test_caches.py",
}

OF_A_SOURCE = {
    "images": 'images = "classes"',
    "role": 'role = "validation"',
    "repeats": "repeats = 2",
    "weight": "weight = 0.5",
    "trigger": 'trigger = "blue"',
    "class_words": 'class_words = "thing"',
    "instance_prompt": 'instance_prompt = "a thing of zwx style"',
    "recursive": "recursive = true",
    "masks": 'masks = "masks"',
}
WORDS = "a {{red|blue}} ball {0}, on a beach {0}, in the sun, zwx style\nred zwx style, a second line {0}\n"


def test_every_option_is_tried() -> None:
    known = {name for name, _ in options() if name.startswith("data.")}
    assert known == {*FED, *ELSEWHERE, "data.sources"}
    assert set(OF_A_SOURCE) == set(SourceConfig.model_fields)
    for option, test in ELSEWHERE.items():
        assert option.rpartition(".")[2] in (Path(__file__).parent / test).read_text("utf-8")


def paint(path: Path, number: int, size: tuple[int, int], words: str = WORDS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = draw(sample_scene(number), *size, style="woodcut")
    if number == 0:
        image.putalpha(Image.linear_gradient("L").resize(size))
    image.save(path)
    path.with_suffix(".txt").write_text(words.format(number), "utf-8")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Images of several shapes, one with clear parts, one small, one with a long caption; other folders."""
    folder = tmp_path_factory.mktemp("data")
    shapes = [(64, 64), (64, 64), (128, 80), (80, 128), (40, 40), (150, 96)]
    for number, size in enumerate(shapes):
        words = " ".join(["a long red tale of many words, zwx style,"] * 12) if number == 3 else WORDS
        paint(folder / "images" / f"{number}.png", number, size, words)
        mask = Image.new("L", size, 0)
        mask.paste(255, (size[0] // 2, 0, *size))
        (folder / "masks").mkdir(exist_ok=True)
        mask.save(folder / "masks" / f"{number}.png")
    (folder / "images" / "2.txt").unlink()
    paint(folder / "images" / "deeper" / "9.png", 9, (64, 64))
    paint(folder / "more" / "7.png", 7, (64, 64))
    paint(folder / "more" / "deeper" / "8.png", 8, (64, 64))
    paint(folder / "classes" / "10.png", 10, (64, 64), "a thing of a class")
    (folder / "exclude.txt").write_text("1.png\n", "utf-8")
    text = recipe_text(folder / "images", str(tiny_base))
    text = text.replace("[adapter]", 'instance_prompt = "zwx style, an image"\n[adapter]')
    (folder / "tiny.toml").write_text(text, "utf-8")
    return folder / "tiny.toml"


Fed = Callable[..., str]


@pytest.fixture(scope="module")
def fed(recipe_file: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Fed:
    """All that the first steps of a recipe with some changes are fed with, as a hash."""
    family, folder = load_base(str(tiny_base)), tmp_path_factory.mktemp("runs")

    def digest(*changes: str, text: str = "") -> str:
        file = recipe_file
        if text:
            file = recipe_file.with_name("other.toml")
            file.write_text(text, "utf-8")
        return _digest(
            family, file, folder / hashlib.sha256(repr((changes, text)).encode()).hexdigest(), changes
        )

    return digest


def _digest(family: ModelFamily, file: Path, folder: Path, changes: tuple[str, ...]) -> str:
    recipe = load_recipe(file, changes=("samples.prompts=[]", f"training.steps={STEPS}", *changes))
    family.max_chunks = recipe.data.max_token_chunks
    run = Run(folder)
    machine, plan = Machine(torch.device("cpu"), torch.float32), plan_adapters(recipe, family)
    context = BuildContext(recipe, run, machine, family, plan, ignore_events, ALONE)
    found = with_regularization_images(context, find_images(context))
    feed = make_feed(context, found, encode(context, found))
    run.close()
    seen = hashlib.sha256()
    for step in range(1, STEPS + 1):
        for batch in feed.of_step(step):
            tensors = [batch.latents, batch.geometry, batch.weight]
            tensors += [batch.conditioning[name] for name in sorted(batch.conditioning or {})]
            for tensor in tensors:
                seen.update(repr(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
            seen.update(repr((batch.captions, batch.preserved)).encode())
    return seen.hexdigest()


@pytest.fixture(scope="module")
def usual(fed: Fed) -> str:
    found = fed()
    assert fed() == found  # so that a difference is the option's
    return found


@pytest.mark.parametrize(
    ("option", "value"), [(name, value) for name, values in FED.items() for value in values]
)
@torch.no_grad()
def test_an_option_changes_what_the_steps_are_fed_with(option: str, value: str, fed: Fed, usual: str) -> None:
    beside = BESIDE.get(option, ())
    before = fed(*beside) if beside else usual
    assert fed(*beside, f"{option}={value}") != before


@pytest.mark.parametrize("name", OF_A_SOURCE)
def test_an_option_of_a_source_changes_what_the_steps_are_fed_with(
    name: str, fed: Fed, recipe_file: Path
) -> None:
    folder = recipe_file.parent
    head, images, tail = recipe_file.read_text("utf-8").partition(f'images = "{folder}/images"\n')

    def of_two(first: str, second: str) -> str:
        both = f"[[data.sources]]\n{first}\n[[data.sources]]\n{second}\n[objective]\npreservation = 0.5\n"
        return fed("data.class_words=ball", text=head + tail.replace("[adapter]", both + "[adapter]"))

    more = 'images = "more"'
    usual = of_two(images, more)
    if name == "images":
        assert of_two(images, OF_A_SOURCE[name]) != usual
    elif name == "role":
        assert of_two(images, f"{more}\n{OF_A_SOURCE[name]}") != usual
    else:
        assert of_two(f"{images}\n{OF_A_SOURCE[name]}", more) != usual
