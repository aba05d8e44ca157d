"""Images that the base draws for captions without their trigger, kept by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.data.cache.encode import pixels_of
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.manifest import Bucket, Record
from lora_studio.data.regularization_images import (
    DRAWN,
    ImageRequest,
    RegularizationImages,
    image_requests,
)
from lora_studio.errors import DatasetError
from lora_studio.recipe.data import DataConfig, RegularizationImagesConfig

SQUARE, WIDE = Bucket(64, 64), Bucket(80, 48)
CONFIG = RegularizationImagesConfig(steps=20, guidance=7.5, seed=0)


def captioned(caption: str, bucket: Bucket = SQUARE) -> Record:
    return Record(
        path="/a.png", name="a.png", caption=caption, trigger="vkq robot", class_words="robot", bucket=bucket
    )


def shown(records: Sequence[Record]) -> ShownCaptions:
    return ShownCaptions(records, DataConfig(images=Path("images"), caption_dropout=0), seed=0)


RECORDS = [
    captioned("a vkq robot at night"),
    captioned("a vkq robot in the snow", WIDE),
    captioned("a tree"),
]


class Painter:
    """Stands for the base: paints each request in a colour of its own, and counts."""

    def __init__(self, *, stop_after: int | None = None) -> None:
        self.calls: list[int] = []
        self.stop_after = stop_after

    def __call__(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        if self.stop_after is not None and len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(len(requests))
        return [self.paint(request) for request in requests]

    @staticmethod
    def paint(request: ImageRequest) -> Image.Image:
        colour = tuple(hashlib.sha256(repr(request).encode()).digest()[:3])
        return Image.new("RGB", (request.bucket.width, request.bucket.height), colour)


def test_prompts_are_the_captions_without_the_trigger_in_the_images_own_sizes() -> None:
    requests = image_requests(shown(RECORDS), count=5)
    assert [(request.prompt, request.bucket, request.number) for request in requests] == [
        ("a robot at night", SQUARE, 0),
        ("a robot in the snow", WIDE, 0),
        ("a robot at night", SQUARE, 1),
        ("a robot in the snow", WIDE, 1),
        ("a robot at night", SQUARE, 2),
    ]


def test_lines_without_the_trigger_are_passed_over_and_more_images_change_no_prompt() -> None:
    lines = ("a vkq robot at night", "a tree", "a vkq robot in the snow")
    captions = shown([replace(captioned(" ".join(lines)), lines=lines), captioned("a vkq robot")])
    requests = image_requests(captions, count=40)
    assert {request.prompt for request in requests} == {"a robot at night", "a robot in the snow", "a robot"}
    assert image_requests(captions, count=9) == requests[:9]


def test_a_prompt_of_ones_own_is_drawn_in_all_the_sizes() -> None:
    requests = image_requests(shown(RECORDS), count=4, prompt="a robot")
    assert [(request.prompt, request.bucket.name, request.number) for request in requests] == [
        *(("a robot", "64x64", 0), ("a robot", "80x48", 0), ("a robot", "64x64", 1), ("a robot", "64x64", 2))
    ]


@pytest.mark.parametrize(
    ("caption", "class_words", "message"),
    [
        ("a tree", "robot", r"no caption holds data\.trigger"),
        ("vkq robot", "", r"nothing is left of the caption of a\.png.*set data\.class_words"),
        ("a photo of vkq robot", "", r'"a photo of vkq robot" names nothing .*set data\.class_words'),
    ],
)
def test_captions_that_give_no_prompt_are_refused(caption: str, class_words: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message + r".*set data\.regularization_images\.prompt"):
        image_requests(shown([replace(captioned(caption), class_words=class_words)]), count=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "regularization_images"


def images_in(folder: Path) -> RegularizationImages:
    return RegularizationImages(folder, "base", CONFIG)


def test_drawn_images_are_records_that_can_be_encoded(folder: Path) -> None:
    requests = image_requests(shown(RECORDS), count=5)
    config = CONFIG.model_copy(update={"weight": 0.5})
    records = RegularizationImages(folder, "base", config).load_or_draw(requests, Painter())
    for request, record in zip(requests, records, strict=True):
        assert (record.caption, record.bucket) == (request.prompt, request.bucket)
        assert (record.role, record.weight, record.captioned_by) == ("prior", 0.5, DRAWN)
        painted = Painter.paint(request).getpixel((0, 0))
        assert ((pixels_of(record)[:, 0, 0] + 1) * 127.5).round().tolist() == list(painted)  # type: ignore[arg-type]
    assert len({record.sha256 for record in records}) == 5


def test_beside_each_lies_what_was_asked_for(folder: Path) -> None:
    (record, *_) = images_in(folder).load_or_draw(image_requests(shown(RECORDS), count=2), Painter())
    facts = json.loads(Path(record.path).with_suffix(".json").read_text("utf-8"))
    assert facts == {
        **{"prompt": "a robot at night", "width": 64, "height": 64, "number": 0},
        **{"steps": 20, "guidance": 7.5, "seed": 0, "base": "base", "sha256": record.sha256},
    }
    assert len(list(folder.iterdir())) == 4


def test_a_second_time_nothing_is_drawn_and_more_draws_only_the_rest(folder: Path) -> None:
    first = images_in(folder).load_or_draw(image_requests(shown(RECORDS), count=5), Painter())
    again, painter = images_in(folder), Painter()
    assert again.load_or_draw(image_requests(shown(RECORDS), count=5), painter) == first
    assert (again.drawn, painter.calls) == (0, [])
    more = images_in(folder)
    assert more.load_or_draw(image_requests(shown(RECORDS), count=7), Painter())[:5] == first
    assert more.drawn == 2


def test_what_an_image_depends_on_is_in_its_name() -> None:
    request = ImageRequest("a robot", SQUARE, 0)
    names = {
        RegularizationImages(Path(), base, config).key(asked)
        for base, config, asked in [
            ("base", CONFIG, request),
            ("another base", CONFIG, request),
            ("base", CONFIG.model_copy(update={"steps": 21}), request),
            ("base", CONFIG.model_copy(update={"guidance": 4.0}), request),
            ("base", CONFIG.model_copy(update={"seed": 1}), request),
            ("base", CONFIG, replace(request, prompt="a dog")),
            ("base", CONFIG, replace(request, bucket=WIDE)),
            ("base", CONFIG, replace(request, number=1)),
        ]
    }
    assert len(names) == 8


def test_an_edited_caption_draws_its_own_images_again_and_no_others(folder: Path) -> None:
    images_in(folder).load_or_draw(image_requests(shown(RECORDS), count=10), Painter())
    edited = [captioned("a vkq robot by day"), *RECORDS[1:]]
    images = images_in(folder)
    images.load_or_draw(image_requests(shown(edited), count=10), Painter())
    assert images.drawn == 5


def test_after_a_stop_it_goes_on_to_the_same_images(folder: Path, tmp_path: Path) -> None:
    requests = image_requests(shown(RECORDS), count=30)
    whole = images_in(tmp_path / "whole").load_or_draw(requests, Painter())
    with pytest.raises(KeyboardInterrupt):
        images_in(folder).load_or_draw(requests, Painter(stop_after=2))
    kept = len(list(folder.glob("*.png")))
    images, calls = images_in(folder), []
    resumed = images.load_or_draw(requests, Painter(), on_progress=lambda *call: calls.append(call))
    assert kept == 8 and images.drawn == 22
    assert calls == [(done, 22) for done in range(1, 23)]
    assert [record.sha256 for record in resumed] == [record.sha256 for record in whole]


def test_as_many_of_a_size_are_always_drawn_together(folder: Path) -> None:
    painter = Painter()
    images_in(folder).load_or_draw(image_requests(shown(RECORDS), count=11), painter)
    large = ImageRequest("a robot", Bucket(1024, 1024), 0)
    medium = [ImageRequest("a robot", Bucket(512, 512), number) for number in range(5)]
    images_in(folder).load_or_draw([large, *medium], painter)
    assert painter.calls == [4, 4, 4, 4, 1, 4, 4]  # six and five small ones, a large one, five between


@pytest.mark.parametrize("ending", ["png", "json"])
def test_a_damaged_or_missing_file_is_drawn_again(folder: Path, ending: str) -> None:
    requests = image_requests(shown(RECORDS), count=4)
    first = images_in(folder).load_or_draw(requests, Painter())
    damaged = sorted(folder.glob(f"*.{ending}"))
    damaged[0].write_bytes(damaged[0].read_bytes()[:-5])
    damaged[1].unlink()
    images = images_in(folder)
    assert images.load_or_draw(requests, Painter()) == first
    assert images.drawn == 2


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"cache folder .*file cannot be written to \(.*\); free space"):
        images_in(tmp_path / "file").load_or_draw(image_requests(shown(RECORDS), count=1), Painter())
