"""Which caption an image is shown with: a pure function of seed, step, micro-batch and row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lora_studio.data.batches import BatchPlan, MicroBatch
from lora_studio.data.captions.trigger import needs_class_words, without_triggers
from lora_studio.data.captions.wording import Wording, has_wildcards, tags_vary, vary
from lora_studio.data.manifest import Record
from lora_studio.recipe.data import DataConfig
from lora_studio.rng import python_random


@dataclass(frozen=True)
class ShownCaption:
    text: str
    preserved: bool  # it is the one without the trigger, which teaches the base's own prediction


class ShownCaptions:
    """The captions of the used records, as [data] words and varies them.

    `preservation`: the share of images, of those not shown with an empty caption, that are shown without the
    trigger. Raises CaptionError for a placeholder that cannot be filled.
    """

    def __init__(
        self, records: Sequence[Record], config: DataConfig, *, seed: int, preservation: float = 0.0
    ) -> None:
        self.records, self.config = list(records), config
        self.seed, self.preservation = seed, preservation
        choose = config.caption_lines == "choose"
        self._lines = [one.lines if choose and one.lines else (one.caption,) for one in self.records]
        around = (config.caption_prefix, config.caption_suffix)
        self._wordings = [Wording(one.trigger, one.class_words, *around) for one in self.records]
        for wording in self._wordings:
            wording.check()
        self._triggers = {one.trigger: one.class_words for one in self.records if one.trigger}
        # What no draw changes is put together once.
        self._fixed = {
            index: wording.around(lines[0])
            for index, (lines, wording) in enumerate(zip(self._lines, self._wordings, strict=True))
            if len(lines) == 1 and not self._is_varied(lines[0], wording.trigger)
        }

    @property
    def vary(self) -> bool:
        return len(self._fixed) < len(self.records)

    def at(self, index: int, step: int, number: int, row: int) -> ShownCaption:
        """What the used record `index` is shown with in row `row` of micro-batch `number` of a step."""
        draw = python_random(self.seed, step, number, row)
        dropped, preserved = draw.random() < self.config.caption_dropout, draw.random() < self.preservation
        if dropped:
            return ShownCaption("", preserved=False)
        text = self.variant(index, step, number, row)
        plain = self.without_trigger(index, text) if preserved else None
        return ShownCaption(text, preserved=False) if plain is None else ShownCaption(plain, preserved=True)

    def of_micro_batch(self, step: int, number: int, micro: MicroBatch) -> list[ShownCaption]:
        return [self.at(index, step, number, row) for row, index in enumerate(micro)]

    def of_steps(self, plan: BatchPlan, steps: int) -> Iterator[tuple[int, ShownCaption]]:
        """Record and caption of every image that `steps` steps show, in their order."""
        for step in range(1, steps + 1):
            for number, micro in enumerate(plan.of_step(step)):
                yield from zip(micro, self.of_micro_batch(step, number, micro), strict=True)

    def variant(self, index: int, *key: int) -> str:
        """A caption of the record, never dropped, with its trigger; equal keys give equal variants."""
        if index in self._fixed:
            return self._fixed[index]
        draw = python_random(self.seed, *key, "words")
        return vary(self._lines[index], self.config, self._wordings[index], draw)

    def written(self, index: int) -> list[str]:
        """The record's captions before anything is drawn, with prefix and suffix; one unless it has lines."""
        return [self._wordings[index].around(line) for line in self._lines[index]]

    def plain(self, index: int) -> str | None:
        """The first of them without the trigger; None if none of them holds it."""
        found = (self.without_trigger(index, text) for text in self.written(index))
        return next((text for text in found if text is not None), None)

    def without_trigger(self, index: int, text: str) -> str | None:
        """A caption of the record without its and others' triggers; None if it does not hold its own."""
        record = self.records[index]
        return without_triggers(text, record.trigger, record.class_words, self._triggers)

    def with_trigger(self) -> list[tuple[int, str]]:
        """Records and captions, as written, that hold their trigger."""
        return [one for one in self._all_written() if self.without_trigger(*one) is not None]

    def nameless(self) -> list[tuple[int, str]]:
        """Records and captions that name nothing without their trigger, as there are no class words."""
        texts = ((self.records[index], index, text) for index, text in self._all_written())
        return [
            (index, text)
            for record, index, text in texts
            if record.trigger and needs_class_words(text, record.trigger, record.class_words)
        ]

    def _all_written(self) -> Iterator[tuple[int, str]]:
        return ((index, text) for index in range(len(self.records)) for text in self.written(index))

    def _is_varied(self, text: str, trigger: str) -> bool:
        around = self.config.caption_prefix + text + self.config.caption_suffix
        return tags_vary(text, self.config, trigger) or (self.config.wildcards and has_wildcards(around))
