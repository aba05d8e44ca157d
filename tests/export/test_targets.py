"""Every target through the loader that it is for: no key unused, and the change that was trained."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from original_layout import MINIATURES, new_parts, settle_upsamplers, to_original
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.full import FULL
from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.errors import RecipeError, StudioError
from lora_studio.export import EXPORTERS
from lora_studio.export.target import ExportJob, ExportResult, Target
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.families.original import KINDS
from lora_studio.families.original.names import original_tensors
from lora_studio.metadata.write import TrainingFacts
from lora_studio.verify import VerifyReport
from lora_studio.verify.trained import ask_diffusers, rms, run_probe

FACTS = TrainingFacts(
    *("tiny", "Tiny", "", "0" * 64, "zwx", 4, 2.0, 7, 1, 5, 64, 1e-4, None, "adamw", "cosine"),
    *(0.0, False, 0.0),
)
PLACES = (
    "mid_block.attentions.0.proj_in",
    "0.attn2.to_k",
    "0.attn1.to_q",
    "resnets.0.conv1",
    "conv_shortcut",
)
TEXT = ("layers.0.self_attn.q_proj", "layers.0.mlp.fc1")


def tuned(family: ModelFamily, **options: object) -> AdapterSet:
    """Adapters in the denoiser and a text encoder that do something; ranks differ."""
    wishes = AdapterOptions(**({"kind": "lora", "rank": 4, "alpha": 2.0, "seed": 0} | options))  # type: ignore[arg-type]
    targets = {"unet": PLACES, family.text_encoders[-1]: TEXT}
    adapters = inject(family.parts, targets, wishes, canonical_path=family.canonical_path)
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in adapters.named_parameters().values():
            tensor += 0.05 * torch.randn(tensor.shape)
    return adapters


def made(
    base: str, target: str, folder: Path, *, dtype: str = "float16", **options: object
) -> tuple[ExportJob, ExportResult]:
    """Written and found right by its own check."""
    family = load_base(base)
    bases = (partial(load_base, base), partial(load_base, base, weights=False))
    job = ExportJob(family, tuned(family, **options), FACTS, folder, dtype, *bases)
    EXPORTERS[target].refuse(job)
    result, report = EXPORTERS[target].write(job), VerifyReport("x")
    EXPORTERS[target].check(job, result, report)
    assert report.ok, report.faults
    return job, result


@pytest.mark.parametrize("base", ["sd15", "sd2", "sdxl"])
@pytest.mark.parametrize("target", ["kohya", "diffusers"])
def test_diffusers_loads_every_key_and_answers_as_the_live_adapter(
    base: str, target: str, base_of: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Linear layers and convolutions, two ranks, alpha other than the rank, a text encoder."""
    name = str(base_of(base))
    job, result = made(name, target, tmp_path, kind="locon", conv_rank=3)
    live, fresh = run_probe(job.family), load_base(name)
    with caplog.at_level(logging.WARNING):
        answer = ask_diffusers(result.paths[0], fresh)
    assert rms(answer - live) < 5e-3 * rms(live - run_probe(fresh))
    unused = ("unexpected keys", "missing keys", "not been correctly")
    assert not [one for one in caplog.messages if any(words in one for words in unused)]


