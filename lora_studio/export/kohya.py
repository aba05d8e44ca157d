"""LoRA files: plain LoRA by kohya's names and by diffusers', and each kind in tensors of its own.

kohya's are `<prefix>_<path with underscores>.lora_down.weight`, diffusers' are PEFT's,
`<part>.<path>.lora_A.weight`. A kind's own tensors are in LyCORIS' spelling: smaller or more exact than plain
LoRA, less read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.layer import Layer, shape_of
from lora_studio.errors import StudioError
from lora_studio.export.target import ExportJob, ExportResult, Target, report_wrong, worst_left_out
from lora_studio.families.base import ModelFamily
from lora_studio.families.layer_names import transformers
from lora_studio.families.layer_names.spellings import LayerPlace
from lora_studio.families.layer_names.transformers import FileForm
from lora_studio.lora_file import forms
from lora_studio.lora_file.factors import PlainLora, as_plain, in_range
from lora_studio.lora_file.kinds import kind_written_by
from lora_studio.lora_file.kinds.base import LayerKind
from lora_studio.lora_file.kinds.whole import endings_of
from lora_studio.lora_file.lora_file import open_lora
from lora_studio.lora_file.write import DTYPES
from lora_studio.metadata.write import LEFT_OUT
from lora_studio.tensor_file.header import open_tensors
from lora_studio.verify import VerifyReport, check_against_base, check_file, check_rules
from lora_studio.verify.trained import check_deltas, compare

DOWN, UP = forms.A, forms.B


def tensors(family: ModelFamily, adapters: AdapterSet) -> dict[str, Tensor]:
    """UI key -> float32 tensor, plain LoRA whatever the kind; layers that UIs look for are added, as zero."""
    return spell(plain_layers(family, adapters))


def plain_layers(family: ModelFamily, adapters: AdapterSet) -> dict[str, PlainLora]:
    """UI name -> plain LoRA, whatever the kind; layers that UIs look for are added, as zero."""
    plain = {family.ui_name(layer.part, layer.path): as_plain(layer) for layer in adapters.layers}
    for part, path in family.companions([(layer.part, layer.path) for layer in adapters.layers]):
        shape = shape_of(family.layer(part, path))
        down, up = torch.zeros(1, *shape[1:]), torch.zeros(shape[0], 1, *(1 for _ in shape[2:]))
        plain[family.ui_name(part, path)] = PlainLora(down, up, 1.0)
    return plain


@dataclass(frozen=True)
class FormedFile:
    """A transformer family's file in one of its forms."""

    tensors: dict[str, Tensor]
    plain: list[PlainLora]  # of the trained layers
    said: dict[str, str]  # in its metadata, of ranks that are not the recipe's


def in_form(family: ModelFamily, adapters: AdapterSet, form: FileForm) -> FormedFile:
    """What was trained as plain LoRA, whatever the kind; layers that UIs look for are added, as zero."""
    layout = family.file_layout
    assert layout is not None
    plain = {LayerPlace(layer.part, layer.path): as_plain(layer) for layer in adapters.layers}
    tensors = forms.spell_form(plain, layout, form, forms.LayerSizes(layout, {}, family))
    ranks = {len(one.down) for one in plain.values() if one.up.any()}
    alphas = {one.scale * len(one.down) for one in plain.values() if one.up.any()}
    said = {}
    if ranks and adapters.options.kind not in ("lora", "locon"):
        said = {"ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic"}
        said |= {"ss_network_alpha": f"{alphas.pop():g}"} if len(alphas) == 1 else {}
    return FormedFile(tensors, list(plain.values()), said)


