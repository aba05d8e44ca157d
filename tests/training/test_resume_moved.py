"""A run goes on from its own folder, wherever that and what it was made from have moved: contents decide."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from earlier import without_digests
from safetensors.torch import load_file, save_file
from tiny import image_folder, recipe_text

from lora_studio.errors import CheckpointError, RecipeError
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.run_recipe import load_run_recipe, with_seal
from lora_studio.runs import Run
from lora_studio.training.events import Event, Note
from lora_studio.training.finish import Finished
from lora_studio.training.finish.export import ExportRequest, export_run
from lora_studio.training.session import to_toml, train

SET = ("training.steps=4", "training.seed=7")
FEW_LAYERS = '[[adapter.layers]]\npattern = "*"\ntrain = false\n'
FEW_LAYERS += '[[adapter.layers]]\npattern = "*mid_block*"\ntrain = true\n'


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Path]:
    """Base, images, masks and recipe, and a run of four steps with --set; the place where it ran is empty."""
    folder = tmp_path_factory.mktemp("project") / "old"
    for name in ("style", "masks"):
        image_folder(folder / name, count=3)
    for caption in (folder / "masks").glob("*.txt"):
        caption.unlink()
    shutil.copytree(tiny_base, folder / "base")
    text = recipe_text(Path("style"), "base", steps=9, extra=FEW_LAYERS)
    (folder / "r.toml").write_text(text.replace("[data]", '[data]\nmasks = "masks"'), "utf-8")
    assert isinstance(train(load_recipe(folder / "r.toml", changes=SET), folder / "run"), Finished)
    yield folder.rename(folder.with_name("aside"))


@pytest.fixture(scope="module")
def straight(begun: Path) -> bytes:
    return (begun / "run" / "tiny.safetensors").read_bytes()


@pytest.fixture
def finished(begun: Path, tmp_path: Path) -> Path:
    """The whole project somewhere else."""
    return shutil.copytree(begun, tmp_path / "new")


@pytest.fixture
def stopped(finished: Path) -> Path:
    """Likewise, as it was after step 2."""
    shutil.rmtree(finished / "run" / "checkpoints" / "step_000004")
    (finished / "run" / "tiny.safetensors").unlink()
    return finished


def resumed(project: Path) -> tuple[bytes, str]:
    """The file that a resume from the run's own folder ends with, and what it says."""
    heard: list[Event] = []
    result = train(project / "run", resume=True, on_event=heard.append)
    assert isinstance(result, Finished) and result.lora_file
    return result.lora_file.read_bytes(), "\n".join(one.text for one in heard if isinstance(one, Note))


def test_a_moved_run_goes_on_from_its_own_recipe(stopped: Path, straight: bytes) -> None:
    content, _ = resumed(stopped)
    assert content == straight
    recipe = load_run_recipe(stopped / "run")
    assert (recipe.training.steps, recipe.training.seed) == (4, 7)  # as --set had it
    assert recipe.data.images == stopped / "style" and recipe.base.model == str(stopped / "base")


def test_a_moved_run_goes_on_with_its_recipe_file_and_says_what_is_elsewhere(
    stopped: Path, straight: bytes
) -> None:
    heard: list[Event] = []
    train(load_recipe(stopped / "r.toml", changes=SET), stopped / "run", resume=True, on_event=heard.append)
    assert (stopped / "run" / "tiny.safetensors").read_bytes() == straight
    (stopped / "style").rename(stopped / "others")
    (stopped / "masks").rename(stopped / "theirs")
    shutil.rmtree(stopped / "run" / "checkpoints" / "step_000004")
    other = (*SET, "data.images=others", "data.masks=theirs")
    heard.clear()
    train(load_recipe(stopped / "r.toml", changes=other), stopped / "run", resume=True, on_event=heard.append)
    assert (stopped / "run" / "tiny.safetensors").read_bytes() == straight
    (said,) = [one.text for one in heard if isinstance(one, Note) and "changed recipe" in one.text]
    assert f"{stopped / 'style'}' -> '{stopped / 'others'}" in said and "data.masks: " in said


