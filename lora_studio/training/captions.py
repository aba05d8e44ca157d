"""The recipe's captions: what the run will show, and its conditioning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from lora_studio.data.batches import Plan
from lora_studio.data.cache import OnProgress, TextCache
from lora_studio.data.captions.shown import CaptionOptions, ShownCaptions
from lora_studio.data.captions.variants import Variation
from lora_studio.data.manifest import Record
from lora_studio.errors import CaptionError, RecipeError
from lora_studio.families.base import Conditioning, ModelFamily
from lora_studio.families.chunks import join
from lora_studio.processes import ALONE, Processes
from lora_studio.recipe import Recipe

MOST_TEXTS = 1000  # kept on the device: a quarter of a gigabyte of SD1.5's conditioning in float32


def options_of(recipe: Recipe) -> CaptionOptions:
    """How the recipe wants captions to be worded."""
    data = recipe.data
    return CaptionOptions(
        dropout=data.caption_dropout,
        preservation=recipe.objective.preservation,
        seed=recipe.training.seed,
        variation=Variation(data.wildcards, data.shuffle_tags, data.keep_tags, data.tag_dropout),
        choose_lines=data.caption_lines == "choose",
        prefix=data.caption_prefix,
        suffix=data.caption_suffix,
    )


def captions_of(
    recipe: Recipe, records: Sequence[Record], options: CaptionOptions | None = None
) -> ShownCaptions:
    """The captions as the recipe words them, unless `options` are given.

    Raises RecipeError for a placeholder that cannot be filled.
    """
    try:
        return ShownCaptions(records, options or options_of(recipe))
    except CaptionError as error:
        raise RecipeError(f"data.caption_prefix or data.caption_suffix: {error}") from None


def shown_captions(recipe: Recipe, records: Sequence[Record]) -> ShownCaptions:
    """Those that can be trained on. Raises RecipeError if the recipe asks for words that are not there."""
    captions, preservation = captions_of(recipe, records), recipe.objective.preservation
    if preservation and not any(captions.plain(index) for index in range(len(records))):
        trigger = ", ".join(dict.fromkeys(record.trigger for record in records))
        raise RecipeError(
            f"objective.preservation is {preservation}, but no caption holds data.trigger "
            f"({trigger!r}), so there is nothing to leave out; set the trigger that the captions hold, or "
            "preservation to 0."
        )
    if preservation and (nameless := captions.nameless()):
        held = sum(captions.plain(index) is not None for index in range(len(records)))
        if len({index for index, _ in nameless}) == held:
            index, text = nameless[0]
            raise RecipeError(
                f"objective.preservation is {preservation}, but without the trigger "
                f'{records[index].trigger!r} the caption "{text}" names nothing; set data.class_words to '
                'what the trigger is one of, such as "robot" or "woman".'
            )
    return captions


def refuse_unused_tokens(recipe: Recipe, captions: ShownCaptions) -> None:
    """Raise RecipeError for new tokens that no caption holds, as nothing would teach them."""
    if not recipe.tokens:
        return
    texts = [text.lower() for index in range(len(captions.records)) for text in captions.written(index)]
    unused = [one.token for one in recipe.tokens if not any(one.token in text for text in texts)]
    if unused and texts:
        raise RecipeError(
            f"tokens: no caption holds {', '.join(map(repr, unused))}, so nothing would teach it; write it "
            'into the captions, or set data.caption_prefix = "{trigger}, " and a data.trigger that holds it.'
        )


@dataclass(frozen=True)
class Foreseen:
    """The captions that a run will show."""

    texts: Mapping[str, set[int]]  # caption -> the records that are shown with it
    complete: bool  # False: there are more, too many to have them all ready


def foresee(captions: ShownCaptions, batches: Plan, steps: int) -> Foreseen:
    """Every caption of the run; if they vary, at most `MOST_TEXTS`, the first ones shown."""
    texts: dict[str, set[int]] = {"": set()}
    if not captions.vary:
        for index in range(len(captions.records)):
            texts.setdefault(captions.variant(index), set()).add(index)
            if captions.options.preservation and (plain := captions.plain(index)):
                texts.setdefault(plain, set()).add(index)
        return Foreseen(texts, complete=True)
    for index, shown in captions.of_steps(batches, steps):
        if shown.text not in texts and len(texts) == MOST_TEXTS:
            return Foreseen(texts, complete=False)
        texts.setdefault(shown.text, set()).add(index)
    return Foreseen(texts, complete=True)


class Texts:
    """The conditioning of captions: ready before the first step, or from `find` when it is asked for.

    Either way each caption is encoded alone, so that the bits are the same.
    """

    def __init__(
        self,
        ready: Mapping[str, Conditioning],
        find: Callable[[str], Conditioning],
        device: torch.device,
    ) -> None:
        self._ready = {caption: _to(value, device) for caption, value in ready.items()}
        self._made = lru_cache(maxsize=MOST_TEXTS)(lambda caption: _to(find(caption), device))

    @property
    def num_bytes(self) -> int:
        """Of those that were ready before the first step."""
        return sum(tensor.nbytes for one in self._ready.values() for tensor in one.values())

    def batch(self, captions: Sequence[str]) -> Conditioning:
        """The captions' conditioning in one batch, as long as the longest of them needs."""
        return join([self._of(caption) for caption in captions], empty=self._of(""))

    def _of(self, caption: str) -> Conditioning:
        found = self._ready.get(caption)
        return self._made(caption) if found is None else found


def prepare_texts(
    cache: TextCache,
    foreseen: Foreseen,
    family: ModelFamily,
    *,
    also: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    processes: Processes = ALONE,
) -> Texts:
    """Conditioning from the frozen text encoder, encoded beforehand if all captions are foreseen.

    At most `MOST_TEXTS` are on the device; more are read from the cache when they are shown. `also`: the
    captions of class pictures. Of several processes each encodes some; what it then does not find it
    encodes, too.
    """
    captions = list(dict.fromkeys([*foreseen.texts, *also]))
    encode, device = family.encode_text, family.device
    held = captions if foreseen.complete and len(captions) <= MOST_TEXTS else [""]
    with torch.no_grad():  # not inference_mode: its tensors may not enter a graph later
        if processes.count > 1:
            own = (captions if foreseen.complete else held)[processes.rank :: processes.count]
            processes.each(lambda: cache.encode_missing(own, encode, on_progress=on_progress))
        ready = cache.load_or_encode(held, encode, on_progress=on_progress)
        if foreseen.complete:
            cache.encode_missing(captions, encode, on_progress=on_progress)
    if foreseen.complete:
        return Texts(ready, lambda caption: cache.load_or_encode([caption], encode)[caption], device)
    return Texts(ready, lambda caption: cache.encode(caption, encode), device)


def _to(conditioning: Conditioning, device: torch.device) -> Conditioning:
    return {name: tensor.to(device) for name, tensor in conditioning.items()}