def test_a_diffusers_file_has_peft_names_and_nothing_else(
    base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    job, result = made(str(base_of("sdxl")), "diffusers", tmp_path)
    keys = load_file(result.paths[0]).keys()
    assert keys == {f"{one.name}.lora_{end}.weight" for one in job.adapters.layers for end in "AB"}
    assert "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight" in keys


def check_through_lycoris(job: ExportJob, result: ExportResult) -> None:
    """Each layer answers as the live one, by LyCORIS' own modules; no tensor of the file is left over."""
    modules = pytest.importorskip("lycoris.modules")
    tensors, fresh, used = load_file(result.paths[0]), job.load_base(), set()
    for layer in job.adapters.layers:
        ui = job.family.ui_name(layer.part, layer.path)
        frozen, full = fresh.layer(layer.part, layer.path), layer.kind is FULL
        kind_of, values = modules.get_module(tensors, ui)
        module = modules.make_module(kind_of, values, ui, frozen)
        inputs = torch.randn(2, layer.delta().shape[1], *((8, 8) if layer.delta().ndim == 4 else ()))
        base, live = frozen(inputs), layer.module.module(inputs) if full else layer.module(inputs)
        module.apply_to()  # not its merged weight, to which LyCORIS 4.1 gives LoHa's scale twice
        assert (frozen(inputs) - live).norm() < 1e-4 * (live - base).norm(), ui
        used |= {f"{ui}.{end}" for end in kind_of.weight_list}
    companions = {key for key in tensors.keys() - used if ".lora_up" in key and not tensors[key].any()}
    left = {
        key for key in tensors.keys() - used if f"{key.partition('.')[0]}.lora_up.weight" not in companions
    }
    assert not left


@pytest.mark.parametrize(
    ("kind", "rank"), [("dora", 3), ("loha", 3), ("lokr", 2), ("lokr", 64), ("locon", 3), ("full", 4)]
)
def test_lycoris_reads_a_native_file_as_the_live_change(
    kind: str, rank: int, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """`rank` 64 is LoKr's of two whole factors."""
    options = {"kind": kind} | ({} if kind == "full" else {"rank": rank, "alpha": 1.5})
    check_through_lycoris(*made(str(base_of("sd15")), "native", tmp_path, dtype="float32", **options))


@pytest.mark.parametrize("base", ["sd15", "sd2", "sdxl"])
def test_lycoris_reads_a_kohya_file_as_the_live_change(
    base: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    options = {"kind": "locon", "conv_rank": 3}
    check_through_lycoris(*made(str(base_of(base)), "kohya", tmp_path, dtype="float32", **options))


@pytest.mark.parametrize("base", ["sd15", "sd2", "sdxl"])
def test_peft_reads_a_diffusers_file_as_the_live_change(
    base: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """By PEFT's own loader, into a denoiser that it has put its layers into; no key is left over."""
    name = str(base_of(base))
    job, result = made(name, "diffusers", tmp_path, dtype="float32", kind="locon", conv_rank=3)
    tensors = {
        key.removeprefix("unet."): tensor
        for key, tensor in load_file(result.paths[0]).items()
        if key.startswith("unet.")
    }
    ranks = {key.removesuffix(".lora_A.weight"): len(one) for key, one in tensors.items() if "lora_A" in key}
    config = LoraConfig(target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=ranks)
    unet = load_base(name).parts["unet"]
    inject_adapter_in_model(config, unet)
    answer = set_peft_model_state_dict(unet, tensors)
    assert not answer.unexpected_keys and not [key for key in answer.missing_keys if "lora_" in key]
    live = {layer.path: layer.delta() for layer in job.adapters.layers if layer.part == "unet"}
    assert live.keys() == ranks.keys() and set(ranks.values()) == {3, 4}
    for path, delta in live.items():
        found = unet.get_submodule(path).get_delta_weight("default")
        assert (found - delta).norm() < 1e-5 * delta.norm(), path


def test_a_native_file_says_who_does_not_read_it(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    _, result = made(str(base_of("sd15")), "native", tmp_path, kind="dora")
    assert "A1111" in result.notes[0] and "garbage" in result.notes[0]


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("native", {"kind": "oft"}, "take the target kohya"),
        ("kohya", {"kind": "full"}, "take the target merged or checkpoint"),
        ("diffusers", {"kind": "full"}, "take the target merged or checkpoint"),
        ("a1111_bundle", {}, "take the target kohya"),
        ("embedding", {}, "has none"),
    ],
)
def test_what_a_target_cannot_hold_is_refused(
    target: str, options: dict[str, object], words: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(StudioError, match=words):
        made(str(base_of("sd15")), target, tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "target", "size", "words"),
    [
        ("lora", "merged", 1.0, ""),
        ("lora", "merged", 3e-4, "warning: float16 rounds away"),
        ("full", "checkpoint", 3e-4, "warning: float16 rounds away"),
        ("lora", "checkpoint", 1e-12, "nothing of them would be left"),
    ],
)
def test_what_rounding_takes_of_a_merged_change_is_said(
    kind: str, target: str, size: float, words: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """As where the base's weights are much larger than what was learned."""
    fresh = partial(load_base, str(base_of("sd15")))
    family, before = fresh(), fresh()
    job = ExportJob(family, tuned(family, kind=kind), FACTS, tmp_path, "float16", fresh, fresh)
    with torch.no_grad():
        for layer in job.adapters.layers:
            start = before.layer(layer.part, layer.path)
            for end in layer.originals or ["up"]:
                began = start.get_parameter(end) if layer.originals else 0
                layer.tensors[end].copy_(began + size * (layer.tensors[end] - began))
    if "nothing" in words:
        with pytest.raises(StudioError, match=f"{words}; give --dtype float32"):
            EXPORTERS[target].write(job)
        assert not list(tmp_path.iterdir())
    else:
        notes = [note for note in EXPORTERS[target].write(job).notes if "warning" in note]
        assert len(notes) == bool(words)
        assert all(words in note and "give --dtype float32" in note for note in notes)


@pytest.mark.parametrize("kind", ["oft", "full"])
@pytest.mark.parametrize("target", ["merged", "checkpoint"])
def test_a_whole_base_answers_as_the_live_adapter(
    target: str, kind: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    job, result = made(str(base_of("sdxl")), target, tmp_path, dtype="float32", kind=kind)
    if target == "merged":
        assert rms(run_probe(load_base(str(result.paths[0]))) - run_probe(job.family)) < 1e-4 * rms(
            run_probe(job.family)
        )
        return
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    layer = next(
        one
        for one in job.adapters.layers
        if one.path.endswith("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    )
    base = load_base(str(base_of("sdxl"))).layer(layer.part, layer.path).weight
    assert torch.allclose(load_file(result.paths[0])[key], base + layer.delta(), atol=1e-6)


@pytest.mark.parametrize("number", range(3))
def test_a_single_file_has_the_original_keys_and_numbers(number: int) -> None:
    """Against the tests' own map of names, which shares nothing with the one that writes."""
    name, kind = ("sd15", "sd2", "sdxl")[number], KINDS[number]
    torch.manual_seed(0)
    parts = new_parts(name, MINIATURES[name], words=300)
    written, expected = original_tensors(kind, parts), settle_upsamplers(to_original(name, parts))
    # older libraries kept these as a tensor, and published files of both kinds with CLIP-L have them
    places = {key for key in written if key.endswith("embeddings.position_ids")}
    assert written.keys() - places == expected.keys() and len(places) == (name != "sd2")
    unasked = ("logit_scale", "model.text_projection" if name == "sd2" else "logit_scale")
    for key in expected:
        assert written[key].shape == expected[key].shape
        assert key.endswith(unasked) or torch.equal(written[key], expected[key]), key


@pytest.mark.parametrize(("number", "count"), [(0, 1131), (1, 1228), (2, 2515)])
def test_a_single_file_at_full_size_has_the_published_keys(number: int, count: int) -> None:
    from original_layout import PUBLISHED

    name = ("sd15", "sd2", "sdxl")[number]
    with torch.device("meta"):
        parts = new_parts(name, PUBLISHED[name])
        expected = settle_upsamplers(to_original(name, parts))
    written = original_tensors(KINDS[number], parts)
    assert len(written) == count
    assert {key: one.shape for key, one in written.items() if "position_ids" not in key} == {
        key: one.shape for key, one in expected.items()
    }


@pytest.mark.parametrize("number", range(3))
def test_diffusers_loads_the_same_numbers_from_a_single_file(number: int, tmp_path: Path) -> None:
    """By its own reader; text encoders, which that takes in published sizes alone, by ours."""
    from lora_studio.families.loading.single_file import open_single_file
    from lora_studio.lora_file.write import write_large

    name, path = ("sd15", "sd2", "sdxl")[number], tmp_path / "whole.safetensors"
    torch.manual_seed(0)
    parts = new_parts(name, MINIATURES[name])
    write_large(path, original_tensors(KINDS[number], parts), dtype="float32", metadata={})
    for part in ("unet", "vae"):
        parts[part].save_config(tmp_path / part)
        loaded = type(parts[part]).from_single_file(
            path, config=str(tmp_path), subfolder=part, local_files_only=True
        )
        found, expected = loaded.state_dict(), parts[part].state_dict()
        assert found.keys() == expected.keys() and all(found[key].equal(expected[key]) for key in found)
    for part, module in open_single_file(path).load().parts.items():
        expected = parts[part].state_dict()
        assert all(one.equal(expected[key]) for key, one in module.state_dict().items()), part


class DenseChanges(Target):
    """Every layer's change multiplied out."""

    name: ClassVar[str] = "dense"
    ending: ClassVar[str] = "_dense.safetensors"
    weights_alone: ClassVar[bool] = True

    def write(self, job: ExportJob) -> ExportResult:
        (path,) = self.paths(job)
        save_file({layer.name: layer.delta().contiguous() for layer in job.adapters.layers}, path)
        return ExportResult((path,), 0.0)

    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
        tensors = load_file(made.paths[0])
        if any(not tensors[layer.name].equal(layer.delta()) for layer in job.adapters.layers):
            report.faults.append("a change is not the trained one")


@pytest.fixture
def own_target(monkeypatch: pytest.MonkeyPatch) -> str:
    """A target of one's own: its file, and its line in the table; nothing else is touched."""
    module = ModuleType("own_target")
    module.DENSE = DenseChanges()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_target", module)
    monkeypatch.setitem(EXPORTERS.entries, "dense", "own_target:DENSE")
    return "dense"


def test_an_own_target_is_written_checked_and_refused_as_the_others_are(
    own_target: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = str(base_of("sd15"))
    job, result = made(base, own_target, tmp_path)
    (path,) = result.paths
    assert path.name == "tiny_dense.safetensors" and len(load_file(path)) == len(job.adapters.layers)
    with pytest.raises(StudioError, match="take the target merged or checkpoint"):
        made(base, own_target, tmp_path, kind="full")


def test_the_table_knows_an_own_target_and_suggests_it(own_target: str) -> None:
    assert own_target in EXPORTERS.names()
    with pytest.raises(RecipeError, match="did you mean 'dense'"):
        EXPORTERS.check("denes")
