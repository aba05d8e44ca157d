"""What UIs pick up beside a file: `<name>.png`, `<name>.json`, and a model card, `README.md`.

FORMATS: the image is read by A1111, Forge, ComfyUI and InvokeAI, the JSON by A1111, Forge and InvokeAI. The
card says what a file is, how it is used and how it was made, with the front matter of the Hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from lora_studio.errors import StudioError, preview_names
from lora_studio.families import FAMILIES
from lora_studio.families.loading.hub import is_hub_id
from lora_studio.files import digest, say_unwritable, write_atomically
from lora_studio.metadata import key_table
from lora_studio.metadata.evaluated import (
    evaluation_in,
    evaluation_in_short,
    evaluation_keys,
    evaluation_of_target,
    evaluation_section,
    sheet_of_target,
)
from lora_studio.metadata.write import STRENGTH, STRENGTH_RANGE, usage_hint
from lora_studio.recipe.run_recipe import RUN_RECIPE, load_run_recipe
from lora_studio.runs.reading import damaged, read_table
from lora_studio.tensor_file.header import read_header

CARD = "README.md"
HUB_TAGS = ("text-to-image", "stable-diffusion", "diffusers", "lora")
_SNIPPET = """```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({base})
pipeline.load_lora_weights(".", weight_name={file}, adapter_name="lora")
pipeline.set_adapters("lora", {strength:g})
image = pipeline({prompt}).images[0]
```"""


class CardImage(NamedTuple):
    prompt: str
    path: str  # from the card


@dataclass(frozen=True)
class Described:
    """A file of which a card tells."""

    name: str
    sha256: str
    metadata: Mapping[str, str]
    is_embedding: bool = False

    @property
    def trigger(self) -> str:
        return self.metadata.get("modelspec.trigger_phrase", "")

    @property
    def strength(self) -> float:
        try:
            return float(self.metadata.get(STRENGTH, "1"))
        except ValueError:
            return 1.0

    @property
    def base(self) -> str:
        """Its id on the Hub; empty for another's."""
        named = self.metadata.get("lora_studio.base", "")
        return named if is_hub_id(named) else ""


