"""What a run leaves on the disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lora_studio.evaluate.previews import as_png, grid, render
from lora_studio.lora_file.factors import most_bytes
from lora_studio.lora_file.write import DTYPES
from lora_studio.text import Rows, memory_size
from lora_studio.training.planning.memory import latent_bytes
from lora_studio.training.prepare import Session
from lora_studio.training.report.timing import Timing

HEADER_BYTES = 3 * 140  # of a layer in a LoRA file: names and shapes of its three tensors


@dataclass(frozen=True)
class Disk:
    """Bytes, at most; what the caches hold already is counted, too."""

    caches: int  # latents and conditioning, shared with other runs
    checkpoints: int  # as many as there are at one time
    num_checkpoints: int
    previews: int
    file: int
    free: int  # on the run folder's disk

    @property
    def total(self) -> int:
        """In the run folder."""
        return self.checkpoints + self.previews + self.file

    def rows(self) -> Rows:
        """What is written, and whether there is room for it."""
        rows = [
            ("disk", f"{memory_size(self.total)} in the run folder, {memory_size(self.free)} are free"),
            ("", f"{memory_size(self.checkpoints)} for {self.num_checkpoints} checkpoints at a time"),
            ("", f"{memory_size(self.previews)} previews, {memory_size(self.file)} the finished files"),
            ("", f"{memory_size(self.caches)} in the caches for all runs"),
        ]
        if self.total > self.free:
            rows.append(("warning", "that is more than is free: make room, or keep fewer checkpoints"))
        return rows


def measure_disk(session: Session, timing: Timing, *, optimizer: int) -> Disk:
    """From the sizes of tensors, and from a sheet of previews with one step, which are nearly noise."""
    recipe, adapters = session.recipe, session.adapters.num_parameters * 4
    training = recipe.training
    made = -(-training.steps // training.checkpoint_every)
    # the newest ones, the best, and a new one before an old one goes
    count = min(made, training.keep_checkpoints + (session.validation is not None) + 1)
    means = 0 if session.loop.state.ema is None else adapters
    return Disk(
        caches=latent_bytes(session) + _texts(session),
        checkpoints=count * (adapters + optimizer + means),
        num_checkpoints=count,
        previews=_previews(session, timing),
        file=_result(session),
        free=shutil.disk_usage(_existing(session.run.folder)).free,
    )


def _result(session: Session) -> int:
    """The LoRA file and embeddings, or all of a base's parts."""
    recipe, adapters = session.recipe, session.adapters
    if not adapters.trains_layers:
        return most_bytes(adapters, recipe.export.dtype) + len(adapters.trained) * HEADER_BYTES
    numbers = sum(one.numel() for part in session.family.parts.values() for one in part.parameters())
    return numbers * DTYPES[recipe.export.dtype].itemsize


def _texts(session: Session) -> int:
    texts = session.loop.feed.texts
    if texts is None:
        return 0
    one = sum(tensor.nbytes for tensor in texts.batch([""]).values())
    return one * (len(session.caption_set.texts) if session.caption_set.complete else 1)


def _previews(session: Session, timing: Timing) -> int:
    options = session.recipe.samples.model_copy(update={"steps": 1})
    if not options.prompts:
        return 0
    drawn = render(
        session.family, options, side=session.recipe.data.resolution
    )  # nearly noise, which no format makes smaller
    return len(as_png(grid(options.prompts, drawn, drawn))) * timing.previews + sum(
        len(as_png(image)) for image in drawn
    )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.resolve()
    return next(one for one in (folder, *folder.parents) if one.is_dir())
