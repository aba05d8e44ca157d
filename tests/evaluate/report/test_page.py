"""The page of an evaluation: its figures are the evaluation's, and no text of others becomes markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from evaluations import drawn_image, evaluation, report_images, with_prompts
from PIL import Image

from lora_studio.errors import StudioError
from lora_studio.evaluate.report import ReportImages, write_report
from lora_studio.evaluate.report.page import report_page
from lora_studio.evaluate.report.thumbnails import MOST_BYTES
from lora_studio.evaluate.result import GROUPS, Interval, Variant, evaluation_of

LOSSES = [{"step": step, "loss": 1 / step, "learning_rate": 1e-4} for step in range(1, 40)]
VALIDATION = [{"step": step, "relative": 1 - step / 100} for step in range(0, 40, 10)]


class Elements(HTMLParser):
    """Every tag with its attributes, the text between, and the `data` elements within each `id`."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.data: dict[str, list[tuple[float, str]]] = {}
        self._place = ""
        self._value: str | None = None
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        self._place = attributes.get("id", self._place)
        self._value = attributes["value"] if tag == "data" else None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._value is not None:
            self.data.setdefault(self._place, []).append((float(self._value), data))
            self._value = None


def elements(**changed: object) -> Elements:
    known = replace(evaluation(), **changed)
    return Elements(report_page(known, report_images(), losses=LOSSES, validation=VALIDATION))


def test_its_figures_are_those_of_the_json() -> None:
    told = json.loads(json.dumps(evaluation().to_json()))
    page = elements()
    for measure in told["measures"]:
        figures = page.data[f"measure-{measure['name']}"]
        assert [exact for exact, _ in figures] == [
            measure["interval"][key] for key in ("value", "low", "high")
        ]
        assert all(float(shown) == pytest.approx(exact, abs=0.0006) for exact, shown in figures)
        for plain in (measure["base"], measure["tuned"]):
            assert plain is None or f"{plain:.3f}" in page.text
    each = {measure["name"]: measure["per_question"] for measure in told["measures"]}
    for number, question in enumerate(told["questions"]):
        of_prompt = [each[name][str(number)] for name in OF_A_PROMPT]
        assert [exact for exact, _ in page.data[f"question-{number}"]] == of_prompt
        assert question["prompt"] in page.text
    assert [near["similarity"] for near in told["nearest"]] == [
        exact for exact, _ in page.data["nearest-title"]
    ]


def test_verdicts_come_first_and_what_is_not_decided_is_not_said_as_one() -> None:
    page = elements()
    words = re.sub(r"\s+", " ", page.text)
    assert words.index("learned leaks") < words.index("What was measured")
    assert (
        "not decided The interval holds the threshold." in words
        and "Ask about 24 prompts more: --count" in words
    )
    pills = [
        attributes["class"] for _, attributes in page.tags if "pill" in attributes.get("class", "").split()
    ]
    assert pills[:2] == ["pill good", "pill warning"]


def test_it_needs_no_other_file_no_script_and_no_network() -> None:
    page = elements()
    links = [value for _, one in page.tags for name, value in one.items() if name in ("src", "href")]
    assert len(links) > 100 and all(one.startswith(("data:image/jpeg;base64,", "#")) for one in links)
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    policy = next(one["content"] for _, one in page.tags if "http-equiv" in one)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    identifiers = [one["id"] for _, one in page.tags if "id" in one]
    assert len(identifiers) == len(set(identifiers))
    assert all(one[1:] in identifiers for one in links if one.startswith("#"))


def test_whoever_cannot_see_it_is_told_what_is_drawn() -> None:
    page = elements()
    drawn = [one for tag, one in page.tags if tag == "img"]
    assert drawn and all(one["alt"] for one in drawn)
    bars = [one for _, one in page.tags if one.get("role") == "img"]
    assert "Fidelity +0.613 (+0.563 to +0.663), the base is at 0; learned above 0.200" in [
        one["aria-label"] for one in bars
    ]
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(later - former <= 1 for former, later in pairwise(headings))


OF_A_PROMPT = ("fidelity", "prompt_following", "leakage", "plain_following", "drift")
HOSTILE = "\"><img src=x onerror=alert(1)><script>alert(2)</script> \x1b[31m ${body} $style \u202e & 'x"


