"""A file and the images it came from: a yes that means it, and a no that says what differs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from console import run
from PIL import Image
from safetensors.torch import save_file
from tiny import image_folder

from lora_studio.data.manifest import Manifest, Record
from lora_studio.errors import StudioError
from lora_studio.lora_file.write import write_lora
from lora_studio.metadata import PREFIX
from lora_studio.metadata.provenance import check_provenance, provenance_keys, recipe_hash, root_of, tree_hash
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import recipe_from
from lora_studio.tensor_file.header import tensor_hash
from lora_studio.training.prepare.dataset import read_dataset
from lora_studio.training.session import to_toml

# The inputs and tree heads that Certificate Transparency's own tests have for RFC 6962.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
HEADS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


@pytest.mark.parametrize("count", HEADS)
def test_trees_are_those_of_rfc_6962(count: int) -> None:
    assert tree_hash([bytes.fromhex(one) for one in INPUTS[:count]]).hex() == HEADS[count]


def test_a_root_is_the_same_in_any_order_and_another_for_other_things() -> None:
    one, two, three = (hashlib.sha256(bytes([n])).hexdigest() for n in range(3))
    assert root_of("picture", [(one,), (two,), (three,)]) == root_of("picture", [(three,), (one,), (two,)])
    assert (
        len({root_of("picture", [(one,)]), root_of("mask", [(one,)]), root_of("picture", [(one,), (one,)])})
        == 3
    )
    leaf = hashlib.sha256(b"\0picture\0" + bytes.fromhex(one)).hexdigest()
    assert root_of("picture", [(one,)]) == leaf


Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A file and its run's folder, of images in tmp_path/images, as training leaves them."""
    image_folder(tmp_path / "pictures", count=4)

    def make(**data: object) -> Path:
        recipe = recipe_of(tmp_path, **data)
        manifest = read_dataset(recipe, 8)
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "manifest.jsonl").write_text(manifest.to_jsonl(), "utf-8")
        (folder / "recipe.toml").write_text(to_toml(recipe), "utf-8")
        block = provenance_keys(manifest, recipe, base="ab")
        path = folder / "a.safetensors"
        write_lora(
            path,
            {"a": torch.randn(4)},
            dtype="float32",
            describe=lambda content: block | {"sshs_model_hash": tensor_hash([content])},
        )
        return path

    return make


def recipe_of(folder: Path, **data: object) -> Recipe:
    values = {
        "name": "a",
        "base": {"model": str(folder / "base")},
        "data": {"images": "pictures", "resolution": 64} | data,
        "validation": {"count": 1},
    }
    if "sources" in data:
        del values["data"]["images"]  # type: ignore[attr-defined]
    return recipe_from(values, folder=folder)


def test_run_and_folder_prove_it_whatever_files_are_called(made: Made, tmp_path: Path) -> None:
    path = made()
    assert check_provenance(path, [path.parent]).proven
    moved = shutil.move(path, tmp_path / "elsewhere.safetensors")
    for number, one in enumerate(sorted((tmp_path / "pictures").iterdir())):
        one.rename(one.with_name(f"{9 - number // 2}_renamed{one.suffix}"))
    origin = check_provenance(moved, [tmp_path / "pictures"])
    assert origin.proven and "4 images with captions" in origin.same


