"""Imports in lora_studio go down only: the floors of the house, read from the sources and enforced."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_studio

ROOT = Path(lora_studio.__file__).parent
ROOMS = (  # from the top floor down; a room uses the ones below it
    *("cli", "web", "console", "api", "sweep", "jobs", "tools", "training", "export", "verify", "metadata"),
    *("lora_file", "evaluate", "adapters", "data", "families", "quantization", "recipe"),
    *("pocket", "objectives", "runs", "tensor_file", "pages"),
)
FLOOR = {room: number for number, room in enumerate(reversed(ROOMS), start=1)} | {"__main__": len(ROOMS) + 1}
_TABLE_ENTRY = re.compile(r"(lora_studio(?:\.\w+)*):\w+")  # in a Registry; an import, too


def floor_of(room: str) -> int:
    """Of a room's folder; the modules at the package's root are the ground."""
    return FLOOR.get(room, 0)


def imported(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Dotted names of everything that a source imports, also inside functions and under TYPE_CHECKING."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, node.module] if node.module else base)
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and (entry := _TABLE_ENTRY.fullmatch(str(node.value))):
            yield entry[1]


def faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What is wrong with the imports of the module `module`, whose text is `source`."""
    found = []
    if module == "lora_studio":  # the public names: may look everywhere
        return found
    room = module.split(".")[1]
    for name in imported(ast.parse(source), module, is_package=is_package):
        top, _, rest = name.partition(".")
        below = rest.split(".")[0]
        if top != "lora_studio" or (below == room and room in FLOOR):
            continue
        if not below:
            found.append(f"{module}: import its parts, not lora_studio as a whole")
        elif floor_of(below) > floor_of(room):
            found.append(f"{module}: {room} (floor {floor_of(room)}) may not import {below}")
    return found


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_module(path): path for path in sorted(ROOT.rglob("*.py"))}


def test_every_folder_is_a_room_of_the_table():
    assert {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/*.py")} <= set(ROOMS)


def test_imports_go_down_only():
    found = [
        fault
        for module, path in SOURCES.items()
        for fault in faults(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    ]
    assert SOURCES and not found, "\n".join(found)


def _runs_first(module: str) -> set[str]:
    """Our modules that a module imports, and the packages that are imported for these."""
    path = SOURCES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for name in imported(tree, module, is_package=path.name == "__init__.py"):
        while name and name not in SOURCES:
            name = name.rpartition(".")[0]
        while "." in name:
            if name != module and not module.startswith(f"{name}."):
                found.add(name)
            name = name.rpartition(".")[0]
    return found


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """What is left when modules without imports are taken away again and again."""
    left = dict(graph)
    while leaves := [module for module, below in left.items() if not below & left.keys()]:
        for module in leaves:
            del left[module]
    return sorted(left)


def test_no_modules_import_each_other_in_a_circle():
    assert _circle({module: _runs_first(module) for module in SOURCES if "." in module}) == []


def test_a_circle_is_found():
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lora_studio.data.scan.masks", "from lora_studio.training.loop import train"),
        ("lora_studio.data.scan.masks", "import lora_studio.training.loop"),
        ("lora_studio.data.scan.masks", "from lora_studio import training"),
        ("lora_studio.data.scan.masks", "from ...training import loop"),
        ("lora_studio.data.scan.masks", "def late():\n    from lora_studio.evaluate import metrics"),
        ("lora_studio.data.masks", "if TYPE_CHECKING:\n    from lora_studio.adapters.inject import inject"),
        ("lora_studio.data.scan.masks", 'TABLE = {"a": "lora_studio.training.loop:train"}'),
        ("lora_studio.export.kohya", "from lora_studio.training.loop import train"),
        ("lora_studio.recipe", "from lora_studio.families import FAMILIES"),
        ("lora_studio.errors", "from lora_studio.recipe import Recipe"),
        ("lora_studio.data.scan.masks", "import lora_studio"),
    ],
)
def test_a_forbidden_import_is_caught(module, source):
    assert len(faults(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lora_studio.training.prepare", "from lora_studio.families import FAMILIES"),
        ("lora_studio.training.prepare", "from lora_studio.export.kohya import export_kohya"),
        ("lora_studio.data.scan.masks", "from .layouts import find"),
        ("lora_studio.recipe", "from lora_studio.errors import RecipeError"),
        ("lora_studio.registry", "from lora_studio.errors import RecipeError"),
        ("lora_studio.data.scan.masks", "import lora_studio_plugins, torch"),
    ],
)
def test_an_allowed_import_passes(module, source):
    assert faults(source, module) == []
