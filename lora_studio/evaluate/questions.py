"""What base and tuned model are asked: prompts in four groups, of what was taught and contexts of our own."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import TypeVar

from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.captions.trigger import contains_trigger, needs_class_words, without_trigger
from lora_studio.data.manifest import Record
from lora_studio.errors import StudioError
from lora_studio.evaluate.result import GROUPS, Group, Question, Size
from lora_studio.families.text_chunks import Tokenizer
from lora_studio.pocket.scenes import BACKGROUNDS, COLOURS, POSITIONS, held_out_scenes
from lora_studio.recipe.data import DataConfig
from lora_studio.rng import python_random
from lora_studio.text import shown

T = TypeVar("T")
USUAL_COUNT = 5  # of each group: ten that call what was learned, and ten that do not
MOST_PROMPTS, MOST_LETTERS = 400, 2000
_WHOLE_WORDS = 2.5  # tokens that a tokenizer makes of an English word, at most, if its model has read English
_LEFT_OVER = re.compile(r",?(?:\s+(?:in|by|of|as|with|the|style))+$")  # "a fox in" of "a fox in zwx style"
_SQUARE: Size = (0, 0)  # of the usual side
_POCKET_SCENES = {"style": 21, "unrelated": 22}  # seeds of scenes that no base was trained on


@dataclass(frozen=True)
class Taught:
    """What was learned, as its recipe or file says; without captions and class words as far as that goes."""

    trigger: str = ""
    class_words: str = ""
    captions: tuple[str, ...] = ()
    sizes: Mapping[str, tuple[Size, ...]] = field(default_factory=dict)  # of a caption's training images

    @property
    def is_subject(self) -> bool:
        """Whether the trigger names a thing, and not how something is drawn."""
        called = [one for one in self.captions if contains_trigger(one, self.trigger)]
        return bool(self.class_words) or 2 * sum(needs_class_words(c, self.trigger) for c in called) > len(
            called
        )

    def text_of(self, prompt: str) -> str:
        """What its image is scored against: the encoder knows the class, and not the trigger."""
        plain = without_trigger(prompt, self.trigger, self.class_words) or prompt
        return plain if self.class_words else _LEFT_OVER.sub("", plain) or prompt


def taught_by(records: Sequence[Record], data: DataConfig) -> Taught:
    """What these images teach, with their captions as [data] words them before anything is drawn."""
    captions, triggers = ShownCaptions(records, data, seed=0), [one for one in records if one.trigger]
    first = triggers[0] if triggers else None
    trigger, words = (first.trigger, first.class_words) if first else (data.trigger, data.class_words)
    sizes = dict[str, dict[Size, None]]()
    for index, record in enumerate(records):
        for text in captions.written(index)[:1]:
            bucket = record.bucket
            sizes.setdefault(text, {}).update({} if bucket is None else {(bucket.width, bucket.height): None})
    return Taught(trigger, words, tuple(sizes), {text: tuple(of) for text, of in sizes.items()})


@dataclass(frozen=True)
class Contexts:
    """What a base can be asked to draw. In `subject` {} stands for the subject with its article."""

    subject: tuple[str, ...]
    style: tuple[str, ...]
    unrelated: tuple[str, ...]
    adjectives: tuple[str, ...] = ()  # that a class has in the base's captions, in turn


def contexts_for(tokenizer: Tokenizer) -> Contexts:
    """Those that the base's text encoder has words for: everyday ones, or the pocket world's.

    The tokenizer tells: English words are whole tokens, or nearly, to a model that has read English.
    """
    everyday = everyday_contexts()
    words = sorted({word for text in everyday.style for word in re.findall(r"[a-z]{4,}", text)})
    tokens = [len(tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]) for word in words]
    return everyday if sum(tokens) <= _WHOLE_WORDS * len(words) else pocket_contexts()


@cache
def everyday_contexts() -> Contexts:
    """Of `contexts.toml`."""
    found = tomllib.loads(files(__package__).joinpath("contexts.toml").read_text("utf-8"))
    given = (found["subject"]["contexts"], found["style"]["contexts"], found["unrelated"]["prompts"])
    return Contexts(*map(tuple, given))


@cache
def pocket_contexts() -> Contexts:
    """From the grammar of its world; combinations of object, colour and background that it never saw."""
    places = [f"{{}} {one} {other}" for one, other in itertools.product(POSITIONS, BACKGROUNDS.values())]
    colours = list(COLOURS)
    for listed in (places, colours):
        python_random("evaluation", "pocket").shuffle(listed)
    scenes = {name: held_out_scenes(200, seed=seed) for name, seed in _POCKET_SCENES.items()}
    captions = {name: tuple(dict.fromkeys(one.caption() for one in some)) for name, some in scenes.items()}
    return Contexts(tuple(places), captions["style"], captions["unrelated"], tuple(colours))


def questions_for(taught: Taught, contexts: Contexts, *, count: int = USUAL_COUNT) -> tuple[Question, ...]:
    """Up to `count` of each group; the same for the same arguments.

    Captions are drawn at the sizes that their images were trained at: at another one what was memorised is
    arranged anew, and no copy is found. Without a trigger what was learned is called by every prompt, so
    there is no class without it.
    """
    trigger, called = taught.trigger, _captions_of(taught)
    prompts: dict[Group, Iterable[str]] = {}
    if taught.is_subject and trigger:
        subject = _with_article(taught)
        fresh = [one for one in contexts.subject if one.format(subject) not in called]
        adjectives = itertools.cycle(contexts.adjectives or ("",))
        classes = (_a(f"{next(adjectives)} {taught.class_words}") for _ in fresh)
        prompts["new_contexts"] = (one.format(subject) for one in fresh)
        if taught.class_words:
            prompts["class_alone"] = (one.format(words) for one, words in zip(fresh, classes, strict=False))
    else:
        before, behind = _around(called, trigger)
        prompts["new_contexts"] = (f"{before}{one}{behind}" for one in contexts.style)
        prompts["class_alone"] = contexts.style if trigger else ()
    lacking = re.compile(rf"\b{re.escape(taught.class_words)}s?\b" if taught.class_words else r"(?!)")
    prompts["unrelated"] = (one for one in contexts.unrelated if not lacking.search(one))
    sized = [(caption, size) for caption in called for size in taught.sizes.get(caption) or (_SQUARE,)]
    return (
        *(
            Question("like_training", caption, taught.text_of(caption), *size)
            for caption, size in _evenly(sized, count)
        ),
        *(
            Question(group, prompt, taught.text_of(prompt))
            for group in GROUPS[1:]
            for prompt in itertools.islice(dict.fromkeys(prompts.get(group, ())), count)
        ),
    )


def at_other_side(questions: Sequence[Question], share: float, stride: int) -> tuple[Question, ...]:
    """With the sizes that they name times `share`, in whole strides."""

    def scaled(side: int) -> int:
        return side and max(1, round(side * share / stride)) * stride

    return tuple(replace(one, width=scaled(one.width), height=scaled(one.height)) for one in questions)


def with_prompts(
    questions: Sequence[Question], text: str, taught: Taught, *, name: str = "--prompts"
) -> tuple[Question, ...]:
    """The questions with those of a file of prompts: one a line, lines that begin with # are comments.

    Each goes to the group that trigger and class words make it of, in place of those that were built; lines
    that begin with + are added to them. Raises StudioError for a file without a prompt, or with too many.
    """
    added, instead = list[Question](), list[Question]()
    for line in filter(None, map(str.strip, text.splitlines())):
        if not line.startswith("#"):
            prompt = line.removeprefix("+").strip()
            if len(prompt) > MOST_LETTERS:
                raise StudioError(
                    f"{name} has a prompt of {len(prompt)} letters; at most {MOST_LETTERS} are read: "
                    f"{shown(prompt, limit=60)}"
                )
            size = next(iter(taught.sizes.get(prompt, ())), _SQUARE)
            asked = Question(_group_of(prompt, taught), prompt, taught.text_of(prompt), *size)
            (added if line.startswith("+") else instead).append(asked)
    if not added and not instead:
        raise StudioError(f"{name} has no prompt in it; write one a line.")
    if len(added) + len(instead) > MOST_PROMPTS:
        raise StudioError(
            f"{name} has {len(added) + len(instead)} prompts; at most {MOST_PROMPTS} are drawn."
        )
    replaced = {one.group for one in instead}
    kept = [one for one in questions if one.group not in replaced]
    return tuple(sorted(dict.fromkeys([*kept, *instead, *added]), key=lambda one: GROUPS.index(one.group)))


def _group_of(prompt: str, taught: Taught) -> Group:
    if prompt in taught.captions:
        return "like_training"
    if not taught.trigger or contains_trigger(prompt, taught.trigger):
        return "new_contexts"
    words = taught.class_words
    return "class_alone" if words and re.search(rf"\b{re.escape(words)}\b", prompt) else "unrelated"


def _captions_of(taught: Taught) -> list[str]:
    """Those that call it; of a file that has none the trigger alone."""
    found = list(dict.fromkeys(one for one in taught.captions if one))
    called = [one for one in found if not taught.trigger or contains_trigger(one, taught.trigger)]
    return called or [one for one in [_with_article(taught) if taught.is_subject else taught.trigger] if one]


def _evenly(listed: Sequence[T], count: int) -> list[T]:
    """`count` of them, from all over the list; all of them if there are no more."""
    if len(listed) <= count:
        return list(listed)
    return [listed[number * len(listed) // count] for number in range(count)]


def _a(words: str) -> str:
    words = " ".join(words.split())
    return f"{'an' if words[:1].casefold() in tuple('aeiou') else 'a'} {words}" if words else ""


def _with_article(taught: Taught) -> str:
    """The trigger as most captions have it: "a vkq robot", or "ohwx woman"."""
    searched = re.compile(rf"(?:\b(an?|the|my)\s+)?{re.escape(taught.trigger)}", re.IGNORECASE)
    found = [(match[1] or "").lower() for one in taught.captions if (match := searched.search(one))]
    article = max(dict.fromkeys(found), key=found.count, default="a")
    return f"{article} {taught.trigger}".strip()


def _around(captions: Sequence[str], trigger: str) -> tuple[str, str]:
    """What stands before and behind a caption of something drawn in the style, as most captions have it."""
    if not trigger:
        return "", ""
    ends = [one for one in captions if one.endswith(trigger) and one != trigger]
    starts = [one for one in captions if one.startswith(trigger) and one != trigger]
    if 2 * len(starts) > len(captions):
        return trigger + (
            ", " if sum(one[len(trigger)] == "," for one in starts) * 2 > len(starts) else " "
        ), ""
    if 2 * len(ends) <= len(captions) or len(ends) < 2:
        return "", f", {trigger}"
    columns = zip(*(reversed(one.removesuffix(trigger)) for one in ends), strict=False)
    shared = itertools.takewhile(lambda letters: len(set(letters)) == 1, columns)
    lead = "".join(letters[0] for letters in shared)[::-1]
    joint = re.search(r"(,\s*|\s)(?:\w+\s+){0,4}$", lead)  # ", " or " in the style of "
    return "", f"{joint[0] if joint else ', '}{trigger}"


def in_groups(questions: Sequence[Question]) -> Mapping[Group, list[int]]:
    """The numbers of each group's questions."""
    return {group: [n for n, one in enumerate(questions) if one.group == group] for group in GROUPS}
