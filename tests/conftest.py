"""What must be settled before anything imports torch, diffusers or matplotlib."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in the Makefile, for a plain `pytest`
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the network fails instead of passing by luck
os.environ["MPLBACKEND"] = "Agg"

from pathlib import Path

import pytest


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
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five captioned pictures."""
    from tiny import picture_folder

    return picture_folder(tmp_path_factory.mktemp("pictures") / "style")