def recoloured(folder: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(folder / "00.png")


CHANGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "caption": (
        lambda f: (f / "01.txt").write_text("another", "utf-8"),
        "captions in * are others: 1 of 4, 01.jpg",
        "captions in * are others",
    ),
    "image": (
        recoloured,
        "1 changed (00.png)",
        "made from 4, and here are 4: as many, so at least one was changed",
    ),
    "missing": (
        lambda f: [one.unlink() for one in f.glob("02.*")],
        "1 missing (02.webp)",
        "made from 4, and here are 3: at least 1 missing",
    ),
    "added": (
        lambda f: (
            Image.new("RGB", (64, 64), "blue").save(f / "new.png"),
            (f / "new.txt").write_text("b", "utf-8"),
        ),
        "1 added (new.png)",
        "made from 4, and here are 5: at least 1 more",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_folder_that_changed_is_told_in_detail_if_the_run_is_there(
    kind: str, made: Made, tmp_path: Path
) -> None:
    change, with_run, without = CHANGES[kind]
    path, folder = made(), tmp_path / "pictures"
    change(folder)
    origin = check_provenance(path, [folder])
    assert not origin.proven and with_run.replace("*", str(folder)) in " ".join(origin.differs)
    (path.parent / "manifest.jsonl").unlink()
    alone = check_provenance(path, [folder])
    assert not alone.proven and without.replace("*", str(folder)) in " ".join(alone.differs)


def test_another_run_differs_in_its_images_and_options(made: Made, tmp_path: Path) -> None:
    path = made()
    other = recipe_of(tmp_path, resolution=72)
    (path.parent / "recipe.toml").write_text(to_toml(other), "utf-8")
    lines = (path.parent / "manifest.jsonl").read_text("utf-8").splitlines(keepends=True)
    (path.parent / "manifest.jsonl").write_text("".join(lines[1:]), "utf-8")
    differs = " ".join(check_provenance(path, [path.parent]).differs)
    assert "made from 4, and here are 3" in differs and "options of" in differs


def test_changed_tensors_are_told(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    code, printed, _ = run(["verify", "--provenance", str(path), str(path.parent)], capsys)
    assert code == 1 and "NO, not made from these" in printed
    assert "differs: the tensors were changed after the file was written" in printed


def test_sources_regularization_images_masks_and_repeats_stay_provable(made: Made, tmp_path: Path) -> None:
    image_folder(tmp_path / "more" / "5_zwx", count=6)
    for one in list((tmp_path / "more" / "5_zwx").glob("0[0-3].*")):
        one.unlink()  # the same images as in the first folder
    Image.new("L", (64, 64), 255).save(tmp_path / "pictures" / "00.mask.png")
    classes = image_folder(tmp_path / "class", count=9, trigger="plain")
    for one in list(classes.glob("0[0-5].*")):
        one.unlink()
    prior = {"images": "class", "role": "prior"}
    path = made(sources=[{"images": "pictures"}, {"images": "more", "repeats": 2}, prior])
    assert check_provenance(path, [path.parent]).proven
    folders = [tmp_path / name for name in ("more", "class", "pictures")]
    origin = check_provenance(path, folders)
    assert origin.proven, origin.differs
    assert {"6 images with captions", "3 regularization images"} <= set(origin.same)
    assert check_provenance(path, [folders[0], folders[2]]).proven  # and it says what was not looked at
    (tmp_path / "pictures" / "00.mask.png").unlink()
    assert "masks beside the images" in check_provenance(path, folders).differs[0]


def test_captions_of_the_recipe_and_of_folders_are_the_recipes(made: Made, tmp_path: Path) -> None:
    for one in (tmp_path / "pictures").glob("*.txt"):
        one.unlink()
    path = made(instance_prompt="a zwx")
    assert check_provenance(path, [tmp_path / "pictures"]).proven


def test_the_recipes_hash_is_of_what_changes_learning(tmp_path: Path) -> None:
    first = recipe_of(tmp_path)
    same = [
        first.model_copy(update={"name": "b"}),
        recipe_of(tmp_path / "elsewhere"),
        recipe_of(tmp_path, resolution=64, latent_memory_gb=9),
    ]
    assert {recipe_hash(one) for one in same} == {recipe_hash(first)}
    others = [recipe_of(tmp_path, resolution=72), recipe_of(tmp_path, trigger="zwx")]
    others += [recipe_of(tmp_path, sources=[{"images": "a", "repeats": n}]) for n in (2, 3)]
    assert len({recipe_hash(one) for one in [first, *others]}) == 5


def test_held_out_and_left_out_images_count_as_said() -> None:
    image = Record(path="", name="a", sha256="ab" * 32)
    held = Record(path="", name="b", sha256="cd" * 32, role="validation")
    out = Record(path="", name="c", sha256="ef" * 32, excluded="too small")
    recipe = Recipe.model_validate({"name": "a", "base": {"model": "b"}, "data": {"images": "c"}})
    found = provenance_keys(Manifest((image, held, out)), recipe, base="ab")
    short = {key.rpartition(".")[2]: value for key, value in found.items()}
    assert (short["num_pictures"], short["num_held_out"], short["seed"]) == ("2", "1", "1")
    assert short["pictures"] == root_of("picture", [("cd" * 32,), ("ab" * 32,)])
    assert short["trained"] == root_of("trained picture", [("ab" * 32,)])


def test_a_run_that_held_out_another_image_is_told(made: Made) -> None:
    path = made()
    manifest = path.parent / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    assert sorted(row["role"] for row in rows) == ["instance", "instance", "instance", "validation"]
    roles = [row["role"] for row in rows]
    lines = [json.dumps(row | {"role": role}) for row, role in zip(rows, roles[1:] + roles[:1], strict=True)]
    manifest.write_text("\n".join(lines) + "\n", "utf-8")
    (fault,) = check_provenance(path, [path.parent]).differs
    assert fault == f"other images of {path.parent} are for validation and not trained on"


def test_mistakes_are_one_sentence(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made()
    write_lora(tmp_path / "plain.safetensors", {"a": torch.ones(1)}, dtype="float32", describe=lambda _: {})
    said = {f"{PREFIX}{one}": "x" for one in ("root", "pictures", "num_pictures")}
    save_file({"a": torch.ones(1)}, tmp_path / "odd.safetensors", metadata=said)
    for arguments, words in (
        ([tmp_path / "odd.safetensors", path.parent], "does not say what it was made from"),
        ([path, tmp_path / "nowhere"], "there is no folder"),
        ([path], "name one"),
        ([tmp_path / "plain.safetensors", path.parent], "does not say what it was made from"),
    ):
        code, _, err = run(["verify", "--provenance", *map(str, arguments)], capsys)
        assert code == 2 and words in err.replace("\n", " ") and err.startswith("error: ")
    assert run(["verify", str(path), str(path.parent)], capsys)[0] == 2
    (path.parent / "manifest.jsonl").write_text("{}\n", "utf-8")
    with pytest.raises(StudioError, match=r"manifest\.jsonl is not as the run wrote it"):
        check_provenance(path, [path.parent])


def test_the_answer_as_json(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    path = made()
    code, printed, _ = run(["verify", "--provenance", str(path), str(path.parent), "--json"], capsys)
    assert code == 0 and json.loads(printed)["proven"] is True
