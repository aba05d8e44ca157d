from __future__ import annotations

import random
from collections import Counter

from data_config import data_config

from lora_studio.data.captions.wording import Wording, split_tags, vary

NOTHING, AS_IT_IS = Wording(), data_config()


def many(lines, variation=AS_IT_IS, wording=NOTHING, count=2000):
    """How often each variant comes."""
    if isinstance(lines, str):
        lines = (lines,)
    return Counter(vary(lines, variation, wording, random.Random(number)) for number in range(count))


def test_without_wishes_a_caption_stays_as_it_is():
    text = "a  ball,red ,{x|y}, zwx style."
    assert many(text) == {text: 2000}


def test_each_line_comes_equally_often():
    shares = many(("one", "two", "three", "four"))
    assert shares.keys() == {"one", "two", "three", "four"}
    assert all(abs(count - 500) < 100 for count in shares.values())  # 5 standard deviations


def test_all_orders_come_behind_the_kept_tags():
    shares = many("k1, k2, a, b, c", data_config(shuffle_tags=True, keep_tags=2), count=6000)
    assert len(shares) == 6 and all(text.startswith("k1, k2, ") for text in shares)
    assert all(abs(count - 1000) < 150 for count in shares.values())
    assert {"".join(sorted(text)) for text in shares} == {"".join(sorted("k1, k2, a, b, c"))}


def test_more_kept_tags_than_there_are_change_nothing():
    assert many("b, a", data_config(shuffle_tags=True, tag_dropout=0.5, keep_tags=2)) == {"b, a": 2000}


def test_each_tag_is_left_out_at_the_share_asked_for_but_not_kept_ones_and_the_trigger():
    shares = many(
        "k, a, in zwx style, b", data_config(tag_dropout=0.25, keep_tags=1), Wording(trigger="zwx style")
    )
    tags = Counter(tag for text, count in shares.items() for tag in text.split(", ") for _ in range(count))
    assert tags["k"] == tags["in zwx style"] == 2000
    assert all(abs(tags[tag] - 1500) < 100 for tag in "ab")
    assert shares["k, in zwx style"] > 60  # 1/16: each tag for itself


def test_a_trigger_with_commas_is_one_tag():
    wording = Wording(trigger="zwx,style")
    shares = many("a, zwx,style, b", data_config(shuffle_tags=True), wording)
    assert len(shares) == 6 and all("zwx,style" in text for text in shares)
    assert split_tags("a,, zwx,style ,b ,", "zwx,style") == ["a", "zwx,style", "b"]


def test_wildcards_choose_one_of_their_words_also_within_each_other():
    shares = many("a {red|{dark|light} blue|} ball", data_config(wildcards=True), count=3000)
    assert shares.keys() == {"a red ball", "a dark blue ball", "a light blue ball", "a ball"}
    assert abs(shares["a red ball"] - 1000) < 130
    assert abs(shares["a dark blue ball"] - 500) < 100


def test_an_empty_choice_takes_its_comma_along():
    assert many("a, {b|}, c", data_config(wildcards=True)).keys() == {"a, b, c", "a, c"}


def test_braces_without_a_choice_and_wildcards_that_are_off_stay():
    assert many("a {red} {} ball }{|", data_config(wildcards=True)) == {"a {red} {} ball }{|": 2000}
    assert many("a {red|blue} ball") == {"a {red|blue} ball": 2000}


def test_commas_within_a_wildcard_are_none_of_tags():
    shares = many("{a, b|c}, d", data_config(wildcards=True, shuffle_tags=True))
    assert shares.keys() == {"a, b, d", "a, d, b", "b, a, d", "b, d, a", "d, a, b", "d, b, a", "c, d", "d, c"}


def test_prefix_and_suffix_stay_in_place_and_are_filled():
    wording = Wording("zwx", "robot", prefix="{a photo|art} of {trigger},", suffix=", {class}.")
    shares = many("x, y", data_config(shuffle_tags=True, wildcards=True), wording)
    ends = {"x, y, robot.", "y, x, robot."}
    assert shares.keys() == {f"{start} of zwx, {end}" for start in ("a photo", "art") for end in ends}
