"""The report as one HTML page: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.evaluate.report.advice import advice_for
from lora_studio.evaluate.report.bars import bar_in_words, bar_of, limits_in_words
from lora_studio.evaluate.report.cards import Cards
from lora_studio.evaluate.report.curves import curve_sections
from lora_studio.evaluate.report.thumbnails import ReportImages, Thumbnails
from lora_studio.evaluate.report.words import (
    GROUP_LINES,
    GROUP_TITLES,
    fact_in_words,
    figure,
    finite,
    gravest,
    gravity_of,
    headline,
    measure_words,
    sentence_of,
    variant_in_words,
    without_folders,
)
from lora_studio.evaluate.result import GROUPS, Evaluation, Measured
from lora_studio.evaluate.verdicts import THRESHOLDS, Threshold
from lora_studio.pages import document, parts_of, text_of
from lora_studio.text import in_words, plural

KIND = "evaluation"
_FIRST = 6  # questions of a group that are seen at once; the others are folded away
_RANKED = 3  # best and worst prompts


@dataclass(frozen=True)
class _Section:
    anchor: str
    title: str
    body: str


def report_page(
    evaluation: Evaluation,
    images: ReportImages,
    *,
    losses: Sequence[Mapping[str, Any]] = (),
    validation: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The whole document. Arguments as for `write_report`."""
    cards = Cards(evaluation, Thumbnails(images))
    extremes, nearest = _extremes(evaluation, cards), _nearest(evaluation, cards)
    groups = _groups(evaluation, cards)  # what is seen first is drawn first, while there is room for images
    found = [
        _Section("measures", "What was measured", _measures(evaluation)),
        _Section("next", "What to try next", _next(evaluation)),
        _Section("extremes", "Best and worst prompts", extremes),
        *groups,
        _Section("nearest", "Nearest training images", nearest),
        _Section("training", "Training", curve_sections(losses, validation)),
        _Section("details", "How this was measured", _details(evaluation, cards.thumbnails.left_out)),
    ]
    sections = [one for one in found if one.body]
    body = "\n".join([_head(evaluation, sections), *(_fill("section", **vars(one)) for one in sections)])
    return document(evaluation.name, body, parts_of(__package__), kind=KIND)


def _fill(part: str, **values: object) -> str:
    return parts_of(__package__).fill(part, **values)


def _head(evaluation: Evaluation, sections: Iterable[_Section]) -> str:
    decided = [one for one in evaluation.verdicts if one.decided]
    pills = [(gravity_of(word), word) for word in dict.fromkeys(one.word for one in decided)]
    pills = pills or [("none", headline(evaluation))]
    told = sorted(evaluation.verdicts, key=lambda one: not one.decided)
    sentences = [
        _fill(
            "sentence",
            gravity=gravity_of(one.word) if one.decided else "none",
            word=text_of(one.word if one.decided else "not decided"),
            sentence=text_of(sentence_of(one)),
        )
        for one in told
    ]
    return _fill(
        "head",
        gravity=gravest(word for _, word in pills),
        title=text_of(evaluation.name),
        variant=text_of(variant_in_words(evaluation.variant)),
        prompts=plural(len(evaluation.questions), "prompt"),
        seeds=f"{plural(len(evaluation.seeds), 'seed')} each",
        pills=" ".join(_fill("pill", gravity=gravity, word=text_of(word)) for gravity, word in pills),
        sentences="\n".join(sentences),
        links="".join(_fill("link", anchor=one.anchor, words=text_of(one.title)) for one in sections),
    )


def _measures(evaluation: Evaluation) -> str:
    earned = {one.measure: gravity_of(one.word) for one in evaluation.verdicts if one.decided}
    rows = [
        _measure(one, [limit for limit in THRESHOLDS if limit.measure == one.name], earned.get(one.name, ""))
        for one in evaluation.measures
    ]
    line = "A bar is a 95 % interval; the grey line is the base, and a dashed line a verdict's threshold."
    listed = f'<p class="about">{line}</p>\n<ul class="measures" role="list">\n' + "\n".join(rows) + "\n</ul>"
    return listed if rows else ""


