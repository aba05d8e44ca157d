"""The verb `assess`: bases beside each other on a recipe's images, into a page and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import image_folder, recipe_text

from lora_studio.errors import RecipeError
from lora_studio.tools.assess import AssessmentRequest, assess

FAST = ("samples.steps=2", "samples.guidance=1", "machine.device=cpu")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("assess")
    images = image_folder(folder / "images")
    (folder / "tiny.toml").write_text(recipe_text(images, str(tiny_base)), "utf-8")
    return folder / "tiny.toml"


def test_bases_are_measured_on_the_same_images_and_nothing_of_the_recipe_is_written(
    tmp_path: Path, recipe: Path, tiny_base: Path, base_of: Callable[[str], Path]
) -> None:
    bases = (str(tiny_base), str(base_of("sd2")))
    request = AssessmentRequest(bases, FAST, count=3, encoder="pocket", device="cpu", folder=tmp_path / "out")
    found = assess(recipe, request)
    told = json.loads((tmp_path / "out" / "assessment.json").read_text("utf-8"))
    assert told == json.loads(json.dumps(found.to_json()))
    assert [one["base"] for one in told["bases"]] == [Path(one).name for one in bases]
    names = [sorted(image["name"] for image in one["images"]) for one in told["bases"]]
    assert names[0] == names[1] and len(names[0]) == 3
    assert told["facts"]["encoder"] == "pocket" and len(told["facts"]["encoder_sha256"]) == 64
    assert str(tiny_base.parent) not in json.dumps(told["bases"])
    page = (tmp_path / "out" / "assessment.html").read_text("utf-8")
    assert "tiny" in page and "data:image/jpeg" in page
    again = assess(recipe, request)
    assert again.to_json() == found.to_json()  # and the page of before is replaced


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (AssessmentRequest(count=1), "--count is 1"),
        (AssessmentRequest(device="cuda:9"), "--device is 'cuda:9'"),
        (AssessmentRequest(encoder="clipp"), "clip"),
    ],
)
def test_what_cannot_be_is_one_sentence(recipe: Path, request_: AssessmentRequest, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        assess(recipe, request_)
