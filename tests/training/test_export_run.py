"""A run's checkpoints in other forms, through the library and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import recipe_text
from typer.testing import CliRunner

from lora_studio import cli
from lora_studio.errors import CheckpointError, StudioError
from lora_studio.export import EXPORTERS
from lora_studio.recipe.load import load_recipe
from lora_studio.training.events import Event, Note
from lora_studio.training.finish.export import ExportRequest, export_run
from lora_studio.training.session import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, images: Path) -> Path:
    """Two checkpoints; the file is of a mean of the weights, which checkpoints hold beside the last ones."""
    folder = tmp_path_factory.mktemp("exported")
    recipe = folder / "tiny.toml"
    text = recipe_text(images, str(tiny_base), extra="ema = 0.5")
    recipe.write_text(text.replace("checkpoint_every = 2", "checkpoint_every = 3"))
    train(load_recipe(recipe), folder / "run")
    return folder / "run"


def test_the_newest_checkpoint_is_what_the_run_ended_with(run: Path, tmp_path: Path) -> None:
    (found,) = export_run(run, ExportRequest(("kohya",), folder=tmp_path))
    assert found.report.ok and found.report.checks["probe_difference_share"] < 0.02
    own, again = load_file(run / "tiny.safetensors"), load_file(tmp_path / "tiny.safetensors")
    assert own.keys() == again.keys() and all(own[key].equal(again[key]) for key in own)
    assert (run / "tiny.safetensors").read_bytes() == (tmp_path / "tiny.safetensors").read_bytes()


def test_an_older_checkpoint_goes_to_several_targets_and_nothing_is_replaced(run: Path) -> None:
    wishes = ExportRequest(("diffusers", "checkpoint"), checkpoint=3, dtype="bfloat16")
    found = export_run(run, wishes)
    folder = run / "exports" / "step_000003"
    assert [one.made.paths[0].parent for one in found] == [folder, folder]
    assert set(json.loads((folder / "verify.json").read_text())) == {"diffusers", "checkpoint"}
    assert {str(one.dtype) for one in load_file(found[0].made.paths[0]).values()} == {"torch.bfloat16"}
    with pytest.raises(StudioError, match=r"tiny_diffusers\.safetensors.*are there already.*--force"):
        export_run(run, wishes)


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff{}", b"[" * 100_000])
def test_a_report_that_is_none_of_ours_gets_another_name(run: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "verify.json").write_bytes(content)
    heard: list[Event] = []
    export_run(run, ExportRequest(("kohya",), folder=tmp_path), on_event=heard.append)
    assert (tmp_path / "verify.json.damaged").read_bytes() == content
    assert set(json.loads((tmp_path / "verify.json").read_text())) == {"kohya"}
    assert any("It is now verify.json.damaged" in one.text for one in heard if isinstance(one, Note))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "kohia"], "did you mean 'kohya'"),
        (["--to", "kohya", "--checkpoint", "7"], "there are those of 3, 4"),
        (["--to", "embedding"], "has none"),
        (["--to", "kohya", "--dtype", "int8"], "must be one of"),
    ],
)
def test_a_mistake_is_one_sentence(run: Path, arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(StudioError, match=words):
        cli.app(["export", str(run), *arguments, "--out", str(tmp_path)], standalone_mode=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run"):
        export_run(tmp_path, ExportRequest(("kohya",)))


def test_the_help_names_every_target() -> None:
    text = CliRunner().invoke(cli.app, ["export", "--help"], env={"COLUMNS": "200"}).output
    assert all(name in text for name in EXPORTERS.names())
