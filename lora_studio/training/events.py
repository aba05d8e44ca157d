"""What a run tells whoever listens: the command line, a notebook, a web page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.data.buckets.report import BucketPlan
from lora_studio.data.captions.trigger_tokens import CutCaption
from lora_studio.data.doctor.finding import Finding
from lora_studio.text import plural

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class RegularizationSummary:
    """The regularization images that stand beside the images of a batch."""

    drawn: int  # by the frozen base
    from_folders: int
    per_image: float
    weights: tuple[float, ...]  # factors of their loss
    prompt: str  # an example of what they show


@dataclass(frozen=True)
class TrainingPlan:
    """What will be trained, said before the first step."""

    name: str
    base: str
    images_used: int
    images_excluded: tuple[tuple[str, str], ...]  # (file, reason)
    captions: tuple[str, ...]  # three, as the model sees them
    captioned_by: dict[str, int]  # who wrote them -> how many
    captions_without_trigger: int
    preservation: float  # share of images shown without the trigger, for the base's own answer
    preserved_caption: str  # an example of such a caption
    captions_cut: tuple[CutCaption, ...]  # of images whose caption is longer than the text encoder reads
    buckets: BucketPlan
    steps: int
    first_step: int  # above 1 when resuming
    images_per_step: int
    views_per_image: float
    num_parameters: int
    num_layers: int
    device: str
    precision: str
    learning_rate: float
    seconds_per_step: float
    folder: Path
    seconds_of_validation: float = 0.0  # all measurements that are still to come
    seconds_of_previews: float = 0.0
    held_out: tuple[str, ...] = ()  # images that are not trained on
    validation_every: int = 0  # steps between measurements of the loss on them; 0: none is made
    repeats: tuple[tuple[str, int, int], ...] = ()  # (folder, images, repeats of each)
    processes: int = 1  # that share the images of a batch
    batch_size: int = 0  # of all processes together
    regularization_images: RegularizationSummary | None = None
    masks: int = 0  # images of which only a part is learned
    masked_preservation: float = 0.0  # weight of the base's own answer outside of it
    backgrounds: dict[str, int] = field(default_factory=dict)  # colour -> images with clear parts on it
    token_chunks: int = 1  # windows of the text encoder that a caption may fill
    variation: tuple[str, ...] = ()  # what changes in captions from one showing to the next
    caption_warnings: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()  # each with the tokens that it is read as
    base_notes: tuple[str, ...] = ()  # how the base was read
    adapter_notes: tuple[str, ...] = ()  # what its options do
    warmup_note: str = ""  # if the learning rate is not reached before the end
    num_tokens: int = 0  # new words that are learned
    notes: tuple[tuple[str, str], ...] = ()  # (file, what to know about how it was read)
    findings: tuple[Finding, ...] = ()  # the doctor's, the worst first


@dataclass(frozen=True)
class Progress:
    """Work before or after the steps: "latents" 12 of 28."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class StepDone:
    """One optimizer step."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds: float
    grad_norm: float  # before it was clipped


@dataclass(frozen=True)
class StepSkipped:
    """An optimizer step whose loss or gradient was not finite; weights and optimizer are as before it."""

    step: int
    steps: int
    loss: float
    grad_norm: float
    in_a_row: int
    most: int  # so many in a row end the run
    scale: float = 1.0  # of float16's loss, if that is to blame: it is halved, and the step does not count

    @property
    def text(self) -> str:
        """In words."""
        if self.scale > 1:
            return (
                f"step {self.step} skipped: its gradients overflow in float16 with the loss times "
                f"{self.scale:g}, which is halved"
            )
        return (
            f"warning: step {self.step} skipped: its loss is {self.loss:g} and its gradient norm "
            f"{self.grad_norm:g}; {self.in_a_row} in a row, {self.most} end the run"
        )


@dataclass(frozen=True)
class MemoryRanOut:
    """A micro-batch did not fit into memory: it is trained again, in more passes of fewer rows."""

    passes: int
    rows: int  # in a pass, at most

    @property
    def text(self) -> str:
        """In words."""
        return (
            f"warning: the memory ran out: each batch is learned in {self.passes} passes of up to "
            f"{plural(self.rows)} from now on; what is learned stays the same, it takes a little longer"
        )


@dataclass(frozen=True)
class ValidationMeasured:
    """The loss on the validation images."""

    step: int  # 0: before the first
    loss: float
    relative: float  # of the base's
    best: bool  # so far

    @property
    def text(self) -> str:
        """In words."""
        if self.step == 0:
            return f"validation images before the first step: loss {self.loss:.4f}"
        best = ", the best so far" if self.best else ""
        share = f"{self.relative:.1%} of the base's"
        return f"validation images at step {self.step}: loss {self.loss:.4f}, {share}{best}"


@dataclass(frozen=True)
class PreviewsDrawn:
    """An image a prompt from the model as it is at this step; of step 0, the base's."""

    step: int
    path: Path  # of the sheet
    prompts: tuple[str, ...]
    images: tuple[Image, ...]

    @property
    def text(self) -> str:
        """In words."""
        return f"previews of step {self.step}: {self.path}"


@dataclass(frozen=True)
class Note:
    """Something worth a line: a checkpoint, a file written, a warning."""

    text: str


Event = (
    TrainingPlan
    | Progress
    | StepDone
    | StepSkipped
    | MemoryRanOut
    | ValidationMeasured
    | PreviewsDrawn
    | Note
)
Listener = Callable[[Event], None]


def ignore_events(event: Event) -> None:
    """A listener that does nothing."""


def progress(listener: Listener, what: str) -> Callable[[int, int], None]:
    """Tells the listener how many of how many are done."""
    return lambda done, total: listener(Progress(what, done, total))
