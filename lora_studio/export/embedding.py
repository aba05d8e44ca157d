"""Learned tokens as files that UIs load, one a token and named after it, and the proof that they are.

One text encoder's vectors are `emb_params` [n, D], two encoders' are `clip_l` and `clip_g`; nothing else may
be in a file, and no second token: A1111 refuses that, ComfyUI takes the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.errors import StudioError
from lora_studio.export import kohya
from lora_studio.export.target import ExportJob, ExportResult, Target, worst_left_out
from lora_studio.families.base import FileTraits, ModelFamily
from lora_studio.families.text_chunks import pool_at_end_mark
from lora_studio.lora_file.lora_file import open_lora
from lora_studio.lora_file.write import write_lora
from lora_studio.metadata.write import TrainingFacts, base_keys, hashes
from lora_studio.tensor_file.header import open_tensors
from lora_studio.verify import VerifyReport
from lora_studio.verify.trained import check_deltas, check_embedding
from lora_studio.version import __version__

_START = "bundle_emb."
_NOTE = (
    "for A1111 alone: diffusers refuses such a file, and ComfyUI, Forge, InvokeAI, stable-diffusion.cpp and "
    "kohya leave the tokens out"
)


def embeddings(family: ModelFamily, adapters: AdapterSet) -> dict[str, dict[str, Tensor]]:
    """Word -> UI key -> its vectors [n, D], float32."""
    found: dict[str, dict[str, Tensor]] = {}
    for token in adapters.tokens:
        rows = token.rows.detach().float().cpu().contiguous()
        found.setdefault(token.word, {})[family.embedding_keys[token.part]] = rows
    return found


def embedding_metadata(
    facts: TrainingFacts, traits: FileTraits, word: str, tensor_block: bytes
) -> dict[str, str]:
    """What a token's file says about itself; no clock, path or folder."""
    said = {key: value for key, value in base_keys(traits).items() if key != "ss_v2"} | {
        "modelspec.architecture": traits.architecture.replace("/lora", "/textual-inversion"),
        "modelspec.title": word,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
        "modelspec.trigger_phrase": word,
        "ss_steps": str(facts.steps),
        "lora_studio.version": __version__,
        "lora_studio.base_fingerprint": facts.base_fingerprint,
    }
    base = {"lora_studio.base": facts.base} if facts.base else {}
    return said | hashes([tensor_block]) | base | dict(facts.spec) | dict(facts.provenance)


class Embedding(Target):
    """A file for every learned token."""

    name: ClassVar[str] = "embedding"

    def paths(self, job: ExportJob) -> tuple[Path, ...]:
        words = dict.fromkeys(token.word for token in job.adapters.tokens)
        return tuple(job.folder / f"{word}.safetensors" for word in words)

    def refuse(self, job: ExportJob) -> None:
        if not job.adapters.tokens:
            raise StudioError("embedding is for learned tokens, and this run has none; leave it out.")

    def write(self, job: ExportJob) -> ExportResult:
        """A file for each learned word, with a tensor [vectors, width] for each text encoder."""
        paths = self.paths(job)
        found, error = embeddings(job.family, job.adapters), 0.0
        for path, (word, tensors) in zip(paths, found.items(), strict=True):
            describe = partial(embedding_metadata, job.facts, job.family.traits, word)
            error = max(error, write_lora(path, tensors, dtype=job.dtype, describe=describe))
        return ExportResult(paths, error)

    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
        check_embeddings({path.stem: path for path in made.paths}, job.family, job.adapters, report)


class A1111Bundle(Target):
    """A LoRA and the learned tokens that it was trained with in one file, which A1111 alone reads whole."""

    name: ClassVar[str] = "a1111_bundle"
    ending: ClassVar[str] = "_a1111.safetensors"

    def refuse(self, job: ExportJob) -> None:
        """Raises StudioError unless the run has both a LoRA and learned words."""
        if not job.adapters.layers or not job.adapters.tokens:
            raise StudioError(
                "a1111_bundle is for a LoRA and learned tokens together, and this run has not both; take the "
                f"target {'kohya' if job.adapters.layers else 'embedding'}."
            )

    def write(self, job: ExportJob) -> ExportResult:
        (path,) = self.paths(job)
        plain = kohya.plain_layers(job.family, job.adapters)
        error = job.write(path, kohya.spell(plain) | _tokens(job))
        return ExportResult((path,), error, worst_left_out(job, plain.values()), (_NOTE,))

    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
        """The layers as of any LoRA, and the tokens' vectors to the dtype's rounding."""
        check_deltas(open_lora(made.paths[0]), job.family, job.adapters, report)
        tensors, _ = open_tensors(made.paths[0])
        for key, live in _tokens(job).items():
            if key not in tensors or not tensors[key].equal(live.to(tensors[key].dtype)):
                report.faults.append(f"{key} is not what was trained")


EMBEDDING, A1111_BUNDLE = Embedding(), A1111Bundle()


def _tokens(job: ExportJob) -> dict[str, Tensor]:
    found = embeddings(job.family, job.adapters)
    return {f"{_START}{word}.{key}": one for word, tensors in found.items() for key, one in tensors.items()}


def check_embeddings(
    paths: Mapping[str, Path], family: ModelFamily, adapters: AdapterSet, report: VerifyReport
) -> None:
    """The written files against the tokens that they were written from."""
    live, worst = embeddings(family, adapters), 0.0
    report.checks["embeddings"] = {word: path.name for word, path in paths.items()}
    moved = {f"{one.word} in {one.part}": round(one.moved, 4) for one in adapters.tokens}
    report.checks["embeddings_moved"] = moved
    for word, path in paths.items():
        tensors = check_embedding(path, family, report)
        for key, trained in live[word].items():
            if key not in tensors or tensors[key].shape != trained.shape:
                report.faults.append(f"{path.name}: {key} is not of the shape that was trained")
                continue
            error = (tensors[key].float() - trained).norm() / trained.norm()
            worst = max(worst, (error / torch.finfo(tensors[key].dtype).eps).item())
    report.checks["embedding_error"] = worst  # in units of the dtype's rounding
    if worst > 1:
        report.faults.append("an embedding differs from the trained one by more than its dtype rounds")
    for word in paths:
        if all(one.moved == 0 for one in adapters.tokens if one.word == word):
            report.faults.append(f"{word} is still what it began as: no step has shown it")


def load_embedding(path: Path, word: str, family: ModelFamily) -> None:
    """Through diffusers' `load_textual_inversion`, into the (unadapted) family's own parts."""
    pipeline = family.pipeline()
    tensors, _ = open_tensors(path)
    for part, key in family.embedding_keys.items():
        source = path if len(tensors) == 1 else {key: tensors[key].clone()}
        pipeline.load_textual_inversion(
            source, token=word, tokenizer=family.tokenizer_of(part), text_encoder=family.parts[part]
        )
    pool_at_end_mark(family)