def model_card(files: Sequence[Described], images: Sequence[CardImage], *, sheet: str = "") -> str:
    """The text of README.md: about the first of `files`; the others are used together with it.

    `sheet` is the path of evaluation.png, from the card; it is shown if the first was evaluated.
    """
    first = files[0]
    title = first.metadata.get("modelspec.title") or first.name
    parts = [_front_matter(first), f"# {_plain(title)}"]
    if description := first.metadata.get("modelspec.description"):
        parts.append(_plain(description))
    parts += [f"![{_plain(one.prompt)}]({one.path})\n\n*{_plain(one.prompt)}*" for one in images]
    parts.append("## Use\n\n" + "\n".join(_use(one) for one in files))
    if not first.is_embedding:
        said = {"base": json.dumps(first.base or "path/to/the/base"), "file": json.dumps(first.name)}
        prompt = json.dumps(first.trigger or "a prompt", ensure_ascii=False)
        parts.append(_SNIPPET.format(prompt=prompt, strength=first.strength, **said))
    if told := evaluation_in(first.metadata):
        parts.append(evaluation_section({name: _plain(value) for name, value in told.items()}, sheet))
    facts = {words: first.metadata.get(key) for key, words in key_table("card").items()}
    rows = [f"| {words} | {_plain(value)} |" for words, value in facts.items() if value]
    rows += [f"| sha256 of `{one.name}` | {one.sha256} |" for one in files]
    parts.append("\n".join(["## Facts", "", "| | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _front_matter(file: Described) -> str:
    """YAML, with values as JSON strings, which YAML reads. The licence is the user's to choose."""
    own = [one.strip() for one in file.metadata.get("modelspec.tags", "").split(",") if one.strip()]
    kind = "textual-inversion" if file.is_embedding else "template:sd-lora"
    said = file.metadata.get("modelspec.license", "")
    values = {"license": said, "base_model": file.base, "instance_prompt": file.trigger}
    lines = [f"{key}: {_quoted(value)}" for key, value in values.items() if value]
    tags = [one for one in HUB_TAGS if not (file.is_embedding and one == "lora")]
    listed = [f"- {_quoted(one)}" for one in dict.fromkeys([*tags, kind, *own])]
    lines += ["library_name: diffusers", "pipeline_tag: text-to-image", "tags:", *listed]
    return "\n".join(["---", *lines, "---"])


def _use(file: Described) -> str:
    if file.is_embedding:
        return f"- `{file.name}` goes among the embeddings; the word `{_plain(file.trigger)}` calls it."
    words = f" and the trigger words `{_plain(file.trigger)}`" if file.trigger else ""
    return f"- `{file.name}` goes among the LoRAs; use it with strength {file.strength:g}{words}."


def _quoted(text: str) -> str:
    return json.dumps(" ".join(text.split()), ensure_ascii=False)


def _plain(text: str) -> str:
    """One line that Markdown shows as it is."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return text.translate({ord(letter): f"\\{letter}" for letter in "\\*_[]|#"} | {ord("`"): "'"})


def tuned_image(number: int) -> str:
    """Where a run keeps the last preview of a prompt, by its number from 0."""
    return f"previews/tuned_{number:02}.png"


def finished_files(run: Path) -> list[Path]:
    """The LoRA and embeddings that a run ended with. Raises StudioError if there are none."""
    try:
        if not os.path.lexists(run / "summary.json"):
            why = f"{run} holds no finished run, for it has no summary.json; give the folder of one."
            raise StudioError(why)
        summary = read_table(run / "summary.json")
        names = [summary["file"], *(one["file"] for one in summary["embeddings"].values())]
        paths = [run / Path(name).name for name in dict.fromkeys(names)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(run / "summary.json", repr(error)) from None
    if whole := [one for one in paths if one.is_dir()]:
        raise StudioError(f"{whole[0]} is a whole base; this is for LoRA files and embeddings.")
    if gone := [one for one in paths if not one.is_file()]:
        raise StudioError(f"{gone[0]}, with which the run ended, is not there any more; put it back.")
    return paths


def describe_file(path: Path) -> Described:
    """What a file says, and its hash."""
    metadata = read_header(path).metadata
    is_embedding = metadata.get("modelspec.architecture", "").endswith("/textual-inversion")
    return Described(path.name, digest(path), metadata, is_embedding)


def with_evaluation(files: Sequence[Described], target: Path) -> tuple[list[Described], str]:
    """The files as a card tells of them, the first with the figures of the target's evaluation; its sheet."""
    evaluation = evaluation_of_target(target)
    if evaluation is None:
        return list(files), ""
    first = replace(files[0], metadata=dict(files[0].metadata) | evaluation_keys(evaluation))
    return [first, *files[1:]], sheet_of_target(target)


def shown_images(run: Path) -> list[CardImage]:
    """The last previews that a run keeps, with their prompts."""
    prompts = load_run_recipe(run).samples.prompts if (run / RUN_RECIPE).is_file() else ()
    found = [CardImage(prompt, tuned_image(number)) for number, prompt in enumerate(prompts)]
    return [one for one in found if (run / one.path).is_file()]


def image_beside(file: Path, title: str) -> list[CardImage]:
    """The image that somebody has put beside a file, if there is one."""
    image = file.with_suffix(".png")
    return [CardImage(title, image.name)] if image.is_file() else []


def sidecars_of(target: Path) -> dict[Path, bytes]:
    """Path -> content of all that belongs beside a run's files, or a file.

    No image if a run drew none and was not evaluated, whose sheet takes the place of a preview.
    Among other files the card is called like its own, not README.md.
    """
    if target.is_file():
        described = [describe_file(target)]
        images = image_beside(target, described[0].metadata.get("modelspec.title", ""))
        run, files, card = target.parent, [target], target.with_suffix(".md")
    else:
        run, files, images = target, finished_files(target), shown_images(target)
        described, card = [describe_file(path) for path in files], run / CARD
    described, sheet = with_evaluation(described, target)
    contents: dict[Path, bytes] = {card: model_card(described, images, sheet=sheet).encode()}
    for path, one in zip(files, described, strict=True):
        facts = json.dumps(card_facts(one), indent=2, ensure_ascii=False)
        contents[path.with_suffix(".json")] = f"{facts}\n".encode()
        if image := images[0].path if images else sheet:
            contents[path.with_suffix(".png")] = (run / image).read_bytes()
    return contents


def card_facts(file: Described) -> dict[str, str | float]:
    """What A1111, Forge and InvokeAI read from `<name>.json`."""
    note = file.metadata.get("ss_training_comment", "")
    hint = usage_hint(file.strength, file.trigger, file.metadata.get(STRENGTH_RANGE, ""))
    told = [hint, evaluation_in_short(evaluation_in(file.metadata)), note]
    return {
        "description": file.metadata.get("modelspec.description") or file.metadata.get("modelspec.title", ""),
        "sd version": card_version(file.metadata),
        "activation text": file.trigger,
        "preferred weight": file.strength,
        "negative text": "",
        "notes": "; ".join(filter(None, told)),
    }


def card_version(metadata: Mapping[str, str]) -> str:
    """What UIs call the base that a file is for; "Unknown" is A1111's word, too."""
    known = {
        traits.base_model_version: FAMILIES[name].card_version
        for name in FAMILIES.names()
        for traits in FAMILIES[name].file_traits.values()
    }
    return known.get(metadata.get("ss_base_model_version", ""), "Unknown")


def write_sidecars(target: Path, *, overwrite: bool = False) -> list[Path]:
    """Write them all. Raises StudioError, and writes nothing, if one is there and `overwrite` is not."""
    contents = sidecars_of(target)
    there = [
        path.name
        for path, content in contents.items()
        if path.exists() and not (path.is_file() and path.read_bytes() == content)
    ]
    if there and not overwrite:
        folder = target.parent if target.is_file() else target
        advice = "--force writes over what is there"
        raise StudioError(f"{folder} already holds {preview_names(there)}; {advice}.")
    for path, content in contents.items():
        with say_unwritable(path):
            write_atomically(path, content)
    return list(contents)
