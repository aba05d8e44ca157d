"""What was found of bases as a page of one file: the ranking first, then each base with its worst images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from lora_studio.data.images.decode import data_url
from lora_studio.evaluate.assessing import ASPECTS, Aspect, BaseAssessment, ImageFigures
from lora_studio.evaluate.assessing.ranking import BaseDifference, BaseRanking
from lora_studio.evaluate.result import Interval
from lora_studio.pages import document, parts_of, text_of
from lora_studio.text import plural

KIND = "assessment"
TITLES: Mapping[Aspect, str] = {
    "following": "follows captions",
    "ceiling": "its VAE's ceiling",
    "gap": "domain gap",
    "distance": "distance to go",
}
LINES: Mapping[Aspect, str] = {
    "following": "how much better its images fit their own caption than other images' ones; 0 is not at all",
    "ceiling": "how well an image comes back from its VAE, in decibels: nothing that is learned is better",
    "gap": "its loss on these images, of that on its own images of the same captions; 1 is as usual to it",
    "distance": "how much less alike to these images its own are than these are to each other; 0 is not",
}
_SHOWN = 4  # images of a kind
_SIDE, _QUALITY = 128, 82


def assessment_page(
    name: str,
    assessments: Sequence[BaseAssessment],
    ranking: BaseRanking,
    images: Mapping[str, Image.Image],
    notes: Sequence[str],
) -> str:
    """The whole document. `images`: those to be learned, by their names."""
    number = len(assessments[0].images)
    head = _fill(
        "head",
        title=text_of(name),
        images=plural(number),
        bases=plural(len(assessments), "base"),
        ranking=text_of(ranking_in_words(ranking)),
    )
    sections = [_section("What was measured", _measures(assessments) + _lines(notes))]
    if len(assessments) > 1:
        sections.append(_section("Base against base", _differences(ranking.differences)))
    sections += [_section(one.base, _base(one, images)) for one in assessments]
    body = "\n".join([head, *sections])
    return document(name, body, parts_of(__package__), kind=KIND)


def ranking_in_words(ranking: BaseRanking) -> str:
    """One sentence."""
    if len(ranking.points) == 1:
        return "There is one base, so there is nothing to rank."
    if len(ranking.places) == 1:
        return "These images do not tell the bases apart."
    listed = "; ".join(
        f"{place}. {' and '.join(names)} ({ranking.points[names[0]]:+d})"
        for place, names in enumerate(ranking.places, start=1)
    )
    return f"By points, one for each measure in which a base is surely better than another: {listed}."


def in_figures(aspect: Aspect, interval: Interval) -> str:
    """The value with its interval."""
    if interval.value != interval.value:
        return "not measured"
    unit, digits = (" dB", 1) if aspect == "ceiling" else ("", 3)
    ends = f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"
    return f"{interval.value:.{digits}f}{unit} ({ends})"


def _measures(assessments: Sequence[BaseAssessment]) -> str:
    head = ["base", *(TITLES[one] for one in ASPECTS)]
    rows = [[one.base, *(in_figures(name, one.measures[name]) for name in ASPECTS)] for one in assessments]
    return _table(head, rows) + _lines(f"{TITLES[one]}: {LINES[one]}." for one in ASPECTS)


def _differences(differences: Sequence[BaseDifference]) -> str:
    words = {1: "better", -1: "worse", 0: "not told apart"}
    rows = [
        [TITLES[one.aspect], one.first, words[one.sign], one.second, in_figures("gap", one.better_by)]
        for one in differences
    ]
    return _table(["measure", "base", "is", "than", "by (of the gap: its logarithm)"], rows)


def _base(one: BaseAssessment, images: Mapping[str, Image.Image]) -> str:
    levels = [[f"{place + 1}", in_figures("gap", level)] for place, level in enumerate(one.levels)]
    table = _table(["noise level, from clean to noisy", TITLES["gap"]], levels)
    of_gap = [
        _card(found, "gap", one, images, place=1, label="its own") for found in one.worst("gap", _SHOWN)
    ]
    of_vae = [
        _card(found, "ceiling", one, images, place=0, label="from its VAE")
        for found in one.worst("ceiling", _SHOWN)
    ]
    worst = _fill("images", title="The images that it finds strangest", cards="\n".join(of_gap))
    return (
        table + worst + _fill("images", title="The images that its VAE spoils most", cards="\n".join(of_vae))
    )


def _card(
    found: ImageFigures,
    aspect: Aspect,
    one: BaseAssessment,
    images: Mapping[str, Image.Image],
    *,
    place: int,
    label: str,
) -> str:
    shown = [(images.get(found.name), "image"), (one.drawn.get(found.name, (None, None))[place], label)]
    thumbnails = "".join(
        _fill("image", uri=_uri(image), alt=text_of(f"{found.name}: {words}"), label=text_of(words))
        for image, words in shown
        if image is not None
    )
    figures = in_figures(aspect, Interval(*(found.figures[aspect],) * 3, 1)).partition(" (")[0]
    return _fill(
        "card", thumbnails=thumbnails, name=text_of(found.name), figures=f"{TITLES[aspect]} {figures}"
    )


def _uri(image: Image.Image) -> str:
    copy = image.convert("RGB")
    copy.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return data_url(copy, quality=_QUALITY)


def _section(title: str, body: str) -> str:
    return _fill("section", title=text_of(title), body=body)


def _lines(texts: Iterable[str]) -> str:
    return "".join(_fill("paragraph", text=text_of(one)) for one in texts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(_fill("title", scope="col", text=text_of(one)) for one in head)
    lines = [_fill("row", cells="".join(_fill("cell", text=text_of(one)) for one in row)) for row in rows]
    return _fill("table", head=titles, rows="\n".join(lines))


def _fill(part: str, **values: object) -> str:
    return parts_of(__package__).fill(part, **values)
