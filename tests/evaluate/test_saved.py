"""Evaluations that lie in folders: found beside runs and files, and refused if they are something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluations import evaluation

from lora_studio.errors import StudioError
from lora_studio.evaluate.saved import RESULT, evaluation_folder, read_evaluation, saved_evaluation


def save(folder: Path, **changed: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULT
    path.write_text(json.dumps(evaluation().to_json() | changed), "utf-8")
    return path


def test_it_is_found_by_run_file_folder_and_its_own_name(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "wood.safetensors"
    path = save(run / "evaluation")
    file.write_bytes(b"")
    save(evaluation_folder(file))
    for target in (run, path, path.parent, file):
        assert saved_evaluation(target) == evaluation()


def test_a_run_without_one_is_told_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match=r"has no evaluation; make one with: lora-studio evaluate "):
        saved_evaluation(tmp_path)
    with pytest.raises(StudioError, match="is not there; give a run's folder"):
        saved_evaluation(tmp_path / "none")


@pytest.mark.parametrize(
    "changed",
    [
        {"measures": [{"name": "fidelity"}]},
        {"measures": 3},
        {"verdicts": [{"word": 1, "measure": "a", "sentence": "b", "decided": True, "more_questions": 0}]},
        {"nearest": [{"question": 99, "seed": 1, "training_image": "a", "similarity": 1, "copied": False}]},
        {"other": 1},
        {"questions": None},
        {"name": 5},
    ],
)
def test_something_else_is_one_sentence(tmp_path: Path, changed: dict[str, object]) -> None:
    path = save(tmp_path, **changed)
    with pytest.raises(StudioError, match=r"evaluation.json is no evaluation as we write it \("):
        read_evaluation(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 10**5, b"null"])
def test_damaged_files_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / RESULT
    path.write_bytes(content)
    with pytest.raises(StudioError, match="is no evaluation as we write it"):
        read_evaluation(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StudioError, match="cannot be read as an evaluation"):
        read_evaluation(path)