def test_a_moved_run_is_exported(finished: Path) -> None:
    (one,) = export_run(finished / "run", ExportRequest(("kohya",)))
    assert one.report.ok


def test_images_of_other_names_in_the_same_order_are_the_same(stopped: Path, straight: bytes) -> None:
    for path in [*(stopped / "style").iterdir(), *(stopped / "masks").iterdir()]:
        path.rename(path.with_name(f"x{path.name}"))
    assert resumed(stopped)[0] == straight


def test_images_in_another_order_are_not(stopped: Path) -> None:
    for path in [*(stopped / "style").glob("00.*"), *(stopped / "masks").glob("00.*")]:
        path.rename(path.with_name(f"99{path.suffix}"))
    with pytest.raises(RecipeError, match=r"other images: 1 are gone: 00\.png; 1 are new: 99"):
        train(stopped / "run", resume=True)


def other_weights(project: Path, part: str) -> None:
    (file,) = (project / "base" / part).glob("*.safetensors")
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("weight"))
    save_file(tensors | {name: tensors[name] + torch.ones(())}, file, metadata={"format": "pt"})


def other_word(project: Path, part: str) -> None:
    path = project / "base" / part / "tokenizer.json"
    path = path if path.is_file() else path.with_name("vocab.json")
    words = json.loads(path.read_text("utf-8"))
    table = words["model"]["vocab"] if "model" in words else words
    first, second = list(table)[300:302]
    table[first], table[second] = table[second], table[first]
    path.write_text(json.dumps(words), "utf-8")


def other_noise(project: Path, part: str) -> None:
    path = project / "base" / part / "scheduler_config.json"
    path.write_text(path.read_text("utf-8").replace("0.012", "0.013"), "utf-8")


@pytest.mark.parametrize(
    ("change", "part", "what"),
    [
        (other_weights, "unet", "base.model"),
        (other_weights, "vae", "base.vae"),
        (other_weights, "text_encoder", "base.text_encoders"),
        (other_word, "tokenizer", "base.text_encoders"),
        (other_noise, "scheduler", "base.noise"),
    ],
)
def test_another_base_at_the_new_place_is_refused(
    stopped: Path, change: Callable[[Path, str], None], part: str, what: str
) -> None:
    change(stopped, part)
    with pytest.raises(RecipeError, match=f"was started when {what} held other weights"):
        train(stopped / "run", resume=True)


def test_the_recipe_of_another_run_is_refused_by_resume_and_export(stopped: Path) -> None:
    """It is whole, and has its own digest."""
    recipe = stopped / "run" / "recipe.toml"
    other = load_run_recipe(stopped / "run", ("training.learning_rate=0.5",))
    recipe.write_text(with_seal(to_toml(other)), "utf-8")
    with pytest.raises(
        CheckpointError, match=r"recipe\.toml is not as the run wrote it \(it is that of another run"
    ):
        train(stopped / "run", resume=True)
    with pytest.raises(
        CheckpointError, match=r"recipe\.toml is not as the run wrote it \(it is that of another run"
    ):
        export_run(stopped / "run", ExportRequest(("kohya",)))


def cut(checkpoint: Path) -> None:
    file = checkpoint / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def one_digit(checkpoint: Path) -> None:
    """Of how often the weights were updated, which EMA and some optimizers go by."""
    file = checkpoint / "state.json"
    file.write_text(file.read_text().replace('"updates": 4', '"updates": 3'))


def of_another_step(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.with_name("step_000002"), checkpoint)


def lost(checkpoint: Path) -> None:
    (checkpoint / "optimizer.safetensors").unlink()


