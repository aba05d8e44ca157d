"""Only what pyproject.toml cannot say: recipes/, which lies beside the package, is installed inside it.

Its [tool.setuptools.package-data] says which files of it.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["lora_studio*"]), "lora_studio.recipes"],
    package_dir={"lora_studio.recipes": "recipes"},
)
