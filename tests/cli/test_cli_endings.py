"""What a verb writes is what its name says: a file's ending means a file of that kind, in every verb."""

from __future__ import annotations

from pathlib import Path

import pytest
from console import run
from lora_files import write_random_lora

from lora_studio.files import check_ending
from lora_studio.tools.result import check_output

RECIPE = 'name = "t"\n[base]\nmodel = "pocket"\n[data]\nimages = "."\n'
SAFETENSORS = ("x.ckpt", "noending", "x.v2", "x.safetensor", "x.png")
FOLDERS = ("x.safetensors", "x.ckpt", "x.zip")
PNGS = ("x.jpg", "x", "x.safetensors")
WRITES = {  # the call but for what -o names, the verb's ending, and names that it does not write under
    "combine": ("combine A B", ".safetensors", SAFETENSORS),
    "resize": ("resize A --rank 1", ".safetensors", SAFETENSORS),
    "convert": ("convert A --to diffusers", ".safetensors", SAFETENSORS),
    "extract": ("extract pocket pocket --rank 2", ".safetensors", SAFETENSORS),
    "metadata": ("metadata A --strip", ".safetensors", SAFETENSORS),
    "merge-into a folder": ("merge-into pocket A", "", FOLDERS),
    "compare": ("compare A B", ".png", PNGS),
    "compare's sheet": ("compare A B --base pocket --images", ".png", PNGS),
    "inspect": ("inspect A", ".png", PNGS),
    "train": ("train r.toml", "", FOLDERS),
    "demo": ("demo", "", FOLDERS),
    "export": ("export run --to kohya", "", FOLDERS),
    "start": ("start images", ".toml", ("x.json", "x", "x.safetensors")),
    "init": ("init pocket_style --images images --trigger zwx", ".toml", ("x.json", "x", "x.safetensors")),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("AB"):
        write_random_lora(tmp_path / f"{name}.safetensors", seed=seed)
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "images").mkdir()
    return tmp_path


@pytest.mark.parametrize("verb", WRITES)
def test_another_ending_is_refused_with_the_right_name(verb: str, here: Path, capsys) -> None:
    call, ending, names = WRITES[verb]
    words = [f"{word}.safetensors" if word in ("A", "B") else word for word in call.split()]
    before = sorted(here.rglob("*"))
    option = words.pop() if words[-1] == "--images" else "-o"
    for name in names:
        code, _, err = run([*words, option, name], capsys)
        said = " ".join(err.split())
        written = (
            f"but a {ending} file is written" if ending else "named like a file, but a folder is written"
        )
        bare = name if name in ("x.v2", "x.safetensor") else Path(name).stem
        assert code == 2 and f"{option} is {name}, {written}; give {option} {bare}{ending}." in said
    assert sorted(here.rglob("*")) == before


def test_the_ending_of_a_file_may_be_written_large(here: Path) -> None:
    check_output(here / "new.SAFETENSORS", force=False)


def test_a_folder_with_points_in_its_name_is_one(here: Path) -> None:
    for name in ("style_v1.5", "runs/2026.08.01", "a.b.c"):
        check_ending(here / name, "")
