"""`lora-studio inspect`: what a file is, told from its header, and how large its changes are."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_studio.errors import BaseModelError, StudioError, reason_of
from lora_studio.families.layer_names import DENOISER, block_of, block_order
from lora_studio.families.layer_names.transformers import TRANSFORMER
from lora_studio.families.original import detect
from lora_studio.lora_file.layer import LoraLayer
from lora_studio.lora_file.lora_file import LoraFile, lora_file, open_lora
from lora_studio.quiet import paused_collector
from lora_studio.tensor_file.header import Header, read_header
from lora_studio.text import be, plural
from lora_studio.tools import Report
from lora_studio.verify.uis import Base, UiVerdict, base_of_file, verdicts
from lora_studio.verify.uis.findings import embedded_in, embedding_findings, findings, is_embedding
from lora_studio.verify.uis.table import UiFinding

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Facts(Report):
    """What is known of a file. Ranges are lowest and highest, empty where there is none."""

    file: str
    num_bytes: int
    kind: str  # as `_kind` has it, several joined by "+"; or embedding, checkpoint, other
    family: str
    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    dtypes: tuple[str, ...] = ()
    layers: dict[str, int] = field(default_factory=dict)  # part -> how many
    blocks: dict[str, int] = field(default_factory=dict)  # block -> how many layers
    norms: dict[str, float | None] = field(default_factory=dict)  # block -> of its change of weight
    triggers: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    uis: tuple[UiVerdict, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Damaged(Report):
    file: str
    error: str


def inspect_file(path: Path) -> Facts:
    """All that can be told of a file. Raises StudioError if it is missing or damaged."""
    file = open_lora(path)
    assert file.header is not None
    facts, hashes = _facts(file, file.header, numbers=True), file_hashes(file.header)
    said, notes = file.metadata.get("sshs_model_hash"), facts.notes
    if said and said != hashes["sshs_model_hash"]:
        notes += ("its metadata has another sshs_model_hash: its tensors were changed after it was written",)
    return replace(facts, norms=block_norms(_named(file)), hashes=hashes, notes=notes)


@paused_collector()
def inspect_folder(folder: Path) -> list[Facts | Damaged]:
    """Every safetensors file that lies in a folder, from its header; without norms and hashes.

    Raises StudioError if there is none.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == SUFFIX and path.is_file())
    if not paths:
        raise StudioError(f"there is no {SUFFIX} file in {folder}; give a folder of LoRA files, or a file.")
    found: list[Facts | Damaged] = []
    for path in paths:
        try:
            header = read_header(path)
            found.append(_facts(lora_file(header), header, numbers=False))
        except StudioError as error:
            found.append(Damaged(path.name, str(error)))
    return found


def _facts(file: LoraFile, header: Header, *, numbers: bool) -> Facts:
    """With what its numbers say, or without."""
    said, dtypes = header.metadata, tuple(sorted({one.dtype for one in header.entries.values()}))
    size, triggers = file.path.stat().st_size, trigger_words(said)
    facts = Facts(file.name, size, "other", "not known", dtypes=dtypes, triggers=triggers, metadata=said)
    if is_embedding(header):
        return _of_embedding(header, facts)
    if not file.layers:
        return _of_anything(header, facts)
    base, named = base_of_file(file), _named(file)
    return replace(
        facts,
        kind=_kinds(file.layers.values()),
        family=base.title,
        ranks=_range((file if file.transformer is None else named).ranks.values()),
        alphas=_range((file if file.transformer is None else named).alphas.values()),
        layers=dict(Counter(_part(one, base) for one in file.layers.values())),
        blocks=dict(Counter(map(block_of, named.layers))),
        uis=tuple(verdicts(findings(file, base, numbers=numbers), file.layers, base.title)),
        notes=_notes(file, numbers=numbers),
    )


def _of_embedding(header: Header, facts: Facts) -> Facts:
    found, layout = embedding_findings(header), embedded_in(header)
    notes = tuple(
        f"{plural(one.shape[0], 'vector')} in {key}" for key, one in header.entries.items() if one.shape
    )
    uis, family = tuple(verdicts(found, list(header.entries), "any base")), layout and layout.title
    return replace(facts, kind="embedding", family=family or "not known", uis=uis, notes=notes)


