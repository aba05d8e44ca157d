from __future__ import annotations

import pytest

from lora_studio.data.captioners import words_of_name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("red_fox-in-snow (2).jpg", "red fox in snow"),
        ("01_orange_ball.png", "orange ball"),
        ("3_foxes.png", "3 foxes"),
        ("cat.v2.png", "cat v2"),
        ("猫.png", "猫"),
        ("a cat - copy.png", "a cat"),
        ("IMG_1234_sunset.jpg", "sunset"),
        ("photo of a dog.png", "photo of a dog"),
    ],
)
def test_the_words_of_a_name_are_the_caption(name: str, words: str) -> None:
    assert words_of_name(name).text == words


@pytest.mark.parametrize(
    "name",
    [
        "IMG_2034.jpg",
        "DSC01234.JPG",
        "00012.png",
        "PXL_20240101_120000.jpg",
        "Screenshot 2024-01-01 at 10.00.00.png",
        "d41d8cd98f00b204e9800998ecf8427e.png",
        "image.png",
        "---.png",
    ],
)
def test_names_that_a_machine_gave_say_nothing(name: str) -> None:
    assert words_of_name(name).text == "" and "does not say" in words_of_name(name).fault
