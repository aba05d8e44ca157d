"""Files of the transformer families, written by the real exporter and read by diffusers' own loaders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from export.test_targets import FACTS
from safetensors.torch import load_file
from tiny import BASES

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.export import EXPORTERS
from lora_studio.export.target import ExportJob
from lora_studio.families import FAMILIES
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.lora_file.factors import most_bytes
from lora_studio.lora_file.forms import rows_of_fused
from lora_studio.verify import VerifyReport, verify
from lora_studio.verify.trained import ask_diffusers, rms, run_probe

NAMES = [name for name in FAMILIES.names() if name in BASES and FAMILIES[name].file_layout is not None]


def tuned(family: ModelFamily, *endings: str, **options: object) -> AdapterSet:
    """Adapters that do something in the layers whose paths end so, or in all targets."""
    asked = AdapterOptions(**({"kind": "lora", "rank": 4, "alpha": 2.0, "seed": 0} | options))  # type: ignore[arg-type]
    targets = {"transformer": endings or family.targets["transformer"]}
    adapters = inject(family.parts, targets, asked, canonical_path=family.canonical_path)
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in adapters.named_parameters().values():
            tensor += 0.05 * torch.randn(tensor.shape)
    return adapters


def written(base: str, target: str, folder: Path, adapters: AdapterSet, family: ModelFamily, dtype: str):
    """By an export target, and found right by its own check."""
    bases = (partial(load_base, base), partial(load_base, base, weights=False))
    job = ExportJob(family, adapters, FACTS, folder, dtype, *bases)
    EXPORTERS[target].refuse(job)
    result, report = EXPORTERS[target].write(job), VerifyReport("x")
    EXPORTERS[target].check(job, result, report)
    assert report.ok, report.faults
    return result.paths[0]


@pytest.mark.parametrize("target", ["kohya", "diffusers"])
@pytest.mark.parametrize("name", NAMES)
def test_through_diffusers_loader_it_predicts_as_the_live_adapter(
    name: str, target: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = str(base_of(name))
    family = load_base(base)
    before = run_probe(family)
    adapters = tuned(family)
    live = run_probe(family)
    path = written(base, target, tmp_path, adapters, family, "float32")
    found = ask_diffusers(path, load_base(base))
    assert rms(found - live) < 1e-4 * rms(live - before)


@pytest.mark.parametrize("target", ["comfy", "sd_scripts", "native"])
@pytest.mark.parametrize("name", NAMES)
def test_other_targets_hold_what_was_trained(
    name: str, target: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = str(base_of(name))
    family = load_base(base)
    written(base, target, tmp_path, tuned(family), family, "float16")


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft"])
@pytest.mark.parametrize("name", NAMES)
def test_other_kinds_are_plain_lora_in_the_main_file(
    name: str, kind: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = str(base_of(name))
    family = load_base(base)
    path = written(base, "kohya", tmp_path, tuned(family, kind=kind), family, "float32")
    assert verify(path, base=base).ok


@pytest.mark.parametrize("endings", [(), ("attn.to_q", "attn.to_k", "attn.to_v")])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_no_larger_than_the_plan_says(
    name: str, endings: tuple[str, ...], base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """With fused layers' zeros; FLUX.1's single blocks are fused with what is not trained."""
    family = load_base(str(base_of(name)))
    attention = {"z_image": "attention.", "anima": "attn1."}.get(name, "attn.")
    endings = tuple(one.replace("attn.", attention) for one in endings)
    adapters = tuned(family, *endings)
    path = written(str(base_of(name)), "kohya", tmp_path, adapters, family, "float16")
    numbers = sum(one.nbytes for key, one in load_file(path).items() if not key.endswith("alpha"))
    most = most_bytes(adapters, "float16", partial(rows_of_fused, family))
    beside = 2**14 if endings else 2**10  # zeros of rank 1 for the layers that UIs look for
    assert 0.9 * most <= numbers <= most + beside
