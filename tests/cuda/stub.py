"""Builds the stub library, and starts processes in which a GPU is pretended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent
MINUTES = 10.0


@cache
def compiler() -> str | None:
    return next((found for name in ("g++", "c++", "clang++") if (found := shutil.which(name))), None)


def why_not() -> str:
    """Why nothing can be pretended here; empty if it can."""
    if sys.platform != "linux":
        return "LD_PRELOAD is Linux's"
    if torch.version.cuda is not None:
        return "this build of torch has CUDA, and the functions that the stub stands in for"
    return "" if compiler() else "there is no C++ compiler"


def build(folder: Path) -> Path:
    """The library in that folder."""
    library, made = folder / "stub.so", compiler()
    assert made is not None
    include = [f"-I{TORCH / 'include'}", f"-I{TORCH / 'include/torch/csrc/api/include'}"]
    linked = [f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu"]
    command = [made, "-O1", "-shared", "-fPIC", "-std=c++20", *include, str(HERE / "stub.cpp")]
    subprocess.run([*command, "-o", str(library), *linked], check=True, capture_output=True, text=True)
    return library


def start(
    library: Path,
    script: str,
    arguments: Sequence[str],
    cache_folder: Path,
    more: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[str]:
    """A script of this folder where a GPU can be pretended, with `more` in its environment."""
    paths = [str(HERE), str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(TORCH / "lib"),
        "PYTHONPATH": os.pathsep.join(paths),
        "LORA_STUDIO_CACHE": str(cache_folder),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        **more,
    }
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
