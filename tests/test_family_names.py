"""The code asks a family object, not its name: none is named outside the places that may know it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_studio

ROOT = Path(lora_studio.__file__).parent
MAY_KNOW = {"families", "pocket"}  # below lora_studio/; recipes/ and tests/ lie outside it
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
    return [f"line {line}: {text!r}" for line, text in _words(source) if name.search(text.lower())]


def _sources() -> list[Path]:
    inside = (p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] not in MAY_KNOW)
    return sorted([*inside, *(ROOT.parent / "benchmarks").glob("*.py")])


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_no_family_is_named_outside_the_places_that_may_know_it(path):
    from lora_studio.families import FAMILIES

    assert FAMILIES.names()
    found = named_families(path.read_text(encoding="utf-8"), FAMILIES.names())
    assert not found, "\n".join(found)


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
