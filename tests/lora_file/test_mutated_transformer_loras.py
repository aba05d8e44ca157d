"""LoRA files of transformer families, mutated, are used or refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from transformer_mutator import LAYERS, PREFIXES, run, whole_file

from lora_studio.tools.inspect import inspect_file

FOUND = (410, 511)  # norms beyond float64 when squared; a product of tensors with sides too many


def test_mutated_files_of_transformers_are_used_or_refused_in_one_sentence(tmp_path: Path) -> None:
    counts, crashes = run(tmp_path, range(20))
    assert not crashes, "\n".join(crashes)
    assert min(counts.values()) >= 30  # neither everything nor nothing


def test_what_hundreds_found_stays_mended(tmp_path: Path) -> None:
    counts, crashes = run(tmp_path, FOUND)
    assert not crashes and sum(counts.values()) == 7 * len(FOUND)


@pytest.mark.slow
def test_a_thousand_mutated_files_of_transformers(tmp_path: Path) -> None:
    counts, crashes = run(tmp_path, range(1000, 2000))
    assert not crashes, "\n".join(crashes)
    assert min(counts.values()) > 1000


@pytest.mark.parametrize("layers", LAYERS)
def test_the_files_of_transformers_that_are_mutated_are_read(layers: str, tmp_path: Path) -> None:
    """So that what is mutated is known."""
    path = tmp_path / "x.safetensors"
    for prefix in PREFIXES:
        save_file(whole_file(layers, prefix, "lora", lettered=False), path)
        facts = inspect_file(path)
        assert facts.kind == "lora" and facts.layers == {"transformer": len(LAYERS[layers])}, prefix
