"""Only what pyproject.toml cannot say: the folders beside the package that are installed inside it.

Its [tool.setuptools.package-data] says which files of them.
"""

from pathlib import Path

from setuptools import find_packages, setup

BESIDE = [name for name in ("recipes", "sample_images") if Path(name).is_dir()]

setup(
    packages=[*find_packages(include=["lora_studio*"]), *(f"lora_studio.{name}" for name in BESIDE)],
    package_dir={f"lora_studio.{name}": name for name in BESIDE},
)
