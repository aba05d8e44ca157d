"""Signs of other programs are recognised in captions and prompts; what only looks like it is left alone."""

from __future__ import annotations

import time

import pytest

from lora_studio.data.captions.other_syntax import find_other_syntax

CAPTIONS = {  # as they stand in the wild -> kind
    r"1girl, slime \(substance\), zwx style": "escaped brackets",
    "(masterpiece:1.2), a robot": "weights",
    "a [cat:dog:0.5] on a wall": "weights",
    "<lora:old_style:0.8>, a robot": "calls of LoRAs",
    "<lyco:x:1> a robot": "calls of LoRAs",
    "a photo of [trigger] on a beach": "places for the trigger words",
    "a photo of [name], [filewords]": "places for the trigger words",
    "a photo of {trigger}": "places for the trigger words",
    "((best quality)), a robot": "doubled brackets",
    "a __animal_kind__ in a wood": "names of wildcard files",
    "a {red|blue} robot": "{a|b}",
    "a robot BREAK a garden": "words for UIs",
    "embedding:easynegative": "words for UIs",
}
PLAIN = (
    *(
        "a robot (small) in a garden",
        "a screen of (16:9)",
        "at 12:30 (or later)",
        ">:( and :)",
        "o__o",
        "C++",
    ),
    *("a [brass] sign", "breaking waves", "x < y", "half -- a dash", "smile, ^_^, (o)_(o)", "prompts.txt"),
    *("a sign that says --stop--", "50% (1:2)"),
)
PROMPTS = {
    "zwx style, a robot --n blurry --w 512 --d 5": "options behind the prompt",
    "a robot --ar 16:9": "options behind the prompt",
    "prompts.txt": "the name of a file",
    "sample_prompts.toml": "the name of a file",
    "[trigger] in a wood": "places for the trigger words",
}


@pytest.mark.parametrize(("caption", "kind"), CAPTIONS.items())
def test_signs_in_captions_are_named_with_the_image_and_our_way(caption: str, kind: str) -> None:
    (found,) = find_other_syntax([("plain.png", "a robot"), ("a.png", caption)])
    assert (found.kind, found.names) == (kind, ("a.png",))
    assert found.example.strip(".") in caption and found.way.endswith(".")


@pytest.mark.parametrize("caption", PLAIN)
def test_what_people_write_is_left_alone(caption: str) -> None:
    assert find_other_syntax([("a.png", caption)]) == []


@pytest.mark.parametrize(("prompt", "kind"), PROMPTS.items())
def test_prompts_have_signs_of_their_own(prompt: str, kind: str) -> None:
    (found,) = find_other_syntax([("samples.prompts", prompt)], prompts=True)
    assert found.kind == kind and "samples.prompts" in str(found)


def test_each_kind_is_said_once_with_all_names() -> None:
    captions = [(f"{number}.png", r"a cat \(animal\)") for number in range(9)]
    (found,) = find_other_syntax(captions)
    assert len(found.names) == 9 and "0.png, 1.png, 2.png and 6 more" in str(found)


def test_wildcards_that_are_drawn_are_no_fault() -> None:
    assert find_other_syntax([("a.png", "a {red|blue} robot")], wildcards=True) == []


@pytest.mark.parametrize(
    "piece", ["(", "[", "{", "{|", "|", "\\(", "<lora:", "__a", "__a_", "((", "--a ", "(:1"]
)
def test_no_text_takes_long(piece: str) -> None:
    """A caption file may hold a million letters."""
    text = "{(" + piece * (1_000_000 // len(piece))
    began = time.process_time()
    find_other_syntax([("a.png", text)], prompts=True)
    assert time.process_time() - began < 2
