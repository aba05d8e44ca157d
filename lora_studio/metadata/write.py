"""What a finished file says about itself: what UIs read, and nothing about the user's machine.

No path, user or folder name goes in, and no caption unless it is asked for: a file can be given away. No
clock either, although the `ss_training_started_at` and `modelspec.date` of other trainers are one: the same
recipe gives the same bytes; `lora-studio metadata FILE --set modelspec.date=...` adds one. No `ss_datasets`,
which names folders and repeats what `ss_dataset_dirs` and `ss_bucket_info` say.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lora_studio.families.layer_names import DENOISER
from lora_studio.tensor_file.header import tensor_hash
from lora_studio.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from lora_studio.data.manifest import Record
    from lora_studio.families.base import FileTraits

MAX_BYTES = 64 * 1024  # of metadata as the header has it
_LONGEST = 2000  # letters of a text that a user may make as long as he likes
STRENGTH = "lora_studio.strength"
STRENGTH_RANGE = "lora_studio.strength_range"  # in which it was measured to be of use
CHECKPOINT = "lora_studio.checkpoint"  # of how many steps, and by what it was taken


@dataclass(frozen=True)
class TrainingFacts:
    """What is worth telling about how a file was made."""

    name: str
    title: str
    base: str  # the base's public name, or "" for a local one
    base_fingerprint: str
    trigger: str
    rank: int
    alpha: float
    steps: int
    seed: int
    num_images: int
    resolution: int
    learning_rate: float | None  # of the denoiser; None: it was not trained
    text_encoder_learning_rate: float | None
    optimizer: str
    schedule: str
    snr_gamma: float
    debiased: bool
    noise_offset: float
    needs: tuple[tuple[str, float], ...] = ()  # sha256 and strength of LoRAs that are merged into the base
    options: Mapping[str, str] = field(default_factory=dict)  # further ss_* keys, of what was used
    spec: Mapping[str, str] = field(default_factory=dict)  # modelspec.* keys: what the user says of it
    triggers: Mapping[str, int] = field(default_factory=dict)  # of each: images
    tags: Mapping[str, int] = field(default_factory=dict)  # of the captions, if wanted: images
    provenance: Mapping[str, str] = field(default_factory=dict)
    strength: float = 1.0  # recommended
    dim: str = ""  # of the file's layers, if not `rank`: "Dynamic" if they differ, as kohya has it
    algorithm: str = ""  # LyCORIS's name of the kind, in a file that has its tensors and not plain LoRA


def of_file(facts: TrainingFacts, tensors: Mapping[str, Tensor]) -> TrainingFacts:
    """The facts with rank and alpha of a plain file: other kinds', and PiSSA's, are not the recipe's.

    Layers that do nothing do not count, nor convolutions larger than 1 x 1, which have `conv_dim`.
    """
    ranks, alphas = set(), set()
    for key, down in tensors.items():
        name, _, ending = key.partition(".")
        plain = ending == "lora_down.weight" and down[0, 0].numel() == 1
        if plain and tensors[f"{name}.lora_up.weight"].any():
            ranks.add(len(down))
            alphas.add(tensors[f"{name}.alpha"].item())
    if not ranks:
        return facts
    dim = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    return replace(facts, dim=dim, alpha=alphas.pop() if len(alphas) == 1 else facts.alpha)


def build_metadata(facts: TrainingFacts, traits: FileTraits, tensor_block: bytes) -> dict[str, str]:
    """Header metadata; `tensor_block` is the file without its header, for the hash that UIs know it by.

    Tags are left out if there is no room for them; `write_lora` adds what depends on the header.
    """
    trigger = _shortened(facts.trigger)
    # What has to be loaded beside this file: by hashes, which UIs know files by; names are private.
    needed = ", ".join(f"sha256 {digest[:10]} at {strength:g}" for digest, strength in facts.needs)
    rates = {DENOISER: facts.learning_rate, "text_encoder": facts.text_encoder_learning_rate}
    optional = {
        "ss_min_snr_gamma": f"{facts.snr_gamma:g}" if facts.snr_gamma and not facts.debiased else "",
        "ss_debiased_estimation": "True" if facts.debiased else "",
        "ss_noise_offset": f"{facts.noise_offset:g}" if facts.noise_offset else "",
        **{f"ss_{part}_lr": f"{rate:g}" for part, rate in rates.items() if rate is not None},
        "ss_training_comment": f"made on top of other LoRAs, and needs them: {needed}" if needed else "",
        "lora_studio.base_loras": json.dumps(facts.needs) if facts.needs else "",
        "lora_studio.base": facts.base,
        "modelspec.trigger_phrase": trigger,
        "modelspec.merged_from": ", ".join(f"0x{digest}" for digest, _ in facts.needs),
    }
    metadata = base_keys(traits) | _trained(facts) | {k: v for k, v in optional.items() if v}
    metadata |= {key: _shortened(value) for key, value in facts.spec.items()}
    metadata |= dict(facts.options) | _network(facts) | dict(facts.provenance)
    hint = usage_hint(facts.strength, trigger, facts.options.get(STRENGTH_RANGE, ""))
    strength = f"{facts.strength:g}"
    metadata |= {"lora_studio.version": __version__, "lora_studio.base_fingerprint": facts.base_fingerprint}
    metadata |= {STRENGTH: strength, "modelspec.usage_hint": hint} | hashes([tensor_block])
    metadata |= tag_keys(facts.triggers, facts.tags, MAX_BYTES - size_of(metadata) - 2)
    assert size_of(metadata) < MAX_BYTES, f"metadata of {size_of(metadata)} bytes"
    return metadata


def hashes(block: Iterable[bytes | memoryview]) -> dict[str, str]:
    """By which UIs know a file, of all after its header; `legacy_hash` depends on the header, too."""
    whole = tensor_hash(block)
    return {"modelspec.hash_sha256": f"0x{whole}", "sshs_model_hash": whole}


def size_of(metadata: Mapping[str, str]) -> int:
    """Bytes that it takes in a header: a table within a text has a backslash before each of its quotes."""
    return len(json.dumps(dict(metadata), separators=(",", ":"), ensure_ascii=False).encode())


def usage_hint(strength: float, trigger: str, usable: str = "") -> str:
    """`usable`: the range of strengths, "0.6 to 1.2", if it was measured."""
    ranged = f", usable from {usable}" if usable else ""
    return f"strength {strength:g}{ranged}" + (f"; trigger words: {trigger}" if trigger else "")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _network(facts: TrainingFacts) -> dict[str, str]:
    arguments = json.loads(facts.options.get("ss_network_args", "{}"))
    if facts.algorithm:
        arguments["algo"] = facts.algorithm
    return {
        "ss_network_module": "lycoris.kohya" if facts.algorithm else "networks.lora",
        "ss_network_dim": facts.dim or str(facts.rank),
        "ss_network_alpha": f"{facts.alpha:g}",
        "ss_network_args": json.dumps(arguments),
    }


def base_keys(traits: FileTraits) -> dict[str, str]:
    """By which UIs tell the base that a file is for."""
    prediction = {"modelspec.prediction_type": traits.prediction_type} if traits.prediction_type else {}
    return {
        "ss_v2": str(traits.is_v2),
        "ss_base_model_version": traits.base_model_version,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": traits.architecture,
        "modelspec.implementation": traits.implementation,
        **prediction,
    }


def _trained(facts: TrainingFacts) -> dict[str, str]:
    return {
        "ss_output_name": facts.name,
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
        "ss_num_train_images": str(facts.num_images),
        "ss_steps": str(facts.steps),
        "ss_seed": str(facts.seed),
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": facts.schedule,
        "modelspec.title": facts.title,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
    }


TRIGGER, CAPTIONS = "trigger", "captions"
_MOST_LETTERS = 200  # of a tag: more is a sentence
KEY, LEFT_OUT = "ss_tag_frequency", "lora_studio.tags_left_out"


def trigger_table(records: Iterable[Record]) -> dict[str, int]:
    """Trigger words -> how many of these images they call, the most first."""
    return dict(Counter(one.trigger for one in records if one.trigger).most_common())


def caption_table(records: Iterable[Record]) -> dict[str, int]:
    """What stands between commas in captions -> in how many of them, the most first, then by name."""
    counts: Counter[str] = Counter()
    for record in records:
        captions = " , ".join(record.lines or (record.caption,))
        counts.update({tag for one in captions.replace("\n", ",").split(",") if (tag := one.strip())})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def tag_keys(triggers: Mapping[str, int], captions: Mapping[str, int], room: int) -> dict[str, str]:
    """The keys of a table of at most `room` bytes in a header; the rarest tags are left out, and counted.

    Trigger words come first. Readers add up the tables, so they have the highest counts, too, if captions
    hold them.
    """
    tables: dict[str, dict[str, int]] = {TRIGGER: {}, CAPTIONS: {}}
    wanted = [(TRIGGER, *one) for one in triggers.items()] + [(CAPTIONS, *one) for one in captions.items()]
    used, left_out = _bytes({KEY: json.dumps(tables), LEFT_OUT: "9" * 9}), 0
    for table, tag, count in wanted:
        inner = json.dumps({tag: count}, ensure_ascii=False)[1:-1]
        if len(tag) <= _MOST_LETTERS and (used := used + _bytes(f"{inner}, ") - 2) <= room:
            tables[table][tag] = count
        else:
            left_out += 1
    tables = {name: table for name, table in tables.items() if table}
    keys = {KEY: json.dumps(tables, ensure_ascii=False)} if tables else {}
    return keys | ({LEFT_OUT: str(left_out)} if left_out else {})


def _bytes(values: Mapping[str, str] | str) -> int:
    """In a header, where a quote takes two."""
    return len(json.dumps(values, ensure_ascii=False).encode())


def left_out_in_words(checks: Mapping[str, int]) -> str:
    """Empty if all tags are in the file."""
    count = checks.get("tags_left_out", 0)
    return f"metadata has no room for all tags: {count} are left out, the rarest" if count else ""