def test_hostile_texts_stay_texts() -> None:
    known = with_prompts(evaluation(name=HOSTILE), HOSTILE)
    known = replace(
        known,
        verdicts=tuple(replace(one, sentence=HOSTILE, word=HOSTILE) for one in known.verdicts),
        nearest=tuple(replace(one, training_image=HOSTILE) for one in known.nearest),
        measures=tuple(replace(one, name=HOSTILE) for one in known.measures),
        facts={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
    )
    document = report_page(known, report_images())
    page, calm = Elements(document), elements()
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in calm.tags}
    assert all(not name.startswith("on") for _, one in page.tags for name in one)
    assert all(one["src"].startswith("data:image/jpeg;base64,") for tag, one in page.tags if tag == "img")
    assert "\x1b" not in document and "\u202e" not in document and "<script>alert(2)</script>" in page.text


@pytest.mark.parametrize(
    ("fact", "shown"),
    [
        ("/home/mia brown/models/base.safetensors", "base.safetensors"),
        ("C:\\Users\\mia\\base.safetensors", "base.safetensors"),
        ("~mia/models/base", "base"),
        ("stabilityai/sdxl-base", "stabilityai/sdxl-base"),
        ("of /home/mia/a.png and /home/mia/b.png, 1/2 of all", "of a.png and b.png, 1/2 of all"),
    ],
)
def test_no_folder_of_the_machine_is_told(fact: str, shown: str) -> None:
    page = elements(facts={"base": fact}, notes=())
    assert shown in page.text and "mia" not in page.text


def test_what_was_not_measured_is_said_and_nothing_else_fails() -> None:
    nan = float("nan")
    measures = [
        replace(one, interval=Interval(nan, nan, nan, 0), per_question={}) for one in evaluation().measures
    ]
    page = elements(measures=tuple(measures))
    assert page.text.count("not measured") == len(measures) and "nan" not in page.text
    empty = elements(
        measures=(), verdicts=(), nearest=(), notes=(), facts={}, questions=(), variant=Variant()
    )
    assert "no verdict" in empty.text


def test_thousands_of_images_do_not_make_a_page_that_no_one_can_open() -> None:
    many = evaluation(each=400)
    noise = Image.effect_noise((512, 512), 90).convert("RGB")  # the worst that JPEG can be given
    asked: list[int] = []

    def drawn(question: int, seed: int, tuned: bool) -> Image.Image:
        asked.append(question)
        return noise

    document = report_page(many, ReportImages(drawn, lambda name: noise))
    assert len(document) < MOST_BYTES + 6_000_000 and len(asked) < 600
    page = Elements(document)
    seen = {many.questions[one].group for one in asked}
    assert seen == set(GROUPS) and "would make this page too large to open" in page.text
    assert document.count("no image") > 100


def test_a_report_is_written_again_but_over_nothing_else(tmp_path: Path) -> None:
    for _ in range(2):
        page, sheet = write_report(tmp_path, evaluation(), report_images())
    assert evaluation_of(evaluation().to_json()) == evaluation()
    with Image.open(sheet) as image:
        assert image.width == 1200 and image.format == "PNG"
    page.write_text("<html>my own")
    with pytest.raises(StudioError, match="is there already, and no page of the evaluation"):
        write_report(tmp_path, evaluation(), report_images())
    assert page.read_text() == "<html>my own"


def test_the_same_evaluation_gives_the_same_bytes(tmp_path: Path) -> None:
    files = [write_report(tmp_path / name, evaluation(), report_images()) for name in ("a", "b")]
    assert [one.read_bytes() for one in files[0]] == [one.read_bytes() for one in files[1]]


def test_the_sheet_shows_base_and_tuned_images_of_each_group(tmp_path: Path) -> None:
    """The colours of the images' corners are found on it."""
    _, sheet = write_report(tmp_path, evaluation(), report_images())
    with Image.open(sheet) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(10**6) or []}
    for group in range(4):
        for tuned in (False, True):
            assert drawn_image(9 * group, 1, tuned).getpixel((95, 0)) in colours


def test_a_sheet_has_room_for_any_name_and_for_no_images(tmp_path: Path) -> None:
    known = replace(evaluation(name="\u5c71 $x$ " * 80), nearest=())
    _, sheet = write_report(tmp_path, known, ReportImages(lambda question, seed, tuned: None))
    with Image.open(sheet) as image:
        assert image.width == 1200 and image.height < 600
