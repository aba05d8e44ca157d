"""The house stays easy to walk through: sizes, names and docstrings, read from the sources."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import lora_studio

ROOT = Path(lora_studio.__file__).parent
MOST_LINES, MOST_FILES = 68_000, 460  # with FLUX.2, Qwen-Image, a page, a search and offload
MOST_AT_THE_ROOT, MOST_IN_A_FOLDER = 12, 20
MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_WITHOUT_DOCSTRING = 5
SAYS_NOTHING = frozenset(
    re.findall(
        r"\w+",
        "a an the of its it they there is are was were be has have to for in on by with and or as at from "
        "this that these those own their all any each every one ones some none nothing what which who how "
        "whether",
    )
)


@cache
def sources() -> dict[Path, str]:
    return {path: path.read_text("utf-8") for path in sorted(ROOT.rglob("*.py"))}


@cache  # seconds, which a process that collects tests need not spend
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(text) for path, text in sources().items()}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def stem(word: str) -> str:
    """As far as singular and plural, name and verb have it in common."""
    return re.sub(r"(ies|es|s|ing|ed|e|y)$", "", word.lower())


def words_of(name: str) -> set[str]:
    return {stem(word) for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


def repeats(name: str, docstring: str) -> bool:
    """Whether the docstring has no word of its own."""
    said = {stem(word) for word in re.findall(r"[A-Za-z0-9]+", docstring) if word.lower() not in SAYS_NOTHING}
    return said <= words_of(name)


def test_the_package_is_no_larger_than_it_needs_to_be():
    lines = sum(text.count("\n") for text in sources().values())
    assert (lines <= MOST_LINES, len(sources()) <= MOST_FILES) == (True, True), (lines, len(sources()))


def test_no_folder_is_a_drawer():
    flat = Counter(path.parent.relative_to(ROOT).as_posix() for path in sources())
    assert flat.pop(".") <= MOST_AT_THE_ROOT
    assert {folder: count for folder, count in flat.items() if count > MOST_IN_A_FOLDER} == {}


def test_no_function_is_longer_than_a_page():
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path, tree in trees().items()
        for node in functions(tree)
        if node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    ]
    assert long == []


def public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Those of modules and of public classes; not what is defined inside of a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node


def test_longer_public_functions_say_what_their_names_do_not():
    """What a few lines say at a glance needs no docstring; everything longer has one."""
    silent = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path, tree in trees().items()
        for node in public_functions(tree)
        if ast.get_docstring(node) is None
        and node.end_lineno - node.lineno + 1 > MOST_LINES_WITHOUT_DOCSTRING
    ]
    assert silent == []


def test_no_class_name_stands_twice():
    names = Counter(
        node.name for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_no_docstring_repeats_the_name():
    found = [
        f'{path.relative_to(ROOT)}: {node.name} """{docstring}"""'
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and (docstring := ast.get_docstring(node)) is not None
        and repeats(node.name, docstring)
    ]
    assert found == []


def test_what_repeats_a_name_is_seen():
    assert repeats("image_paths", "The paths of the images.") and repeats("is_empty", "Whether it is empty.")
    assert repeats("names", "They are.") and not repeats("image_paths", "Absolute, in the folder's order.")


def test_what_is_no_code_is_in_the_package():
    """A wheel holds these files only if pyproject.toml names them."""
    setuptools = tomllib.loads((ROOT.parent / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    packed = set()
    for package, patterns in setuptools["package-data"].items():
        folder = ROOT / package.removeprefix("lora_studio").lstrip(".").replace(".", "/")
        packed |= {path for one in patterns for path in folder.glob(one.replace("/**", "/**/*"))}
    files = (path for path in ROOT.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    assert sorted(set(files) - packed) == []
