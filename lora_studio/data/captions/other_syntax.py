"""What other programs read as signs in captions and prompts: here it is text like any other, so it is said.

Taggers escape brackets; UIs weigh words, load LoRAs and fill in wildcards; trainers fill in triggers and read
options behind a prompt. Every pattern takes time that grows with the length of the text and no faster.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lora_studio.data.captions.wording import has_wildcards
from lora_studio.errors import preview_names

_AROUND = 24  # letters beside a sign that are shown with it
_NUMBER = re.compile(r"\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*")
_IN_BRACKETS = re.compile(r"\(([^()]*+)\)|\[([^\[\]]*+)\]")
_ANY_SIGN = re.compile(r"[\\<{\[(]|__|--|BREAK|embedding:|\.(?:txt|json|toml)$")
_SIGNS = {
    "escaped brackets": re.compile(r"\\[()\[\]{}]"),
    "calls of LoRAs": re.compile(r"<(?:lora|lyco|hypernet|embedding|wildcard|segment)[:=][^<>]*+>?", re.I),
    "places for the trigger words": re.compile(r"\[(?:trigger|name|filewords)\]|\{(?:trigger|class)\}", re.I),
    "doubled brackets": re.compile(r"\(\((?=\w)|\[\[(?=\w)|\{\{(?=\w)"),
    "names of wildcard files": re.compile(r"__[A-Za-z](?:_?[A-Za-z0-9/-])*+__"),
    "words for UIs": re.compile(r"\bBREAK\b|\bembedding:[\w-]"),
}
_OF_PROMPTS = {
    "options behind the prompt": re.compile(r"(?:^|(?<=\s))--[A-Za-z]{1,12}(?=[\s=]|$)"),
    "the name of a file": re.compile(r"^[^\s,]+\.(?:txt|json|toml)$"),
}
_WEIGHTS, _WILDCARDS = "weights", "{a|b}"
_WAYS = {  # kind -> (in captions, in prompts where that is another)
    "escaped brackets": ("Write ( and ) without a backslash.",),
    _WEIGHTS: ("Write the words alone; (words:1.2) and [a:b:0.5] mean something to UIs only.",),
    "doubled brackets": ("Write the words alone; brackets weigh them in UIs only.",),
    "calls of LoRAs": ("Leave it out; a LoRA that the base shall have is named in [[base.loras]].",),
    "places for the trigger words": (
        'Write the trigger words themselves, or set data.caption_prefix = "{trigger}, ".',
        "Write the trigger words themselves.",
    ),
    "names of wildcard files": (
        "Write {red|blue} in the caption and set data.wildcards = true.",
        "Write several prompts.",
    ),
    _WILDCARDS: (
        "Set data.wildcards = true, and one of the words is drawn each time.",
        "Write several prompts.",
    ),
    "words for UIs": ("Leave them out; they mean something to UIs only.",),
    "options behind the prompt": (
        "Leave them out: samples.steps, samples.guidance, samples.seed and samples.negative_prompt say that "
        "for all previews, data.resolution their size.",
    ),
    "the name of a file": ("Write its lines as prompts: samples.prompts = [...].",),
}


@dataclass(frozen=True)
class OtherSyntax:
    """One kind of signs, and the texts that hold some."""

    kind: str
    names: tuple[str, ...]  # of images, or of a recipe's keys
    example: str
    way: str  # what to write instead

    def __str__(self) -> str:
        return f'{self.kind} in {preview_names(self.names)}, read as they stand, such as "{self.example}"'


def find_other_syntax(
    texts: Iterable[tuple[str, str]], *, wildcards: bool = False, prompts: bool = False
) -> list[OtherSyntax]:
    """Of texts with their names. `wildcards`: {a|b} is drawn from. `prompts`: they are for previews."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, text in texts:
        for kind, example in _signs(text, prompts=prompts):
            if not (kind == _WILDCARDS and wildcards):
                found.setdefault(kind, []).append((name, example))
    order = list(_WAYS)
    return [
        OtherSyntax(
            kind,
            tuple(dict.fromkeys(name for name, _ in found[kind])),
            found[kind][0][1],
            _WAYS[kind][-1 if prompts else 0],
        )
        for kind in sorted(found, key=order.index)
    ]


def _signs(text: str, *, prompts: bool) -> Iterator[tuple[str, str]]:
    """Each kind that the text holds, with the first place of it."""
    if not _ANY_SIGN.search(text):
        return
    for kind, pattern in (_SIGNS | _OF_PROMPTS if prompts else _SIGNS).items():
        if match := pattern.search(text):
            yield kind, _with_surroundings(text, *match.span())
    weighed = (one for one in _IN_BRACKETS.finditer(text) if _is_weighed(one[1] or one[2] or ""))
    if first := next(weighed, None):
        yield _WEIGHTS, _with_surroundings(text, *first.span())
    if has_wildcards(text):
        at = text.index("{")
        yield _WILDCARDS, _with_surroundings(text, at, at + 1)


def _is_weighed(inside: str) -> bool:
    """ "words:1.2" and "a:b:0.5", but not the "16:9" of a screen."""
    words, colon, number = inside.rpartition(":")
    return bool(colon and _NUMBER.fullmatch(number) and words.strip() and not _NUMBER.fullmatch(words))


def _with_surroundings(text: str, start: int, end: int) -> str:
    before, behind = max(0, start - _AROUND), min(len(text), end + _AROUND, start + 4 * _AROUND)
    return f"{'...' if before else ''}{text[before:behind]}{'...' if behind < len(text) else ''}"
