"""Figures of an evaluation beside a file: in its card, its sidecars, what is pushed, and its metadata."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from console import run
from evaluations import evaluation, report_images
from facts import FACTS, TRAITS
from PIL import Image

from lora_studio.evaluate.report import write_report
from lora_studio.evaluate.saved import evaluation_folder
from lora_studio.lora_file.write import write_lora
from lora_studio.metadata.write import build_metadata
from lora_studio.tensor_file.header import read_header, tensor_hash
from lora_studio.tools.push import uploads_of

FIDELITY = "+0.613 (+0.563 to +0.663)"


@pytest.fixture
def wood(tmp_path: Path) -> Path:
    """A LoRA file that was evaluated."""
    path = tmp_path / "wood.safetensors"
    tensors = {"a": torch.ones(3)}
    write_lora(path, tensors, dtype="float16", describe=lambda block: build_metadata(FACTS, TRAITS, block))
    evaluate(path)
    return path


def evaluate(path: Path) -> None:
    """What `lora-studio evaluate` leaves beside a file."""
    facts = dict(evaluation().facts) | {"learned_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    known, folder = replace(evaluation(), facts=facts), evaluation_folder(path)
    write_report(folder, known, report_images())
    (folder / "evaluation.json").write_text(json.dumps(known.to_json()), "utf-8")


def test_card_and_sidecars_have_the_figures_and_the_sheet(
    wood: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sidecars", str(wood)], capsys)[0] == 0
    card = wood.with_suffix(".md").read_text("utf-8")
    assert "## Evaluation" in card and f"| Fidelity | {FIDELITY} |" in card and "**learned, leaks**" in card
    assert "](wood_evaluation/evaluation.png)" in card
    notes = json.loads(wood.with_suffix(".json").read_text("utf-8"))["notes"]
    assert f"evaluated: learned, leaks; fidelity {FIDELITY}" in notes
    with Image.open(wood.with_suffix(".png")) as image:
        assert image.width == 1200


def test_figures_of_another_file_are_not_told(wood: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"a": torch.zeros(3)}
    write_lora(wood, tensors, dtype="float16", describe=lambda block: build_metadata(FACTS, TRAITS, block))
    assert run(["sidecars", str(wood)], capsys)[0] == 0
    assert "Evaluation" not in wood.with_suffix(".md").read_text("utf-8")
    assert not wood.with_suffix(".png").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"name": 3}'])
def test_a_damaged_evaluation_stops_no_card(
    wood: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (evaluation_folder(wood) / "evaluation.json").write_text(content, "utf-8")
    assert run(["sidecars", str(wood)], capsys)[0] == 0
    assert "Evaluation" not in wood.with_suffix(".md").read_text("utf-8")


def test_push_sends_figures_and_sheet_and_no_caption(wood: Path) -> None:
    uploads = {one.name: one.content for one in uploads_of(wood)}
    assert set(uploads) == {"wood.safetensors", "README.md", "wood_evaluation/evaluation.png"}
    card = uploads["README.md"]
    assert isinstance(card, bytes) and FIDELITY.encode() in card
    assert b"boat_0" not in card and b"harbour" not in card


def test_metadata_carries_the_figures_and_the_tensors_stay(
    wood: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = read_header(wood), wood.with_name("told.safetensors")
    code, _, err = run(["metadata", str(wood), "--evaluation", str(wood), "-o", str(out)], capsys)
    assert code == 0, err
    after = read_header(out)
    assert tensor_hash(after.block()) == tensor_hash(before.block())
    added = {key: value for key, value in after.metadata.items() if key not in before.metadata}
    assert added["lora_studio.evaluation.fidelity"] == FIDELITY
    assert added["lora_studio.evaluation.verdict"] == "learned, leaks"
    assert added["lora_studio.evaluation.encoder"] == "pocket"
    assert all(key.startswith("lora_studio.evaluation.") for key in added)
    assert not any(word in str(added) for word in ("harbour", "boat", "/"))
    assert run(["sidecars", str(out)], capsys)[0] == 0  # the card reads them from there
    assert f"| Fidelity | {FIDELITY} |" in out.with_suffix(".md").read_text("utf-8")


def test_hostile_metadata_makes_no_markup(wood: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = wood.with_name("odd.safetensors")
    value = "lora_studio.evaluation.verdict=<script>|x|`[a](b)"
    assert run(["metadata", str(wood), "--set", value, "-o", str(out)], capsys)[0] == 0
    assert run(["sidecars", str(out)], capsys)[0] == 0
    card = out.with_suffix(".md").read_text("utf-8")
    assert "<script>" not in card and "[a](b)" not in card


def test_a_run_has_the_figures_of_the_checkpoint_that_its_file_is_of(
    wood: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    for step in (10, 20):
        (folder / "checkpoints" / f"step_0000{step}").mkdir(parents=True)
        (folder / "checkpoints" / f"step_0000{step}" / "state.json").write_text(
            f'{{"step": {step}}}', "utf-8"
        )
    wood.rename(folder / wood.name)
    known = replace(evaluation(), facts={"learned_sha256": hashlib.sha256(b'{"step": 10}').hexdigest()})
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(known.to_json()), "utf-8")
    for step in (10, 20):
        summary = {"file": wood.name, "embeddings": {}, "checkpoint": {"step": step, "why": "best"}}
        (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
        assert run(["sidecars", str(folder), "--force"], capsys)[0] == 0
        assert ("## Evaluation" in (folder / "README.md").read_text("utf-8")) is (step == 10)


def test_a_run_has_the_figures_of_its_last_checkpoint_only(
    wood: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    checkpoint = folder / "checkpoints" / "step_000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}", "utf-8")
    wood.rename(folder / wood.name)
    (folder / "summary.json").write_text(json.dumps({"file": wood.name, "embeddings": {}}), "utf-8")
    facts = {"learned_sha256": hashlib.sha256(b"{}").hexdigest()}
    known = replace(evaluation(), facts=facts)
    write_report(folder / "evaluation", known, report_images())
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(known.to_json()), "utf-8")
    assert run(["sidecars", str(folder)], capsys)[0] == 0
    assert "](evaluation/evaluation.png)" in (folder / "README.md").read_text("utf-8")
    (checkpoint / "state.json").write_text('{"other": 1}', "utf-8")
    assert run(["sidecars", str(folder), "--force"], capsys)[0] == 0
    assert "Evaluation" not in (folder / "README.md").read_text("utf-8")


def test_a_card_that_the_run_wrote_before_is_pushed_with_the_figures_and_a_changed_one_as_it_is(
    wood: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step_000010").mkdir(parents=True)
    (folder / "checkpoints" / "step_000010" / "state.json").write_text("{}", "utf-8")
    wood.rename(folder / wood.name)
    (folder / "summary.json").write_text(json.dumps({"file": wood.name, "embeddings": {}}), "utf-8")
    assert run(["sidecars", str(folder)], capsys)[0] == 0
    known = replace(evaluation(), facts={"learned_sha256": hashlib.sha256(b"{}").hexdigest()})
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(known.to_json()), "utf-8")

    def card() -> bytes:
        content = next(one.content for one in uploads_of(folder) if one.name == "README.md")
        return content if isinstance(content, bytes) else content.read_bytes()

    assert FIDELITY.encode() in card()
    (folder / "README.md").write_text("mine", "utf-8")
    assert card() == b"mine"
