"""What is asked: four groups of prompts, from what was taught; the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.errors import StudioError
from lora_studio.evaluate.questions import (
    Taught,
    at_other_side,
    contexts_for,
    everyday_contexts,
    in_groups,
    pocket_contexts,
    questions_for,
    with_prompts,
)
from lora_studio.evaluate.result import GROUPS
from lora_studio.pocket import WEIGHTS
from lora_studio.pocket.samples import STYLE_TRIGGER, style_samples, subject_samples

STYLE = Taught(STYLE_TRIGGER, "", tuple(one.caption for one in style_samples()))
SUBJECT = Taught("vkq robot", "robot", tuple(one.caption for one in subject_samples()))
EVERYDAY = everyday_contexts()


def prompts(taught: Taught, contexts, group: str, count: int = 5) -> list[str]:
    asked = questions_for(taught, contexts, count=count)
    return [asked[number].prompt for number in in_groups(asked)[group]]


@pytest.mark.parametrize("taught", [STYLE, SUBJECT])
def test_each_group_is_asked_as_often_and_always_the_same(taught) -> None:
    asked = questions_for(taught, pocket_contexts(), count=5)
    assert [len(numbers) for numbers in in_groups(asked).values()] == [5, 5, 5, 5]
    assert [one.group for one in asked] == sorted((one.group for one in asked), key=GROUPS.index)
    assert asked == questions_for(taught, pocket_contexts(), count=5)


@pytest.mark.parametrize("taught", [STYLE, SUBJECT])
def test_the_trigger_is_where_it_belongs_and_never_in_what_is_scored(taught) -> None:
    for one in questions_for(taught, pocket_contexts(), count=8):
        assert (taught.trigger in one.prompt) == (one.group in ("like_training", "new_contexts"))
        assert taught.trigger not in one.text
        assert (one.prompt in taught.captions) == (one.group == "like_training")


def test_a_style_is_scored_without_its_words_and_a_subject_as_its_class() -> None:
    (style, *_), (subject, *_) = (questions_for(one, pocket_contexts()) for one in (STYLE, SUBJECT))
    assert f"{style.text}, {STYLE_TRIGGER}" == style.prompt
    assert subject.prompt.replace("vkq robot", "robot") == subject.text
    called = Taught("zwx style", "", ("a fox in zwx style", "a dog in zwx style"))
    assert questions_for(called, EVERYDAY)[0].text == "a fox"


def test_unrelated_prompts_do_not_name_the_class() -> None:
    assert not [one for one in prompts(SUBJECT, pocket_contexts(), "unrelated", 40) if "robot" in one]


@pytest.mark.parametrize(
    ("captions", "trigger", "first"),
    [
        (("a fox, zwx style", "a red house, zwx style"), "zwx style", "a lighthouse on a cliff, zwx style"),
        (("a fox in zwx style", "a dog in zwx style"), "zwx style", "a lighthouse on a cliff in zwx style"),
        (("zwx, a fox", "zwx, a dog"), "zwx", "zwx, a lighthouse on a cliff"),
        ((), "zwx style", "a lighthouse on a cliff, zwx style"),
        (("a fox", "a dog"), "", "a lighthouse on a cliff"),
    ],
)
def test_a_styles_trigger_stands_in_new_contexts_as_in_its_captions(captions, trigger, first) -> None:
    assert prompts(Taught(trigger, "", captions), EVERYDAY, "new_contexts")[0] == first


@pytest.mark.parametrize(
    ("captions", "called", "alone"),
    [
        (("photo of ohwx woman", "ohwx woman smiling"), "ohwx woman on a", "a woman on a"),
        (("a photo of an ohwx woman",), "an ohwx woman on a", "a woman on a"),
        ((), "a ohwx woman on a", "a woman on a"),
    ],
)
def test_a_subject_has_the_article_of_its_captions(captions, called, alone) -> None:
    taught = Taught("ohwx woman", "woman", captions)
    assert prompts(taught, EVERYDAY, "new_contexts")[0].startswith(called)
    assert prompts(taught, EVERYDAY, "class_alone")[0].startswith(alone)


def test_without_class_words_a_subject_has_no_class_to_ask_for() -> None:
    taught = Taught("zwx", "", ("a photo of zwx", "a zwx on a beach"))
    assert taught.is_subject and not prompts(taught, EVERYDAY, "class_alone")


def test_what_a_base_is_asked_is_what_its_tokenizer_has_words_for() -> None:
    from transformers import CLIPTokenizer

    assert contexts_for(CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")) == pocket_contexts()

    class English:
        def __call__(self, text, **_):
            return {"input_ids": [1]}

    assert contexts_for(English()) == EVERYDAY


def test_our_own_contexts_are_whole_and_each_stands_once() -> None:
    assert all(one.count("{}") == 1 for one in EVERYDAY.subject)
    for listed in (EVERYDAY.subject, EVERYDAY.style, EVERYDAY.unrelated):
        assert len(set(listed)) == len(listed) == 24


def test_a_file_of_prompts_takes_the_place_of_its_groups_or_adds_to_them() -> None:
    built = questions_for(SUBJECT, pocket_contexts(), count=2)
    asked = with_prompts(built, "# mine\na vkq robot dancing\n\n+ a robot dancing\n+a pink cat\n", SUBJECT)
    told = {group: [asked[number].prompt for number in n] for group, n in in_groups(asked).items()}
    assert told["new_contexts"] == ["a vkq robot dancing"]
    assert told["class_alone"][-1] == "a robot dancing" and len(told["class_alone"]) == 3
    assert told["unrelated"][-1] == "a pink cat" and len(told["like_training"]) == 2
    assert asked[in_groups(asked)["new_contexts"][0]].text == "a robot dancing"


def test_captions_are_drawn_at_the_sizes_of_their_training_images_and_other_prompts_as_squares() -> None:
    sizes = {"a vkq robot": ((32, 96), (96, 32)), "a vkq robot on a hill": ((64, 64),)}
    taught = Taught("vkq robot", "robot", tuple(sizes), sizes)
    asked = questions_for(taught, pocket_contexts(), count=3)
    drawn = [(one.prompt, one.size) for one in asked]
    assert drawn[:3] == [
        *[("a vkq robot", size) for size in sizes["a vkq robot"]],
        ("a vkq robot on a hill", (64, 64)),
    ]
    assert not any(size for _, size in drawn[3:])
    own = with_prompts(asked, "a vkq robot\na vkq robot dancing", taught)
    assert [one.size for one in own if one.prompt.startswith("a vkq robot")][:2] == [(32, 96), None]
    halved = at_other_side(asked, 0.5, 16)
    assert [one.size for one in halved[:3]] == [(16, 48), (48, 16), (32, 32)]
    assert [one.size for one in at_other_side(asked, 1.0, 8)] == [one.size for one in asked]


@pytest.mark.parametrize("text", ["", "# nothing\n", "x" * 3000, "\n".join(f"a{n}" for n in range(500))])
def test_a_file_of_prompts_that_cannot_be_used_is_one_sentence(text) -> None:
    with pytest.raises(StudioError, match="prompt"):
        with_prompts((), text, SUBJECT, name=Path("my.txt").name)
