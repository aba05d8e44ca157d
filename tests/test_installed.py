"""A wheel has everything that a clone has: read from what setuptools packs, and tried from one (slow)."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from distutils.core import run_setup
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BESIDE = ("recipes", "sample_images")  # folders that a clone has beside the package


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The files that a wheel holds, as they lie in the repository."""
    monkeypatch.chdir(ROOT)
    found = run_setup("setup.py", stop_after="config")
    builder = found.get_command_obj("build_py")
    builder.ensure_finalized()
    modules = {Path(path) for _, _, path in builder.find_all_modules()}
    data = {Path(folder) / name for _, folder, _, names in builder.data_files for name in names}
    return {path.as_posix() for path in modules | data}


def test_every_file_of_the_package_recipes_and_sample_images_is_packed(packed: set[str]) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = {
        name
        for name in tracked.stdout.splitlines()
        if name.startswith(("lora_studio/", *(f"{one}/" for one in BESIDE)))
    }
    assert len(wanted) > 300 and sorted(wanted - packed) == []
    assert "lora_studio/py.typed" in packed


@pytest.mark.slow
def test_the_demo_runs_from_a_wheel_outside_of_the_repository(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    source = tmp_path / "source"
    for name in listed.splitlines():
        if name.startswith(("lora_studio/", *BESIDE)) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    words = [sys.executable, "-m", "pip", "wheel", "-q", ".", "--no-deps", "--no-build-isolation"]
    subprocess.run([*words, "-w", str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 25_000_000
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    script = "import sys; sys.path.insert(0, sys.argv.pop(1)); from lora_studio.__main__ import main; "
    script += "import lora_studio; assert 'installed' in lora_studio.__file__; main()"
    small = [f"training.{one}" for one in ("steps=2", "batch_size=2", "checkpoint_every=2")]
    changes = [word for one in (*small, "samples.steps=1") for word in ("--set", one)]
    command = [sys.executable, "-P", "-c", script, str(tmp_path / "installed"), "demo", *changes]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "runs" / "demo" / "pocket_style.safetensors").is_file()
    assert "28 used" in ended.stdout
