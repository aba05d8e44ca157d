"""LoRA files of the transformer families: the one form that every UI loads, and the others by name."""

from __future__ import annotations

from typing import ClassVar

from lora_studio.errors import StudioError
from lora_studio.export import kohya
from lora_studio.export.target import ExportJob, ExportResult, Target, report_wrong, worst_left_out
from lora_studio.families.layer_names import transformers
from lora_studio.families.layer_names.transformers import FileForm, TransformerLayout
from lora_studio.lora_file.lora_file import open_lora
from lora_studio.verify import VerifyReport
from lora_studio.verify.trained import check_deltas


class OtherForm(Target):
    """The LoRA by names that one program or one sort of programs uses."""

    weights_alone: ClassVar[bool] = True

    def form(self, layout: TransformerLayout) -> FileForm:
        raise NotImplementedError

    def write(self, job: ExportJob) -> ExportResult:
        """Plain LoRA by these names; of a base whose layers all programs name alike, what `kohya` writes."""
        (path,) = self.paths(job)
        layout = job.family.file_layout
        if layout is None:
            plain = kohya.plain_layers(job.family, job.adapters)
            return ExportResult(
                (path,), job.write(path, kohya.spell(plain)), worst_left_out(job, plain.values())
            )
        made = kohya.in_form(job.family, job.adapters, self.form(layout))
        error = job.write(path, made.tensors, **made.said)
        return ExportResult((path,), error, worst_left_out(job, made.plain))

    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
        """Every layer's change recomputed from the file's bytes, and nothing else in it."""
        file = open_lora(made.paths[0]).in_one_spelling()
        check_deltas(file, job.family, job.adapters, report)
        report_wrong(report, file.stray, "of no trained layer")


class Comfy(OtherForm):
    """ComfyUI's own names, `diffusion_model.` and the original checkpoint's paths."""

    name: ClassVar[str] = "comfy"
    ending: ClassVar[str] = "_comfy.safetensors"

    def refuse(self, job: ExportJob) -> None:
        """Raises StudioError for a base whose files ComfyUI reads by kohya's names."""
        super().refuse(job)
        if job.family.file_layout is None:
            raise StudioError(
                "comfy is for transformer bases; ComfyUI reads this one's files of the target kohya."
            )

    def form(self, layout: TransformerLayout) -> FileForm:
        return transformers.COMFY


class Trainer(OtherForm):
    """The names that kohya's own trainers, sd-scripts and musubi-tuner, continue from."""

    name: ClassVar[str] = "sd_scripts"
    ending: ClassVar[str] = "_sd_scripts.safetensors"

    def form(self, layout: TransformerLayout) -> FileForm:
        return layout.trainer


COMFY, SD_SCRIPTS = Comfy(), Trainer()
