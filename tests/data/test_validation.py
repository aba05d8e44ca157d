"""Which images are validation images."""

from __future__ import annotations

import pytest

from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.sources import choose_validation_images
from lora_studio.errors import DatasetError
from lora_studio.recipe.training import ValidationConfig


def manifest(count: int, *, trigger: str = "zwx", more: tuple[Record, ...] = ()) -> Manifest:
    names = [f"{number:02}.png" for number in range(count)]
    records = [Record(f"/p/{name}", name, sha256=f"{trigger}{name}", trigger=trigger) for name in names]
    return Manifest((*records, *more))


def held(found: Manifest) -> list[str]:
    return [record.name for record in found.of_role("validation")]


@pytest.mark.parametrize(
    ("config", "images", "given", "taken"),
    [
        (ValidationConfig(), 11, 0, 0),
        (ValidationConfig(), 12, 0, 2),
        (ValidationConfig(), 28, 0, 3),
        (ValidationConfig(), 5000, 0, 12),
        (ValidationConfig(), 28, 4, 0),
        (ValidationConfig(count=0), 28, 0, 0),
        (ValidationConfig(count=3), 28, 0, 3),
        (ValidationConfig(count=3), 28, 2, 1),
        (ValidationConfig(count=3), 28, 5, 0),
        (ValidationConfig(fraction=0.25), 8, 0, 2),
        (ValidationConfig(fraction=0.25), 6, 2, 0),
        (ValidationConfig(fraction=0.0), 28, 0, 0),
    ],
)
def test_how_many_images_are_held_out(config: ValidationConfig, images: int, given: int, taken: int) -> None:
    assert config.to_take(images, given=given) == taken


def test_zero_turns_the_measurement_off() -> None:
    assert ValidationConfig(count=0).off and ValidationConfig(fraction=0.0).off and not ValidationConfig().off


def test_held_out_images_are_not_trained_on_and_all_others_are() -> None:
    whole, found = manifest(9), choose_validation_images(manifest(9), 3)
    assert len(held(found)) == 3
    assert sorted([*held(found), *(record.name for record in found.used)]) == [
        record.name for record in whole.used
    ]
    assert choose_validation_images(whole, 0) == whole


def test_one_more_image_leaves_the_choice_nearly_as_it_was() -> None:
    before, after = (set(held(choose_validation_images(manifest(count), 4))) for count in (20, 21))
    assert len(before & after) >= 3


def test_the_last_image_of_a_trigger_is_trained_on() -> None:
    alone = Record("/q/a.png", "a.png", sha256="a", trigger="vkq")
    for count in range(1, 6):
        assert alone in choose_validation_images(manifest(6, more=(alone,)), count).used


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(
        DatasetError, match=r"validation\.count asks for 6 of 6 images.*validation\.count to 5 or less"
    ):
        choose_validation_images(manifest(6), 6)


def test_images_of_other_roles_and_excluded_ones_are_left_alone() -> None:
    others = (
        Record("/q/a.png", "a.png", sha256="a", role="prior"),
        Record("/q/b.png", "b.png", sha256="b", excluded="too small"),
    )
    assert choose_validation_images(manifest(6, more=others), 5).records[-2:] == others
