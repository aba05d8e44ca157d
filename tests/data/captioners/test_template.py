from __future__ import annotations

import pytest

from lora_studio.data.captioners import Template, WriterOptions, caption_writer
from lora_studio.data.captions.wording import Wording
from lora_studio.data.scan import scan
from lora_studio.errors import CaptionError, RecipeError


def test_every_image_gets_the_sentence_with_the_words_in_it(folder, paint):
    paint("a.png")
    paint("b.png", colour="blue")
    options = WriterOptions(wording=Wording(trigger="vkq", class_words="robot"))
    answers = Template(options).describe(scan(folder).used)
    assert [answer.text for answer in answers] == ["a photo of vkq robot"] * 2


def test_a_sentence_of_ones_own_needs_only_the_words_that_it_holds(folder, paint):
    paint("a.png")
    options = WriterOptions(template="vintage {class}", wording=Wording(class_words="car"))
    (answer,) = Template(options).describe(scan(folder).used)
    assert answer.text == "vintage car"


def test_words_that_are_missing_are_asked_for():
    with pytest.raises(CaptionError, match="--class WORDS"):
        Template(WriterOptions(wording=Wording(trigger="vkq"))).describe([])


def test_options_that_would_do_nothing_are_refused():
    with pytest.raises(CaptionError, match="template does nothing with --model, --threshold; leave"):
        Template(WriterOptions(model="x", thresholds={"general": 0.5}))


def test_the_table_names_its_captioners_and_refuses_others():
    assert caption_writer("template") is Template
    with pytest.raises(RecipeError, match="did you mean 'template'"):
        caption_writer("tempalte")
    with pytest.raises(CaptionError, match="sidecar only reads"):
        caption_writer("sidecar")
