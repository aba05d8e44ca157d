"""Configurations of other trainers beside the tests, taken over for a folder of images."""

from __future__ import annotations

from pathlib import Path

from lora_studio.recipe.migrate import Migrated, MigrationInputs, migrate

EXAMPLES = Path(__file__).parent / "recipe" / "migrate" / "examples"
BESIDE = {"onetrainer_concepts.json", "simpletuner_backends.json", "simpletuner_lycoris.json"}
WITH = {"onetrainer_sd15.json": "onetrainer_concepts.json"}
NAMES = sorted(path.name for path in EXAMPLES.iterdir() if path.name not in BESIDE)


def taken(name: str, images: Path) -> Migrated:
    files = [EXAMPLES / name, *([EXAMPLES / WITH[name]] if name in WITH else [])]
    base = "pocket" if name == "sd_scripts_dataset.toml" else ""  # it says only what is trained on
    return migrate(files, MigrationInputs(images=images, base=base), folder=images.parent)
