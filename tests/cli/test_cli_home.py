"""Homes that are not there: a path in one is missing as any other, and nothing becomes the working folder."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest
from accelerate import PartialState
from console import run
from lora_files import write_random_lora
from PIL import Image

from lora_studio.errors import RecipeError, StudioError
from lora_studio.files import cache_folder
from lora_studio.processes import TIMEOUT, is_main, join_processes

NOWHERE = "~no-such-user/base"


@pytest.mark.parametrize(
    "call",
    [
        f"verify a.safetensors --base {NOWHERE}",
        f"extract {NOWHERE} pocket -o b.safetensors --rank 1",
        f"merge-into {NOWHERE} a.safetensors -o b",
        f"doctor . --base {NOWHERE}",
        f"plan r.toml --set base.model={NOWHERE}",
        f"plan r.toml --set data.masks={NOWHERE}",
        f"doctor {NOWHERE}",
        f"start {NOWHERE}",
        f"caption . --with wd14 --model {NOWHERE} --dry-run",
    ],
)
def test_a_home_that_no_one_has_is_one_sentence(call: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_random_lora(tmp_path / "a.safetensors")
    (tmp_path / "r.toml").write_text('name = "t"\n[base]\nmodel = "pocket"\n[data]\nimages = "."\n')
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    code, _, err = run(call.split(), capsys)
    assert code == 2 and "error: " in err and "Traceback" not in err, err


def test_a_cache_folder_that_is_set_to_nothing_is_not_the_working_folder(monkeypatch) -> None:
    """`cache prune` removes folders in it."""
    monkeypatch.setenv("LORA_STUDIO_CACHE", "")
    assert cache_folder() == Path("~/.cache/lora-studio").expanduser()
    monkeypatch.setenv("LORA_STUDIO_CACHE", NOWHERE)
    with pytest.raises(StudioError, match="is in no home folder; set LORA_STUDIO_CACHE"):
        cache_folder()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "abc"}, 'WORLD_SIZE is "abc" in the environment'),
        ({"WORLD_SIZE": "-1"}, 'WORLD_SIZE is "-1" in the environment'),
        ({"WORLD_SIZE": "2", "RANK": "x"}, 'RANK is "x" in the environment'),
        ({"WORLD_SIZE": "2", "RANK": "0", TIMEOUT: "soon"}, f'{TIMEOUT} is "soon" in the environment'),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "not how they find each other"),
    ],
)
def test_variables_that_no_launcher_sets_so_are_one_sentence(
    variables: dict[str, str], words: str, monkeypatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", TIMEOUT):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError) as caught, patch.dict(os.environ):  # which accelerate adds to
        join_processes("cpu")
    PartialState._reset_state()  # of other tests in this process
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert is_main() == (variables.get("RANK") != "x")  # who says it
