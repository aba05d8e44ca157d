"""A resume with other images, captions or base weights under the same names is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from tiny import recipe_text

from lora_studio.errors import RecipeError
from lora_studio.metadata.provenance import read_manifest
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.finish import Finished
from lora_studio.training.finish.export import ExportRequest, export_run
from lora_studio.training.planning import plan
from lora_studio.training.session import train

Home = tuple[Recipe, Path]  # a recipe of a folder of its own, and its run, which is at step 2


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, images: Path) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(tiny_base, folder / "base")
    shutil.copytree(images, folder / "style")
    (folder / "tiny.toml").write_text(recipe_text(Path("style"), "base", steps=2), "utf-8")
    assert isinstance(train(load_recipe(folder / "tiny.toml"), folder / "run"), Finished)
    return folder


@pytest.fixture
def home(begun: Path, tmp_path: Path) -> Home:
    folder = shutil.copytree(begun, tmp_path / "home")
    return load_recipe(folder / "tiny.toml"), folder / "run"


def images_of(home: Home) -> list[Path]:
    assert home[0].data.images is not None
    return sorted(home[0].data.images.glob("*.png"))


def another_caption(home: Home) -> None:
    images_of(home)[0].with_suffix(".txt").write_text("another, zwx style", "utf-8")


def another_image(home: Home) -> None:
    first, second = images_of(home)[:2]
    first.write_bytes(second.read_bytes())


def one_less(home: Home) -> None:
    images_of(home)[0].unlink()


def one_more(home: Home) -> None:
    first = images_of(home)[0]
    shutil.copy(first.with_suffix(".txt"), first.with_name("more.txt"))
    with Image.open(first) as image:
        ImageOps.mirror(image).save(first.with_name("more.png"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_caption, "1 are others, or have other captions, masks or crops: "),
        (another_image, "1 are others"),
        (one_less, "1 are gone: "),
        (one_more, "1 are new: more.png"),
    ],
)
def test_other_images_are_refused_by_name_and_the_manifest_stays(
    home: Home, change: Callable[[Home], None], said: str
) -> None:
    recipe, run = home
    before = (run / "manifest.jsonl").read_bytes()
    name = images_of(home)[0].name
    change(home)
    with pytest.raises(RecipeError, match="was started with other images") as caught:
        train(recipe, run, resume=True)
    assert said in str(caught.value) and (name in str(caught.value) or change is one_more)
    assert (run / "manifest.jsonl").read_bytes() == before


def test_a_plan_of_other_images_is_made_all_the_same(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, run = home
    one_less(home)
    (run.parent / "runs").mkdir()
    run.rename(run.parent / "runs" / recipe.name)  # where a plan looks
    monkeypatch.chdir(run.parent)
    assert plan(recipe).training.data["images_used"] == 4  # of five


def test_a_name_with_a_line_break_of_unicode_is_in_one_line_of_the_manifest(home: Home) -> None:
    recipe, run = home
    shutil.rmtree(run)
    first = images_of(home)[0]
    for path in (first, first.with_suffix(".txt")):
        path.rename(path.with_stem("a\u2028fox"))
    assert isinstance(train(recipe, run), Finished)
    assert [one.name for one in read_manifest(run)] == [
        row["name"] for row in Run(run).lines("manifest.jsonl")
    ]
    assert isinstance(train(recipe, run, resume=True), Finished)


def test_what_is_not_learned_may_change(home: Home) -> None:
    (images_of(home)[0].with_name("notes.md")).write_text("to do", "utf-8")
    assert isinstance(train(*home, resume=True), Finished)


def test_other_weights_under_the_bases_name_are_refused(home: Home) -> None:
    recipe, run = home
    train(recipe, run, resume=True)  # after which the run's own recipe, too, names the base that is here
    (file,) = (Path(recipe.base.model) / "unet").glob("*.safetensors")
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("attn2.to_q.weight"))
    tensors[name] = tensors[name] + torch.ones(())
    save_file(tensors, file, metadata={"format": "pt"})
    for again in (
        lambda: train(recipe, run, resume=True),
        lambda: export_run(run, ExportRequest(("kohya",))),
    ):
        with pytest.raises(RecipeError, match=r"when base\.model held other weights"):
            again()