def _of_anything(header: Header, facts: Facts) -> Facts:
    """A whole base, or what it is instead."""
    nothing = tuple(verdicts([UiFinding("nothing")], (), "any base"))
    try:
        kind = detect(header.path.name, {key: one.shape for key, one in header.entries.items()})
    except BaseModelError as error:
        what = reason_of(error).removeprefix(f"{header.path.name} is ").split(";")[0]
        return replace(facts, uis=nothing, notes=(f"it is {what}",))
    return replace(facts, kind="checkpoint", family=kind.title, notes=("a whole base, not a LoRA",))


def _kinds(layers: Iterable[LoraLayer]) -> str:
    """As trainers call them: LoCon is LoRA with convolutions larger than 1 x 1, and has plain layers, too."""
    found = set()
    for layer in layers:
        kernel = layer.shapes.get("lora_down.weight", ())[2:]
        convolved = "lora_mid.weight" in layer.shapes or kernel not in ((), (1, 1))
        found.add("dora" if "dora_scale" in layer.shapes else "locon" if convolved else layer.kind.name)
    return "+".join(sorted(found - {"lora"} if "locon" in found else found))


def _named(file: LoraFile) -> LoraFile:
    """With the names that UIs know; as it is, if one layer is twice in it and its contents differ."""
    try:
        return file.in_one_spelling()
    except StudioError:
        return file


def _part(layer: LoraLayer, base: Base) -> str:
    if layer.form is not None:
        return TRANSFORMER
    if layer.name in base.places:
        encoder = base.places[layer.name].encoder
    elif layer.place is None or base.layout is None:
        return "unknown"
    else:
        encoder = base.layout.encoders.get(layer.place.part)
    return DENOISER if encoder is None else encoder.prefix.strip("_").removeprefix("lora_")


def _notes(file: LoraFile, *, numbers: bool) -> tuple[str, ...]:
    notes = [f"it is {file.shard}"] if file.shard else []
    if numbers and file.not_finite:
        notes.append(f"{plural(len(file.not_finite), 'layer')} not finite, first {file.not_finite[0]}")
    if numbers and file.zero:
        number = f"{len(file.zero)} of {plural(len(file.layers), 'layer')}"
        notes.append(f"{number} {be(len(file.zero))} zero")
    if file.bundled:
        notes.append(f"{plural(len(file.bundled), 'tensor')} of embeddings bundled with it")
    if doubles := [f"{one.written} and {other.written}" for one, other in file.doubles()]:
        notes.append(f"{plural(len(doubles), 'layer')} twice in it, under two names, first {doubles[0]}")
    if file.extras:
        notes.append(f"{plural(len(file.extras), 'tensor')} of no layer, first {file.extras[0]}")
    return tuple(notes)


def _range(values: Collection[Any]) -> tuple[Any, ...]:
    return (min(values), max(values)) if values else ()


MOST_TAGS = 10


def trigger_words(metadata: dict[str, str]) -> tuple[str, ...]:
    """The phrase that the file names, then its commonest tags, as far as they can be read."""
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    counts: Counter[str] = Counter()
    try:
        for tags in json.loads(metadata.get("ss_tag_frequency", "{}")).values():
            counts.update({tag.strip(): int(count) for tag, count in tags.items()})
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        counts.clear()  # anybody can have written that
    tags = [tag for tag, _ in counts.most_common(MOST_TAGS)]
    return tuple(dict.fromkeys(one for one in (phrase, *tags) if one))


def file_hashes(header: Header) -> dict[str, str]:
    """As UIs and Civitai know the file: of all of it, and of everything behind the header."""
    whole, behind = hashlib.sha256(), hashlib.sha256()
    with header.path.open("rb") as file:
        whole.update(file.read(header.length))
        while piece := file.read(1 << 20):
            whole.update(piece)
            behind.update(piece)
    sha256, tensors = whole.hexdigest(), behind.hexdigest()
    return {"sha256": sha256, "AutoV2": sha256[:10], "sshs_model_hash": tensors, "AutoV3": tensors[:12]}


def block_norms(file: LoraFile) -> dict[str, float | None]:
    """Block -> Frobenius norm of all its layers' changes together; None if one of them is not known.

    What DoRA, OFT and changed norms come to depends on the base's own weights.
    """
    squares: dict[str, float | None] = {}
    for name, layer in file.layers.items():
        block, norm = block_of(name), layer.norm()
        so_far = squares.get(block, 0.0)
        squares[block] = None if norm is None or so_far is None else so_far + norm * norm
    ordered = sorted(squares.items(), key=lambda one: block_order(one[0]))
    return {block: None if one is None else math.sqrt(one) for block, one in ordered}
