"""A model card: what a file is, how it is used and how it was made, with the front matter of the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lora_studio.families.layer_names import DENOISER, DENOISER_TITLE
from lora_studio.families.loading import is_hub_id
from lora_studio.metadata.write import STRENGTH

HUB_TAGS = ("text-to-image", "stable-diffusion", "diffusers", "lora")
_FACTS = {
    "ss_sd_model_name": "base",
    "ss_new_sd_model_hash": "sha256 of the base's file",
    "ss_network_dim": "rank",
    "ss_network_alpha": "alpha",
    "ss_steps": "steps",
    "ss_num_train_images": "images",
    "ss_num_reg_images": "regularization images",
    "modelspec.resolution": "resolution",
    f"ss_{DENOISER}_lr": f"learning rate of the {DENOISER_TITLE}",
    "ss_text_encoder_lr": "learning rate of the text encoders",
    "ss_optimizer": "optimizer",
    "ss_lr_scheduler": "schedule",
    "ss_total_batch_size": "batch size",
    "ss_mixed_precision": "mixed precision",
    "ss_seed": "seed",
    "ss_training_comment": "note",
    "lora_studio.version": "LoRA Studio",
    "lora_studio.provenance.root": "Merkle root of images and captions",
}


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


def model_card(files: Sequence[Described], images: Sequence[CardImage]) -> str:
    """The text of README.md: about the first of `files`; the others are used together with it."""
    first = files[0]
    title = first.metadata.get("modelspec.title") or first.name
    parts = [_front_matter(first), f"# {_plain(title)}"]
    if description := first.metadata.get("modelspec.description"):
        parts.append(_plain(description))
    parts += [f"![{_plain(one.prompt)}]({one.path})\n\n*{_plain(one.prompt)}*" for one in images]
    parts.append("## Use\n\n" + "\n".join(_use(one) for one in files))
    if not first.is_embedding:
        parts.append(_snippet(first))
    facts = {words: first.metadata[key] for key, words in _FACTS.items() if first.metadata.get(key)}
    rows = [f"| {words} | {_plain(value)} |" for words, value in facts.items()]
    rows += [f"| sha256 of `{one.name}` | {one.sha256} |" for one in files]
    parts.append("\n".join(["## Facts", "", "| | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _front_matter(file: Described) -> str:
    """YAML, with values as JSON strings, which YAML reads. The licence is the user's to choose."""
    own = [one.strip() for one in file.metadata.get("modelspec.tags", "").split(",") if one.strip()]
    kind = "textual-inversion" if file.is_embedding else "template:sd-lora"
    base = file.metadata.get("lora_studio.base", "")
    values = {
        "license": file.metadata.get("modelspec.license", ""),
        "base_model": base if is_hub_id(base) else "",
        "instance_prompt": file.trigger,
    }
    lines = [f"{key}: {_quoted(value)}" for key, value in values.items() if value]
    tags = [one for one in HUB_TAGS if not (file.is_embedding and one == "lora")]
    listed = [f"- {_quoted(one)}" for one in dict.fromkeys([*tags, kind, *own])]
    return "\n".join(
        ["---", *lines, "library_name: diffusers", "pipeline_tag: text-to-image", "tags:", *listed, "---"]
    )


def _use(file: Described) -> str:
    if file.is_embedding:
        return f"- `{file.name}` goes among the embeddings; the word `{_plain(file.trigger)}` calls it."
    words = f" and the trigger words `{_plain(file.trigger)}`" if file.trigger else ""
    return f"- `{file.name}` goes among the LoRAs; use it with strength {file.strength:g}{words}."


def _snippet(file: Described) -> str:
    named = file.metadata.get("lora_studio.base", "")
    base = json.dumps(named if is_hub_id(named) else "path/to/the/base")
    return "\n".join(
        [
            "```python",
            "from diffusers import DiffusionPipeline",
            "",
            f"pipeline = DiffusionPipeline.from_pretrained({base})",
            f'pipeline.load_lora_weights(".", weight_name={json.dumps(file.name)}, adapter_name="lora")',
            f'pipeline.set_adapters("lora", {file.strength:g})',
            f"image = pipeline({json.dumps(file.trigger or 'a prompt', ensure_ascii=False)}).images[0]",
            "```",
        ]
    )


def _quoted(text: str) -> str:
    return json.dumps(" ".join(text.split()), ensure_ascii=False)


def _plain(text: str) -> str:
    """One line that Markdown shows as it is."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for letter in "\\`*_[]|#":
        text = text.replace(letter, f"\\{letter}") if letter != "`" else text.replace(letter, "'")
    return text