@pytest.mark.parametrize("harm", [cut, one_digit, of_another_step, lost])
def test_of_a_damaged_newest_checkpoint_the_one_before_is_taken(
    finished: Path, straight: bytes, harm: Callable[[Path], None]
) -> None:
    newest = finished / "run" / "checkpoints" / "step_000004"
    harm(newest)
    (finished / "run" / "tiny.safetensors").unlink()
    content, said = resumed(finished)
    assert content == straight
    assert f"warning: the checkpoint {newest} " in said
    assert "It is now step_000004.damaged; going on from step 2" in said
    assert newest.is_dir() and newest.with_name("step_000004.damaged").is_dir()


def test_without_a_whole_checkpoint_each_is_named_and_nothing_is_touched(finished: Path) -> None:
    checkpoints = Run(finished / "run").checkpoints()
    for one in checkpoints:
        cut(one)
    with pytest.raises(CheckpointError) as caught:
        train(finished / "run", resume=True)
    assert all(f"the checkpoint {one} cannot be read" in str(caught.value) for one in checkpoints)
    assert Run(finished / "run").checkpoints() == checkpoints


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


HARMS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a digit of the recipe": ("recipe.toml", lambda path: edited(path, "seed = 7", "seed = 8")),
    "the recipe's first line": ("recipe.toml", lambda path: edited(path, "# as run", "# as")),
    "no recipe": ("recipe.toml", lambda path: path.unlink()),
    "an empty recipe": ("recipe.toml", lambda path: path.write_bytes(b"")),
    "a key of the inputs": ("inputs.json", lambda path: edited(path, "training.lr_", "training.xx_")),
    "inputs without a digest": ("inputs.json", lambda path: edited(path, '"sha256"', '"other"')),
    "no inputs": ("inputs.json", lambda path: path.unlink()),
    "cut inputs": ("inputs.json", lambda path: path.write_bytes(path.read_bytes()[:99])),
    "binary inputs": ("inputs.json", lambda path: path.write_bytes(b"\xff\xfe")),
    "inputs of another kind": ("inputs.json", lambda path: path.write_text("[]")),
    "deep inputs": ("inputs.json", lambda path: path.write_text("[" * 99_999)),
    "a folder of inputs": ("inputs.json", lambda path: (path.unlink(), path.mkdir())),
    "a caption in the manifest": ("manifest.jsonl", lambda path: edited(path, "zwx style", "zwx stile")),
    "a line of the manifest": ("manifest.jsonl", lambda path: path.write_bytes(b"\xff\n")),
    "no manifest": ("manifest.jsonl", lambda path: path.unlink()),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_a_resume_goes_by_is_refused_by_its_name_if_it_is_damaged(stopped: Path, harm: str) -> None:
    name, do = HARMS[harm]
    do(stopped / "run" / name)
    with pytest.raises(CheckpointError, match=rf"run/{name} is not as the run wrote it \(.*\); put it back"):
        train(stopped / "run", resume=True)


def test_a_run_of_an_earlier_version_without_digests_goes_on(stopped: Path, straight: bytes) -> None:
    run = stopped / "run"
    without_digests(run)
    result = train(load_recipe(stopped / "r.toml", changes=SET), run, resume=True)
    assert isinstance(result, Finished) and result.lora_file
    assert result.lora_file.read_bytes() == straight
    assert "sha256" in json.loads((run / "inputs.json").read_text())


def test_a_run_without_a_change_of_place_names_its_folder_once(stopped: Path) -> None:
    """The recipe of a run is the same text wherever it lies; only inputs.json says where that was."""
    before = json.loads((stopped / "run" / "inputs.json").read_text())
    assert before["run.folder"].endswith("old/run")
    resumed(stopped)
    after = json.loads((stopped / "run" / "inputs.json").read_text())
    assert after["run.folder"] == str((stopped / "run").resolve())
    assert {**after, "run.folder": 0, "sha256": 0} == {**before, "run.folder": 0, "sha256": 0}
