"""The code asks a family object, not its name: none is named outside the places that may know it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_studio

ROOT = Path(lora_studio.__file__).parent
MAY_KNOW = {"families", "pocket"}  # below lora_studio/; recipes/ and tests/ lie outside it
OTHER_TRAINERS = "recipe/migrate/"  # whose scripts, options and their values have names of families in them
ENGLISH = re.compile(r"animat(ed|ion)")  # words that begin as a family's name does
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _docstrings(tree: ast.AST) -> set[int]:
    """ids of the nodes that are docstrings: prose may name a family."""
    bodies = (node.body for node in ast.walk(tree) if isinstance(node, _DOCUMENTED))
    return {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}


def _words(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every identifier and string of a source, without comments and docstrings."""
    tree = ast.parse(source)
    prose = _docstrings(tree)
    for node in ast.walk(tree):
        if id(node) in prose:
            continue
        for field in ("id", "attr", "arg", "name", "asname", "module", "value"):
            text = getattr(node, field, None)
            if isinstance(text, str):
                yield getattr(node, "lineno", 0), text


def named_families(source: str, families: list[str]) -> list[str]:
    """Where a source names one of the families, also as part of a word as in `SdxlFamily`."""
    name = re.compile("|".join(rf"(?<![a-z0-9]){re.escape(family.lower())}(?!\d)" for family in families))
    return [
        f"line {line}: {text!r}"
        for line, text in _words(source)
        if name.search(ENGLISH.sub("", text.lower()))
    ]


# What is true of one family's network alone: its name and its parts' names, and how its latents are sized.
FACTS = re.compile(
    r"(?i)unet|attn\d|sample_size|vae_scale_factor|time_ids|\* 8\b|// ?8\b|\b700\b|timestep *= *\d"
    r"|\b(down|up|mid|transformer|single|double|joint|input|output|middle)_blocks?\b|resnets\b"
    r"|BasicTransformerBlock|ResnetBlock"
)
OTHERS_WORDS = re.compile(r"\bunet_lr\b")  # an option of another trainer's, for every family


def stated_facts(source: str) -> list[str]:
    """Where a source, comments and docstrings included, says something of one family's network."""
    lines = enumerate(OTHERS_WORDS.sub("", source).splitlines(), 1)
    return [f"line {number}: {line.strip()}" for number, line in lines if FACTS.search(line)]


def _inside() -> list[Path]:
    places = {path: path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py"))}
    return [
        path
        for path, place in places.items()
        if place.parts[0] not in MAY_KNOW and not place.as_posix().startswith(OTHER_TRAINERS)
    ]


def _sources() -> list[Path]:
    return [*_inside(), *sorted((ROOT.parent / "benchmarks").glob("*.py"))]


def test_no_fact_of_a_family_is_written_outside_the_places_that_may_know_it():
    texts = {path: path.read_text(encoding="utf-8") for path in _inside()}
    found = [f"{path.relative_to(ROOT)}: {one}" for path, text in texts.items() for one in stated_facts(text)]
    assert texts and not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        'unet = family.parts["unet"]',
        "class UNetThing: ...",
        'name.endswith("attn2.to_k")',
        "side = config.sample_size",
        "pixels = latents.shape[-1] * 8",
        "side = width // 8",
        "timestep = torch.tensor([150, 700])",
        "# the last of its down_blocks",
    ],
)
def test_a_fact_is_caught(source):
    assert stated_facts(source)


@pytest.mark.parametrize(
    "source",
    [
        "side = width // family.pixels_per_latent",
        "family.parts[family.denoiser]",
        "x = y * 80",
        "rate = 7000",
    ],
)
def test_what_is_asked_of_the_family_passes(source):
    assert not stated_facts(source)


def test_no_family_is_named_outside_the_places_that_may_know_it():
    from lora_studio.families import FAMILIES

    assert FAMILIES.names()
    texts = {path: path.read_text(encoding="utf-8") for path in _sources()}
    found = [
        f"{path.relative_to(ROOT.parent)}: {one}"
        for path, text in texts.items()
        for one in named_families(text, FAMILIES.names())
    ]
    assert texts and not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        'if family == "sdxl": pass',
        "def load_sdxl(): pass",
        "class SDXLLoader: pass",
        "from lora_studio.families.unet.sdxl import Sdxl as Big",
        'path = f"models/sdxl/{name}"',
        "call(sdxl=True)",
    ],
)
def test_a_name_in_code_is_caught(source):
    assert named_families(source, ["sd15", "sdxl"])


@pytest.mark.parametrize(
    "source", ['"""About sdxl."""', "# sdxl\nx = 1", 'def f():\n    "As in sdxl."', 'x = "sd150"']
)
def test_prose_and_other_words_pass(source):
    assert not named_families(source, ["sd15", "sdxl"])
