"""The captions that a run will show, and what the text encoders make of them, from the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch

from lora_studio.data.batches import BatchPlan
from lora_studio.data.cache.encode import OnProgress, TextCache
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.families.base import Conditioning, ModelFamily
from lora_studio.processes import ALONE, Processes, to_device

MOST_TEXTS = 1000  # that are made ready if captions vary
TEXT_BYTES = 2**26  # of conditioning on the device: 500 captions of SD1.5's, 5 to 8 of FLUX.2's
Join = Callable[[Sequence[Conditioning], Conditioning], Conditioning]  # as `ModelFamily.join`
MOST_LOOKED_AT = 2_000_000  # showings: half a minute


@dataclass(frozen=True)
class CaptionSet:
    texts: Mapping[str, set[int]]  # caption -> the records that are shown with it
    complete: bool  # False: there are more, too many to have them all ready
    beside: Sequence[str] = ()  # those of regularization and validation images


def captions_of_run(
    captions: ShownCaptions, batches: BatchPlan, steps: int, beside: Sequence[str] = ()
) -> CaptionSet:
    """Every caption of the run; if they vary, at most `MOST_TEXTS`, the first ones shown.

    Of runs in which more than `MOST_LOOKED_AT` are shown it is not looked for all of them.
    """
    texts: dict[str, set[int]] = {"": set()}
    if not captions.vary:
        for index in range(len(captions.records)):
            texts.setdefault(captions.variant(index), set()).add(index)
            if captions.preservation and (plain := captions.plain(index)):
                texts.setdefault(plain, set()).add(index)
        return CaptionSet(texts, complete=True, beside=beside)
    for number, (index, shown) in enumerate(captions.of_steps(batches, steps)):
        if number == MOST_LOOKED_AT or (shown.text not in texts and len(texts) == MOST_TEXTS):
            return CaptionSet(texts, complete=False, beside=beside)
        texts.setdefault(shown.text, set()).add(index)
    return CaptionSet(texts, complete=True, beside=beside)


class ConditioningCache:
    """The conditioning of captions: ready on the device before the first step, or from `find` when asked for.

    Either way each caption is encoded alone, so that the bits are the same.
    """

    def __init__(
        self,
        ready: Mapping[str, Conditioning],
        find: Callable[[str], Conditioning],
        join: Join,
        device: torch.device,
    ) -> None:
        self._join, self._ready = join, ready
        self.num_bytes = sum(map(_bytes, ready.values()))
        most = max(1, (TEXT_BYTES - self.num_bytes) // max(1, _bytes(ready.get("", {}))))
        self._made = lru_cache(maxsize=min(MOST_TEXTS, most))(lambda caption: _sent(find(caption), device))

    def batch(self, captions: Sequence[str]) -> Conditioning:
        """The captions' conditioning in one batch, as long as the longest of them needs."""
        empty, *found = (self._ready.get(one) or self._made(one) for one in ["", *captions])
        return self._join(found, empty)


def _bytes(conditioning: Conditioning) -> int:
    return sum(tensor.nbytes for tensor in conditioning.values())


def prepare_texts(
    cache: TextCache,
    known: CaptionSet,
    family: ModelFamily,
    *,
    on_progress: OnProgress | None = None,
    processes: Processes = ALONE,
) -> ConditioningCache:
    """Conditioning from the frozen text encoder, encoded beforehand if all captions are known.

    At most `TEXT_BYTES` are on the device; more are read from the cache when they are shown. Of several
    processes each encodes some; what it then does not find it encodes, too. Text encoders that wait for their
    turn are placed if anything is to be encoded.
    """
    captions = list(dict.fromkeys([*known.texts, *known.beside]))
    encode, device = partial(encode_in_turn, family), family.device
    wanted = captions if known.complete else [""]
    with torch.no_grad():  # not inference_mode: its tensors may not enter a graph later
        if processes.count > 1:
            own = wanted[processes.rank :: processes.count]
            processes.each(lambda: cache.encode_missing(own, encode, on_progress=on_progress))
        cache.encode_missing(wanted, encode, on_progress=on_progress)
        ready, room = dict[str, Conditioning](), TEXT_BYTES
        for caption in wanted:
            found = cache.load_or_encode([caption], encode)[caption]
            if (room := room - _bytes(found)) < 0 and ready:
                break
            ready[caption] = _to(found, device)

    def find(caption: str) -> Conditioning:
        if known.complete:
            return cache.load_or_encode([caption], encode)[caption]
        return cache.encode(caption, encode)

    return ConditioningCache(ready, find, family.join, device)


def encode_in_turn(family: ModelFamily, captions: list[str]) -> Conditioning:
    """By text encoders that are read now if they have waited for it."""
    if not any(map(family.is_awaited, family.text_encoders)):
        return family.encode_text(captions)
    if family.denoiser in family.on_device:  # while it trains, of a cache that was damaged meanwhile
        with family.also_placed(*family.text_encoders):
            return family.encode_text(captions)
    family.place(family.device, *family.text_encoders)
    return family.encode_text(captions)


def _to(conditioning: Conditioning, device: torch.device) -> Conditioning:
    return {name: one if _stays(one) else one.to(device) for name, one in conditioning.items()}


def _sent(conditioning: Conditioning, device: torch.device) -> Conditioning:
    """The same while a step is under way."""
    return {name: one if _stays(one) else to_device(one, device) for name, one in conditioning.items()}


def _stays(tensor: torch.Tensor) -> bool:
    """A mask stays in main memory: the host asks it how long captions are, and waits for no GPU."""
    return tensor.dtype == torch.bool
