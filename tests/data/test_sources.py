"""Several folders, each with its own role, repeats, weight and trigger."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from data_config import data_config
from PIL import Image

from lora_studio.data.buckets import assign
from lora_studio.data.captions import read_captions
from lora_studio.data.sources import Source, read_sources
from lora_studio.errors import DatasetError


@pytest.fixture
def fill(tmp_path):
    """`fill("style", red=2)`: a folder with two red images, each captioned with its colour."""

    def make(name: str, **colours: int) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for colour, count in colours.items():
            for number in range(count):
                Image.new("RGB", (40 + number, 30), colour).save(folder / f"{colour}{number}.png")
                (folder / f"{colour}{number}.txt").write_text(colour)
        return folder

    return make


def test_one_source_is_read_as_the_folder_alone(fill):
    manifest = read_sources([Source(fill("style", red=2))], read_captions)
    assert [record.name for record in manifest.used] == ["red0.png", "red1.png"]


def test_every_source_gives_its_images_its_own_rules(fill):
    sources = [
        Source(fill("a/style", red=2), repeats=3, weight=0.5, trigger="zwx style"),
        Source(fill("b/style", blue=1), trigger="vkq robot", class_words="robot"),
        Source(fill("faces", green=1), role="prior", repeats=2),
        Source(fill("test", black=2), role="validation"),
    ]
    manifest = read_sources(sources, read_captions)
    facts = {record.name: (record.role, record.repeats, record.weight) for record in manifest.records}
    assert facts == {
        "style/red0.png": ("instance", 3, 0.5),
        "style/red1.png": ("instance", 3, 0.5),
        "style (2)/blue0.png": ("instance", 1, 1.0),
        "faces/green0.png": ("prior", 2, 1.0),
        "test/black0.png": ("validation", 1, 1.0),
        "test/black1.png": ("validation", 1, 1.0),
    }
    assert [record.trigger for record in manifest.used] == ["zwx style", "zwx style", "vkq robot"]
    assert [record.class_words for record in manifest.used] == ["", "", "robot"]


def test_only_instance_images_are_used_and_the_others_are_kept_by_role(fill):
    sources = [Source(fill("a", red=2)), Source(fill("b", blue=3), role="prior")]
    manifest = assign(read_sources(sources, read_captions), data_config(resolution=64), stride=8)
    assert [record.caption for record in manifest.used] == ["red", "red"]
    assert manifest.used == manifest.of_role("instance")
    assert [record.caption for record in manifest.of_role("prior")] == ["blue"] * 3
    assert manifest.of_role("validation") == ()
    assert all(record.bucket for record in manifest.records)
    roles = [json.loads(line)["role"] for line in manifest.to_jsonl().splitlines()]
    assert roles == ["instance"] * 2 + ["prior"] * 3


def test_what_is_held_out_is_not_trained_on_even_if_it_lies_in_both(fill):
    sources = [Source(fill("a", red=2)), Source(fill("b", red=1), role="validation")]
    manifest = read_sources(sources, read_captions)
    assert [record.name for record in manifest.used] == ["a/red1.png"]
    assert [record.name for record in manifest.of_role("validation")] == ["b/red0.png"]
    (left_out,) = manifest.excluded
    assert (left_out.name, left_out.excluded) == (
        "a/red0.png",
        "the same bytes as b/red0.png, a validation image",
    )


def test_of_equal_files_in_two_sources_the_first_is_kept_and_instance_before_prior(fill):
    sources = [
        Source(fill("prior", red=1), role="prior"),
        Source(fill("a", red=1)),
        Source(fill("b", red=2)),
    ]
    manifest = read_sources(sources, read_captions)
    assert [record.name for record in manifest.used] == ["a/red0.png", "b/red1.png"]
    assert {record.excluded for record in manifest.excluded} == {"the same bytes as a/red0.png"}


def test_a_manifest_can_be_sent_to_another_process(fill):
    manifest = read_sources([Source(fill("a", red=2))], read_captions)
    assert pickle.loads(pickle.dumps(manifest)) == manifest


def test_nothing_left_to_train_on_is_refused(fill):
    sources = [Source(fill("a", red=1)), Source(fill("b", red=1), role="validation")]
    with pytest.raises(DatasetError, match="also in a source with the role validation"):
        read_sources(sources, read_captions)


def test_the_faults_of_all_sources_are_said_at_once(fill, tmp_path):
    missing = fill("no captions", red=1)
    (missing / "red0.txt").unlink()
    sources = [Source(tmp_path / "nowhere"), Source(fill("a", blue=1)), Source(missing)]
    with pytest.raises(DatasetError) as caught:
        read_sources(sources, read_captions)
    first, second = str(caught.value).split("\n")
    assert "nowhere does not exist" in first and "red0.png" in second


def test_each_source_has_its_own_instance_prompt(fill):
    sources = [
        Source(fill(name, **{colour: 1}), instance_prompt=name)
        for name, colour in (("a", "red"), ("b", "blue"))
    ]
    for source in sources:
        for caption in source.folder.glob("*.txt"):
            caption.unlink()
    assert [record.caption for record in read_sources(sources, read_captions).used] == ["a", "b"]
