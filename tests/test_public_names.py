"""The few names of the package itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lora_studio

HEAVY = {"torch", "diffusers", "transformers", "peft", "numpy", "PIL", "pydantic"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = f"import sys, lora_studio; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    from lora_studio.training.session import train

    assert lora_studio.train is train
    assert all(getattr(lora_studio, name) for name in lora_studio.__all__)


def test_another_name_is_an_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = lora_studio.trian
