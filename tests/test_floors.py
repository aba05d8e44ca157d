"""Imports in lora_studio go down only: the floors of the building, read from the sources and enforced."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_studio

ROOT = Path(lora_studio.__file__).parent
FLOORS = {
    5: [
        *("cli", "cli_buckets", "cli_cache", "cli_captions", "cli_doctor", "cli_env", "cli_init", "cli_plan"),
        *("cli_inspect", "printing_inspect", "printing_uis"),
        *("cli_metadata", "cli_push", "printing_metadata"),
        *("web", "__main__", "printing", "printing_buckets", "printing_captions", "printing_doctor"),
        *("printing_plan", "printing_processes", "printing_watch"),
        *("cli_convert", "cli_export", "printing_export"),
        *("cli_combine", "cli_extract", "printing_compose"),
    ],
    4: ["evaluate"],
    3: ["training", "export", "compose"],
    2: ["data", "adapters"],
    1: ["families", "pocket", "quantization"],
    0: [
        *("losses", "noises", "timesteps"),
        *("objective", "rng", "run", "recipe", "recipe_data", "recipe_training", "recipe_machine"),
        *(
            "recipe_adapter",
            "recipe_base",
            "recipe_changes",
            "recipe_faults",
            "recipe_tracking",
            "recipe_objective",
            "recipe_tokens",
            "presets",
        ),
        *("errors", "registry", "quiet", "devices", "processes", "onlooker", "layer_paths", "base_names"),
    ],
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
SIDEWAYS = {
    ("__main__", "cli"): "`python -m lora_studio` is the command line",
    ("cli", "cli_init"): "the verb init has a file of its own",
    ("cli", "cli_plan"): "the verb plan has a file of its own",
    ("cli_plan", "printing"): "a verb shows what it did",
    ("cli_plan", "printing_plan"): "a verb shows what it did",
    ("printing", "printing_plan"): "the plan of a training tells its time, too",
    ("cli", "printing"): "a verb shows what it did",
    ("cli", "cli_buckets"): "the verb about buckets has a file of its own",
    ("cli_buckets", "printing_buckets"): "a verb shows what it did",
    ("printing", "printing_buckets"): "the plan shows the buckets",
    ("cli", "cli_captions"): "the verbs about captions have a file of their own",
    ("cli", "cli_cache"): "the verbs about what is cached have a file of their own",
    ("cli_cache", "printing"): "a verb shows what it did",
    ("cli_captions", "printing_captions"): "a verb shows what it did",
    ("cli", "cli_doctor"): "the verb doctor has a file of its own",
    ("cli", "cli_metadata"): "the verbs about what a file says have a file of their own",
    ("cli", "cli_push"): "the verb push has a file of its own",
    ("cli_metadata", "printing_metadata"): "a verb shows what it did",
    ("cli_push", "printing_metadata"): "a verb shows what it did",
    ("cli", "cli_env"): "the verb env has a file of its own",
    ("cli_doctor", "printing_doctor"): "a verb shows what it did",
    ("printing", "printing_doctor"): "the plan of a training tells the doctor's findings, too",
    ("printing", "printing_processes"): "the plan tells of several processes",
    ("printing", "printing_watch"): "the plan and the progress tell of held-out pictures",
    ("cli", "web"): "a verb starts the page",
    ("training", "export"): "a run ends by writing its file",
    ("compose", "export"): "tools on files read and write them as a run does",
    ("compose", "training"): "numbers and pictures are drawn as a run draws its own",
    ("cli", "cli_inspect"): "the verb inspect has a file of its own",
    ("cli", "printing_uis"): "a verb shows what it did",
    ("cli_inspect", "printing_inspect"): "a verb shows what it did",
    ("printing_inspect", "printing_uis"): "how UIs load a file is told alike everywhere",
    ("cli", "cli_export"): "the verb export has a file of its own",
    ("cli", "cli_convert"): "the verb convert has a file of its own",
    ("cli_export", "printing_export"): "a verb shows what it did",
    ("cli_convert", "printing_export"): "a verb shows what it did",
    ("cli", "cli_combine"): "the verbs on finished files have a file of their own",
    ("cli", "cli_extract"): "the verbs on whole bases have a file of their own",
    ("cli_extract", "cli_combine"): "they have their options in common",
    ("cli_combine", "printing_compose"): "a verb shows what it did",
    ("cli_extract", "printing_compose"): "a verb shows what it did",
}
_TABLE_ENTRY = re.compile(
    r"(lora_studio(?:\.\w+)*):\w+"
)  # "module:attribute" in a Registry is an import, too


def _imported(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
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


def _fault(importer: str, imported: str) -> str | None:
    """Why the unit `importer` may not import the unit `imported`, or None if it may."""
    if unknown := [unit for unit in (importer, imported) if unit not in FLOOR_OF]:
        return f"lora_studio.{unknown[0]} stands on no floor; add it to FLOORS"
    above, here = FLOOR_OF[imported], FLOOR_OF[importer]
    if importer == imported or above < here or (importer, imported) in SIDEWAYS:
        return None
    if above == here == 0:  # single files that make up one ground floor
        return None
    return f"{importer} (floor {here}) may not import {imported} (floor {above})"


def faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What is wrong with the imports of the module `module`, whose text is `source`."""
    found = []
    if module == "lora_studio":  # the public names: may look everywhere
        return found
    importer = module.split(".")[1]
    if importer not in FLOOR_OF:
        return [f"lora_studio.{importer} stands on no floor; add it to FLOORS"]
    for name in _imported(ast.parse(source), module, is_package=is_package):
        top, _, rest = name.partition(".")
        if top != "lora_studio" or rest == "__version__":
            continue
        fault = (
            _fault(importer, rest.split(".")[0]) if rest else "import its parts, not lora_studio as a whole"
        )
        if fault:
            found.append(f"{module}: {fault}")
    return found


def _sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", _sources(), ids=_module)
def test_imports_go_down_only(path):
    found = faults(path.read_text(encoding="utf-8"), _module(path), is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lora_studio.data.scan", "from lora_studio.training.loop import train"),
        ("lora_studio.data.scan", "import lora_studio.training.loop"),
        ("lora_studio.data.scan", "from lora_studio import training"),
        ("lora_studio.data.scan", "from ..training import loop"),
        ("lora_studio.data.scan", "def late():\n    from lora_studio.evaluate import metrics"),
        ("lora_studio.data.scan", "if TYPE_CHECKING:\n    from lora_studio.adapters.base import AdapterSet"),
        ("lora_studio.data.scan", 'TABLE = {"a": "lora_studio.training.loop:train"}'),
        ("lora_studio.export.kohya", "from lora_studio.training.loop import train"),
        ("lora_studio.recipe", "from lora_studio.families import FAMILIES"),
        ("lora_studio.data.scan", "from lora_studio.helpers import anything"),
        ("lora_studio.helpers", "import math"),
        ("lora_studio.data.scan", "import lora_studio"),
    ],
)
def test_a_forbidden_import_is_caught(module, source):
    assert len(faults(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lora_studio.training.build", "from lora_studio.families import FAMILIES"),
        ("lora_studio.training.build", "from lora_studio.export.kohya import export_kohya"),
        ("lora_studio.data.scan", "from .manifest import Manifest"),
        ("lora_studio.recipe", "from lora_studio.errors import RecipeError"),
        ("lora_studio.export.metadata", "from lora_studio import __version__"),
        ("lora_studio.data.scan", "import lora_studio_plugins, torch"),
    ],
)
def test_an_allowed_import_passes(module, source):
    assert faults(source, module) == []
