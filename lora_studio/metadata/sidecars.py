"""What UIs pick up beside a file: `<name>.png`, `<name>.json`, and a model card, `README.md`.

FORMATS: the image is read by A1111, Forge, ComfyUI and InvokeAI, the JSON by A1111, Forge and InvokeAI.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lora_studio.errors import StudioError, preview_names
from lora_studio.families import FAMILIES
from lora_studio.files import digest, write_atomically
from lora_studio.lora_file.header import read_header
from lora_studio.metadata.model_card import CardImage, Described, model_card
from lora_studio.metadata.write import usage_hint
from lora_studio.recipe.load import RUN_RECIPE, load_run_recipe

CARD = "README.md"


def tuned_image(number: int) -> str:
    """Where a run keeps the last preview of a prompt, by its number from 0."""
    return f"previews/tuned_{number:02}.png"


def finished_files(run: Path) -> list[Path]:
    """The LoRA and embeddings that a run ended with. Raises StudioError if there are none."""
    try:
        summary = json.loads((run / "summary.json").read_text("utf-8"))
        names = [summary["file"], *(one["file"] for one in summary["embeddings"].values())]
    except FileNotFoundError:
        raise StudioError(
            f"{run} holds no finished run, for it has no summary.json; give the folder of one."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudioError(f"{run / 'summary.json'} cannot be read ({error}).") from None
    paths = [run / Path(name).name for name in dict.fromkeys(names)]
    whole = [one for one in paths if one.is_dir()]
    if whole:
        raise StudioError(f"{whole[0]} is a whole base; this is for LoRA files and embeddings.")
    if gone := [one for one in paths if not one.is_file()]:
        raise StudioError(f"{gone[0]}, with which the run ended, is not there any more; put it back.")
    return paths


def describe_file(path: Path) -> Described:
    """What a file says, and its hash."""
    metadata = read_header(path).metadata
    is_embedding = metadata.get("modelspec.architecture", "").endswith("/textual-inversion")
    return Described(path.name, digest(path), metadata, is_embedding)


def shown_images(run: Path) -> list[CardImage]:
    """The last previews that a run keeps, with their prompts."""
    prompts = load_run_recipe(run).samples.prompts if (run / RUN_RECIPE).is_file() else ()
    found = [CardImage(prompt, tuned_image(number)) for number, prompt in enumerate(prompts)]
    return [one for one in found if (run / one.path).is_file()]


def sidecars_of(run: Path) -> dict[Path, bytes]:
    """Path -> content of all that belongs beside a run's files; no image if it drew none."""
    files, images = finished_files(run), shown_images(run)
    described = [describe_file(path) for path in files]
    contents: dict[Path, bytes] = {run / CARD: model_card(described, images).encode()}
    for path, one in zip(files, described, strict=True):
        facts = json.dumps(card_facts(one), indent=2, ensure_ascii=False)
        contents[path.with_suffix(".json")] = f"{facts}\n".encode()
        if images:
            contents[path.with_suffix(".png")] = (run / images[0].path).read_bytes()
    return contents


def card_facts(file: Described) -> dict[str, str | float]:
    """What A1111, Forge and InvokeAI read from `<name>.json`."""
    note = file.metadata.get("ss_training_comment", "")
    hint = usage_hint(file.strength, file.trigger)
    return {
        "description": file.metadata.get("modelspec.description") or file.metadata.get("modelspec.title", ""),
        "sd version": card_version(file.metadata),
        "activation text": file.trigger,
        "preferred weight": file.strength,
        "negative text": "",
        "notes": f"{hint}; {note}" if note else hint,
    }


def card_version(metadata: Mapping[str, str]) -> str:
    """What UIs call the base that a file is for; "Unknown" is A1111's word, too."""
    families = [FAMILIES[name] for name in FAMILIES.names()]
    known = {
        one.base_model_version: family.card_version
        for family in families
        for one in family.file_traits.values()
    }
    return known.get(metadata.get("ss_base_model_version", ""), "Unknown")


def write_sidecars(run: Path, *, overwrite: bool = False) -> list[Path]:
    """Write them all. Raises StudioError, and writes nothing, if one is there and `overwrite` is not."""
    contents = sidecars_of(run)
    there = [path.name for path, content in contents.items() if path.exists() and _other(path, content)]
    if there and not overwrite:
        raise StudioError(f"{run} already holds {preview_names(there)}; --force writes over what is there.")
    for path, content in contents.items():
        try:
            write_atomically(path, content)
        except OSError as error:
            raise StudioError(f"{path} cannot be written ({error.strerror or error}).") from None
    return list(contents)


def _other(path: Path, content: bytes) -> bool:
    return not path.is_file() or path.read_bytes() != content
