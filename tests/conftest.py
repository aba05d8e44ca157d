"""What must be settled before anything imports torch, diffusers or matplotlib."""

import gc
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in the Makefile, for a plain `pytest`
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the network fails instead of passing by luck
os.environ["MPLBACKEND"] = "Agg"

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import typer.main

gc.disable()  # while all tests are imported and collected: a fifth of that time, for nothing

# Nothing waits for the disk, which only a power cut would tell; that the file is open is still asked.
# Programs that tests start, such as the commands of the documentation, do wait.
os.fsync = os.fstat

typer.main.get_command = cache(typer.main.get_command)  # all verbs, made once for all calls

LONGEST = (
    *("test_contract.py", "test_exact.py", "test_processes.py", "test_full.py", "test_caches.py"),
    *(
        "test_warm_start.py",
        "test_captions.py",
        "test_regularization_images.py",
        "test_single_file.py",
        "test_plan.py",
    ),
    *("test_resume.py", "test_tokens.py", "test_options.py", "test_loop.py", "test_dreambooth.py"),
    *("test_docs.py", "test_matrix.py"),
)
"""Begun first, so that no process is left with one of them when the others have nothing to do any more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, everything else in its order.

    Raises UsageError for a name with an address in it: processes that share the tests must find the same.
    """
    if named := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give these tests ids: {named}")
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """What is there by now stays to the end, and is never searched for garbage; what comes is, less often."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests never read or fill the user's cache; session-wide, so that fixtures of every scope agree."""
    os.environ["LORA_STUDIO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random miniature of the base, as a diffusers folder."""
    from tiny import random_base

    return random_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Callable[[str], Path]:
    """Name of a miniature in `tiny.BASES` or `tiny.MORE_BASES` -> its diffusers folder, made once."""
    from tiny import BASES, MORE_BASES

    @cache
    def make(name: str) -> Path:
        made = (BASES | MORE_BASES)[name]
        return tiny_base if name == "sd15" else made(tmp_path_factory.mktemp("base") / "base")

    return make


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five captioned images."""
    from tiny import image_folder

    return image_folder(tmp_path_factory.mktemp("images") / "style")