def _measure(measured: Measured, limits: Sequence[Threshold], gravity: str) -> str:
    words, interval = measure_words(measured.name), measured.interval
    said = {"name": text_of(measured.name), "title": text_of(words.title), "line": text_of(words.line)}
    if interval.value != interval.value:
        return _fill("unmeasured", **said)
    bar = bar_of(interval, words, limits)
    marks = [(bar.unchanged, "unchanged", f"the base: {words.unchanged:g}")]
    marks += [(place, "limit", limits_in_words([limit], words)) for limit, place in bar.limits]
    drawn = _fill(
        "bar",
        said=text_of(bar_in_words(interval, words, limits)),
        marks="".join(_fill("mark", kind=kind, place=_share(at), said=text_of(of)) for at, kind, of in marks),
        low=_share(bar.low),
        width=_share(bar.high - bar.low),
        place=_share(bar.value),
    )
    plain = ""
    if measured.base is not None and measured.tuned is not None:
        base, tuned = (figure(one, words, signed=False) for one in (measured.base, measured.tuned))
        plain = f"base {base}, tuned {tuned}"
    figures = {"value": figure(interval.value, words), "exact": repr(interval.value)}
    ends = {"low": interval.low, "high": interval.high}
    figures |= {end: figure(value, words) for end, value in ends.items()}
    figures |= {f"exact_{end}": repr(value) for end, value in ends.items()}
    told = text_of(limits_in_words(limits, words))
    return _fill("measure", **said, gravity=gravity, bar=drawn, limits=told, plain=plain, **figures)


def _share(place: float) -> str:
    return f"{place:.2%}"


def _next(evaluation: Evaluation) -> str:
    rows = [_fill("advice", what=text_of(one.what), why=text_of(one.why)) for one in advice_for(evaluation)]
    return '<ol class="next">\n' + "\n".join(rows) + "\n</ol>"


def _extremes(evaluation: Evaluation, cards: Cards) -> str:
    """By fidelity the highest and the lowest, by drift the highest; of few prompts all are seen below."""
    parts = []
    for name, groups, of_highest, of_lowest in (
        ("fidelity", GROUPS[:2], "Best: learned most", "Worst: learned least"),
        ("drift", GROUPS[2:], "Changed most without the trigger", ""),
    ):
        each = measured.per_question if (measured := evaluation.measure(name)) else {}
        asked = [number for number in finite(each) if evaluation.questions[number].group in groups]
        if len(asked) < 2 * _RANKED:
            continue
        ranked = sorted(asked, key=lambda number: (-each[number], number))
        picked = [(of_highest, ranked[:_RANKED]), (of_lowest, ranked[: -_RANKED - 1 : -1])]
        line = f"By {measure_words(name).title.lower()} of single prompts, which chance moves much."
        parts += [
            _fill("ranked", title=title, line=line, cards="\n".join(cards.question(n, few=True) for n in of))
            for title, of in picked
            if title
        ]
    return "\n".join(parts)


def _groups(evaluation: Evaluation, cards: Cards) -> list[_Section]:
    numbers = {
        group: [number for number, one in enumerate(evaluation.questions) if one.group == group]
        for group in GROUPS
    }
    first = {group: [cards.question(one) for one in several[:_FIRST]] for group, several in numbers.items()}
    found = []
    for group in GROUPS:
        rest = ""
        if later := numbers[group][_FIRST:]:
            folded = "\n".join(cards.question(one) for one in later)
            rest = _fill("more", words=f"{plural(len(later), 'prompt')} more", cards=folded)
        body = _fill("group", line=text_of(GROUP_LINES[group]), first="\n".join(first[group]), rest=rest)
        if first[group]:
            found.append(_Section(group.replace("_", "-"), GROUP_TITLES[group], body))
    return found


def _nearest(evaluation: Evaluation, cards: Cards) -> str:
    ranked = sorted(evaluation.nearest, key=lambda one: (not one.copied, -one.similarity))
    body = "\n".join(cards.near(one) for one in ranked[: 4 * _RANKED])
    line = "What it drew, and the training image nearest to it: 1 is the same image."
    return f'<p class="about">{line}</p>\n<div class="questions nearest">\n{body}\n</div>' if body else ""


def _details(evaluation: Evaluation, left_out: int) -> str:
    """What it rests on, so that somebody else can measure the same."""
    facts = [
        _fill("fact", name=text_of(in_words(name)), value=text_of(fact_in_words(value)))
        for name, value in evaluation.facts.items()
    ]
    notes = [without_folders(one) for one in evaluation.notes]
    if left_out:
        notes.append(f"{plural(left_out)} more would make this page too large to open.")
    told = "".join(f"<li>{text_of(one)}</li>" for one in notes)
    line = "Bars are 95 % intervals over prompts; a verdict needs all of one beyond its threshold."
    listed = f'<ul class="notes">{told}</ul>' if notes else ""
    return f'<p class="about">{line}</p>{listed}<dl class="facts">{"".join(facts)}</dl>'
