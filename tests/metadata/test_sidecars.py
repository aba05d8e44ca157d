"""What UIs and people find beside a file: an image, its facts, a card. Nothing of theirs is overwritten."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from console import run
from facts import FACTS, TRAITS
from PIL import Image

from lora_studio.lora_file.write import write_lora
from lora_studio.metadata.sidecars import CardImage, Described, card_version, model_card, tuned_image
from lora_studio.metadata.write import build_metadata


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What a finished run leaves behind, as far as sidecars ask; not trained."""
    folder = tmp_path / "run"
    folder.mkdir()
    facts = replace(FACTS, trigger="zwx style", strength=0.8)
    write_lora(
        folder / "wood.safetensors",
        {"a": torch.ones(3)},
        dtype="float16",
        describe=lambda block: (
            build_metadata(facts, TRAITS, block) | {"modelspec.description": "Ink | paper"}
        ),
    )
    (folder / "summary.json").write_text(json.dumps({"file": "wood.safetensors", "embeddings": {}}), "utf-8")
    text = 'name = "wood"\nbase.model = "pocket"\ndata.images = "/secret/images"\n'
    text += 'samples.prompts = ["a *fox*", "b"]\n'
    (folder / "recipe.toml").write_text(text, "utf-8")
    (folder / "previews").mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (8, 8), colour).save(folder / tuned_image(number))
    return folder


def front_matter(card: str) -> dict[str, str]:
    """Its lines between the rules; values are JSON, as YAML reads them, too."""
    lines = card.split("---\n")[1].splitlines()
    return {key: value for key, _, value in (line.partition(": ") for line in lines)}


def test_image_facts_and_card_lie_beside_the_file(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, _ = run(["sidecars", str(run_folder), "--json"], capsys)
    assert code == 0
    written = {Path(one).name for one in json.loads(printed)["written"]}
    assert written == {"README.md", "wood.json", "wood.png"}
    facts = json.loads((run_folder / "wood.json").read_text("utf-8"))
    assert facts["sd version"] == "SD1" and facts["activation text"] == "zwx style"
    assert facts["preferred weight"] == 0.8 and facts["description"] == "Ink | paper"
    assert {"negative text", "notes"} <= facts.keys()
    with Image.open(run_folder / "wood.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    card = (run_folder / "README.md").read_text("utf-8")
    assert json.loads(front_matter(card)["instance_prompt"]) == "zwx style"
    assert "![a \\*fox\\*](previews/tuned_00.png)" in card and "strength 0.8" in card
    assert "Ink \\| paper" in card and "secret" not in card and "license" not in card
    assert "base_model" not in card  # no base that the hub knows


def test_what_is_there_stays_unless_force(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_folder / "README.md").write_text("mine", "utf-8")
    code, _, err = run(["sidecars", str(run_folder)], capsys)
    assert code == 2 and "already holds README.md" in err.replace("\n", " ")
    assert not (run_folder / "wood.json").exists()
    assert run(["sidecars", str(run_folder), "--force"], capsys)[0] == 0
    assert "# Wood" in (run_folder / "README.md").read_text("utf-8")
    assert run(["sidecars", str(run_folder)], capsys)[0] == 0  # the same content once more


def test_without_previews_there_is_no_image_and_that_is_said(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run_folder / "previews")
    code, printed, _ = run(["sidecars", str(run_folder)], capsys)
    assert code == 0 and "no image: the run kept no previews" in printed
    assert not (run_folder / "wood.png").exists()


@pytest.mark.parametrize("missing", ["summary.json", "wood.safetensors"])
def test_what_is_no_finished_run_is_refused(
    missing: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / missing).unlink()
    code, _, err = run(["sidecars", str(run_folder)], capsys)
    assert code == 2 and missing in err and "Traceback" not in err


def test_a_card_names_base_licence_tags_and_what_is_used_together() -> None:
    said = {
        "lora_studio.base": "someone/a-model",
        "modelspec.license": "cc0-1.0",
        "modelspec.tags": 'ink, "x"',
    }
    said |= {"modelspec.trigger_phrase": "vkq <b>", "ss_steps": "9"}
    word = Described("vkq.safetensors", "cd", {"modelspec.trigger_phrase": "vkq"}, is_embedding=True)
    card = model_card([Described("a.safetensors", "ab", said), word], [CardImage("p", "a.png")])
    matter = front_matter(card)
    assert (
        json.loads(matter["base_model"]) == "someone/a-model" and json.loads(matter["license"]) == "cc0-1.0"
    )
    assert '- "ink"\n- "\\"x\\""\n' in card and "| steps | 9 |" in card
    assert "`vkq.safetensors` goes among the embeddings; the word `vkq`" in card
    assert "<b>" not in card.split("```")[0].split("---\n")[2]


def test_a_file_alone_gets_its_own_beside_it(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As push takes one: in a folder of many, README.md would be anybody's."""
    (run_folder / "README.md").write_text("of all my files")
    file = run_folder / "wood.safetensors"
    code, printed, _ = run(["sidecars", str(file)], capsys)
    assert code == 0 and "put one beside it, called wood.png" in printed
    assert json.loads((run_folder / "wood.json").read_text("utf-8"))["activation text"] == "zwx style"
    assert "# " in (run_folder / "wood.md").read_text("utf-8")
    assert (run_folder / "README.md").read_text() == "of all my files"
    Image.new("RGB", (8, 8), "red").save(run_folder / "wood.png")
    code, _, said = run(["sidecars", str(file)], capsys)
    assert code == 2 and "already holds wood.md; --force" in said
    code, printed, _ = run(["sidecars", str(file), "--force"], capsys)
    assert code == 0 and "(wood.png)" in (run_folder / "wood.md").read_text("utf-8")


def test_neither_a_run_nor_a_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for name in ("notes.txt", "missing", "."):
        code, _, said = run(["sidecars", str(tmp_path / name)], capsys)
        assert code == 2 and "Errno" not in said and "Traceback" not in said and said.count("error:") == 1


def test_a_card_of_a_file_that_says_nothing_names_no_version() -> None:
    assert card_version({}) == "Unknown" and card_version({"ss_base_model_version": "sd_v1_v"}) == "SD1"