def spell(plain: Mapping[str, PlainLora]) -> dict[str, Tensor]:
    """UI name -> plain LoRA, as UI key -> float32 tensor.

    `alpha` is 0-dimensional and always written: without it readers guess a scale. It is the same in every
    layer, and what a layer's own is beside that goes into `up`: diffusers loses the alphas of some layers of
    SD1 and gives them the commonest one.
    """
    changed = [one for one in plain.values() if one.up.any()] or list(plain.values())
    alpha = Counter(one.scale * len(one.down) for one in changed).most_common(1)[0][0]
    if not forms.ALPHAS[0] <= abs(alpha) <= forms.ALPHAS[1]:
        alpha = float(len(changed[0].down))
    named: dict[str, Tensor] = {}
    for name, (down, up, scale, _) in plain.items():
        share = scale * len(down) / alpha
        down, up = in_range(*(one.detach().float().cpu() for one in (down, up if share == 1 else up * share)))
        named[f"{name}.lora_down.weight"] = down.contiguous()
        named[f"{name}.lora_up.weight"] = up.contiguous()
        named[f"{name}.alpha"] = torch.tensor(alpha)
    return named


def spell_diffusers(plain: Mapping[str, PlainLora]) -> dict[str, Tensor]:
    """`<part>.<canonical path>` -> plain LoRA, as key -> float32 tensor; alpha is folded in.

    No `.alpha` goes in, which diffusers would take for all layers of a part alike, and no adapter metadata:
    without both it takes every layer's scale for 1, whatever the layers' ranks.
    """
    named = {}
    for name, (down, up, scale, _) in plain.items():
        down, up = in_range(*(one.detach().float().cpu() for one in (down, up * scale)))
        named[f"{name}.{DOWN}"], named[f"{name}.{UP}"] = down.contiguous(), up.contiguous()
    return named


def _write_form(job: ExportJob, path: Path, form: FileForm) -> ExportResult:
    made = in_form(job.family, job.adapters, form)
    error = job.write(path, made.tensors, **made.said)
    return ExportResult((path,), error, worst_left_out(job, made.plain))


class Kohya(Target):
    """What everything loads."""

    name: ClassVar[str] = "kohya"
    ending: ClassVar[str] = ".safetensors"
    probed: ClassVar[bool] = True
    weights_alone: ClassVar[bool] = True

    def write(self, job: ExportJob) -> ExportResult:
        """By kohya's names, or in the form that every UI loads of a transformer family."""
        (path,) = self.paths(job)
        if (layout := job.family.file_layout) is not None:
            return _write_form(job, path, layout.best)
        plain = plain_layers(job.family, job.adapters)
        error = job.write(path, spell(plain))
        return ExportResult((path,), error, worst_left_out(job, plain.values()))

    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
        """The file by itself and against the base, and every layer's change recomputed from its bytes."""
        file = open_lora(made.paths[0])
        found = check_file(file)
        report.faults += found.faults
        report.checks |= found.checks
        report.uis, report.notes = found.uis, found.notes
        if LEFT_OUT in file.metadata:
            report.checks["tags_left_out"] = int(file.metadata[LEFT_OUT])
        check_against_base(file, job.bare_base(), report)
        check_rules(file, report)
        if report.ok:
            check_deltas(file.in_one_spelling(), job.family, job.adapters, report)


class Diffusers(Target):
    name: ClassVar[str] = "diffusers"
    ending: ClassVar[str] = "_diffusers.safetensors"
    probed: ClassVar[bool] = True
    weights_alone: ClassVar[bool] = True

    def write(self, job: ExportJob) -> ExportResult:
        """By PEFT's names; of a transformer family with the layers that UIs want beside the others."""
        (path,) = self.paths(job)
        if job.family.file_layout is not None:
            return _write_form(job, path, transformers.DIFFUSERS)
        plain = {layer.name: as_plain(layer) for layer in job.adapters.layers}
        error = job.write(path, spell_diffusers(plain))
        return ExportResult((path,), error, worst_left_out(job, plain.values()))

    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
        """Every layer's change recomputed from the file's bytes, and nothing else in it but zeros."""
        tensors, _ = open_tensors(made.paths[0])

        def change(layer: Layer) -> Tensor:
            down, up = (tensors.pop(f"{layer.name}.{end}").float() for end in (DOWN, UP))
            return up.flatten(1) @ down.flatten(1)

        compare(job.adapters, change, report, dtype=DTYPES[job.dtype])
        report_wrong(report, [key for key, one in tensors.items() if one.any()], "of no trained layer")


