"""Every run ends with what to do next, in commands that work."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from console import run
from tiny import recipe_text

from lora_studio.console.next_steps import RunFacts, next_steps
from lora_studio.export import EXPORTERS, target_named
from lora_studio.training.finish import Finished
from lora_studio.training.session import train
from lora_studio.verify.uis import NO_BASE

EXTRA = """
[validation]
count = 2
every = 2
[samples]
prompts = ["a fox, zwx style"]
steps = 1
"""
FACTS = RunFacts(("zwx style",), "a fox, zwx style", on_pocket=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_base: Path, images: Path) -> Finished:
    folder = tmp_path_factory.mktemp("next")
    (folder / "a.toml").write_text(recipe_text(images, str(tiny_base), extra=EXTRA), "utf-8")
    result = train(folder / "a.toml", folder / "my run")
    assert isinstance(result, Finished)
    return result


def told(finished: Finished, facts: RunFacts = FACTS) -> str:
    rows = next_steps(finished, facts)
    assert rows[0][0] == "next" and not any(title for title, _ in rows[1:])
    return "\n".join(text for _, text in rows)


def test_what_is_opened_copied_and_written_into_prompts(finished) -> None:
    text = told(finished)
    sheet = finished.folder / "previews" / "step_000004.png"
    assert sheet.is_file() and f"open {sheet}:" in text
    assert f"copy {finished.lora_file} to ComfyUI's models/loras" in text
    assert "write into prompts: zwx style" in text
    assert f"lora-studio sample '{finished.folder}' --prompt 'a fox, zwx style'" in text


def test_a_file_goes_to_the_uis_that_have_bases_of_its_kind(finished) -> None:
    everywhere = told(finished)
    assert (
        "ComfyUI's models/loras, A1111's and Forge's models/Lora, or InvokeAI's model manager" in everywhere
    )
    judged = [
        replace(one, loads=NO_BASE) if one.ui in ("A1111", "InvokeAI") else one for one in finished.report.uis
    ]
    some = told(replace(finished, report=replace(finished.report, uis=judged)))
    assert "to ComfyUI's models/loras, or Forge's models/Lora\n" in some


def test_the_pocket_base_has_no_ui_to_copy_to(finished) -> None:
    text = told(finished, replace(FACTS, on_pocket=True))
    assert "ComfyUI" not in text and text.endswith("your own images on a real one: lora-studio start")


def test_a_better_step_than_the_last_is_exported_by_the_command_that_is_shown(finished, capsys) -> None:
    best = {"relative_last": 1.0, "relative_best": 0.9, "best_step": 2}
    text = told(replace(finished, summary=finished.summary | {"validation": best}))
    command = re.search(r"step 2 did best on the validation images: lora-studio (.*)", text)[1]
    assert command.startswith("export ") and command.endswith("--to kohya --checkpoint best")
    code, out, err = run([*shlex.split(command), "--force"], capsys)
    measured = finished.summary["validation"]["best_step"]
    assert code == 0 and f"step_{measured:06}" in out, err
    assert "did best" not in told(replace(finished, summary=finished.summary | {"validation": None}))


def test_a_whole_base_is_for_uis_as_one_file_and_a_word_is_copied_elsewhere(finished, tmp_path) -> None:
    whole = replace(finished, lora_file=tmp_path, embeddings={"zwx": Path("zwx.safetensors")})
    text = told(whole)
    assert "--to checkpoint" in text and "copy zwx.safetensors to ComfyUI's models/embeddings" in text


@pytest.mark.parametrize("word", ["3rd", "-1", "first"])
def test_a_checkpoint_that_is_none_is_a_sentence(word: str, finished, capsys) -> None:
    code, _, err = run(["export", str(finished.folder), "--to", "kohya", f"--checkpoint={word}"], capsys)
    assert code == 2 and "must be a step, such as 300, best or newest" in err


def test_targets_are_also_known_by_the_program_that_reads_them() -> None:
    assert {target_named(name) for name in ("comfyui", "ComfyUI", "a1111", "forge", "invokeai")} == {"kohya"}
    assert target_named("peft") == "diffusers" and target_named("kohia") == "kohia"
    assert all(target_named(name) == name for name in EXPORTERS.names())