class Native(Target):
    name: ClassVar[str] = "native"
    ending: ClassVar[str] = "_native.safetensors"

    def refuse(self, job: ExportJob) -> None:
        """What LyCORIS has no tensors for."""
        super().refuse(job)
        kind, layout = job.adapters.options.kind, job.family.file_layout
        if layout is not None and layout.is_fused and kind == "full":
            raise StudioError(
                "native has no spelling for whole differences of this base, where ComfyUI takes no biases of "
                "layers that are rows of one; take the target merged."
            )
        if kind_written_by(kind) is None:
            raise StudioError(
                f"native has no spelling for what the kind {kind!r} trains, which turns a layer's inputs "
                "where LyCORIS turns its outputs; take the target kohya, which has it as plain LoRA."
            )
        for layer in job.adapters.layers:
            if layer.originals and not endings_of(layer):
                raise StudioError(
                    f"native has no spelling for {layer.name}, which is no linear layer, convolution or "
                    "normalisation; take the target merged or checkpoint."
                )

    def write(self, job: ExportJob) -> ExportResult:
        """Of plain LoRA what kohya's is."""
        kind, layout = job.adapters.options.kind, job.family.file_layout
        (path,) = self.paths(job)
        if layout is not None and not _spelling(job).written_by[kind]:
            return _write_form(job, path, layout.best)
        named = {key: one.float().cpu().contiguous() for key, one in _own_tensors(job).items()}
        unread = _spelling(job).written_by[kind]
        if not unread:
            return ExportResult((path,), job.write(path, named))
        said = {"ss_network_args": json.dumps({"algo": "lora" if kind == "dora" else kind})}
        error = job.write(path, named, ss_network_module="lycoris.kohya", **said)
        note = f"not read everywhere: {unread}" if layout is None else _COMFY_ALONE
        return ExportResult((path,), error, notes=(note,))

    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
        """Every tensor on the disk is the live one's, to the dtype's rounding."""
        if job.family.file_layout is not None and not _spelling(job).written_by[job.adapters.options.kind]:
            file = open_lora(made.paths[0]).in_one_spelling()
            return check_deltas(file, job.family, job.adapters, report)
        (tensors, _), worst = open_tensors(made.paths[0]), 0.0
        for key, live in _own_tensors(job).items():
            found = tensors.pop(key, None)
            if found is None or not found.isfinite().all():
                report.faults.append(f"{key} is missing, or not finite")
                continue
            size = live.float().abs().max().item()
            error = (found.float() - live.float().cpu()).abs().max().item() / (size or 1.0)
            worst = max(worst, error / torch.finfo(found.dtype).eps)
        report.checks |= {"tensor_error": worst}  # in units of the dtype's rounding
        if not worst <= 1:
            report.faults.append("a tensor differs from the trained one by more than its dtype rounds")
        report_wrong(report, list(tensors), "of no trained layer")


def _spelling(job: ExportJob) -> LayerKind:
    found = kind_written_by(job.adapters.options.kind)
    assert found is not None, "refused before"
    return found


def _own_tensors(job: ExportJob) -> dict[str, Tensor]:
    """UI key -> tensor of every trained layer."""
    kind, layout = _spelling(job), job.family.file_layout

    def stem(layer: Layer) -> str:
        name = job.family.ui_name(layer.part, layer.path)
        return name if layout is None else layout.lycoris(layer.path)

    return {
        f"{stem(layer)}.{end}": tensor
        for layer in job.adapters.layers
        for end, tensor in kind.spell(layer).items()
    }


_COMFY_ALONE = "ComfyUI reads it; other UIs were not tried with this kind of file of a transformer base"
KOHYA, DIFFUSERS, NATIVE = Kohya(), Diffusers(), Native()
