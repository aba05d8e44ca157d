"""How a training begins on the page: as `start`, `init` and `doctor` would have it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import image_folder
from typer.testing import CliRunner

from lora_studio.cli import app
from lora_studio.data.doctor import ClipTokenizer
from lora_studio.errors import RecipeError, StudioError
from lora_studio.web.forms.beginning import FirstInputs, begin, from_settings, suggest
from lora_studio.web.forms.words import read_trigger, verdict
from lora_studio.web.kept_process import KeptProcess

BOLT = Path(__file__).parents[2] / "sample_images" / "subject_bolt"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def test_a_recipe_begins_as_start_would_write_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = suggest(FirstInputs(BOLT, purpose="subject", name="bolt"), tmp_path)
    assert (said.inputs.trigger, said.inputs.class_words, said.choice.name) == (
        "vkq robot",
        "robot",
        "pocket_subject",
    )
    called = ["init", "pocket_subject", "--images", str(BOLT), "--trigger", "vkq robot", "--name", "bolt"]
    result = CliRunner().invoke(app, [*called, "--class-word", "robot", "--base", "pocket"])
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "bolt.toml").read_text("utf-8").split("\n")
    assert begin(said, tmp_path).text == "\n".join(line for line in lines if not line.startswith("#:schema"))


def test_images_without_captions_get_a_sentence(tmp_path):
    images = image_folder(tmp_path / "dogs")
    for one in images.glob("*.txt"):
        one.unlink()
    said = suggest(FirstInputs(images, purpose="subject", trigger="zwx", class_words="dog"), tmp_path)
    draft = begin(said, tmp_path)
    assert draft.entry("data.instance_prompt") == "a photo of zwx dog" and draft.faults == []


@pytest.mark.parametrize(
    "inputs",
    [FirstInputs(Path("nowhere")), FirstInputs(BOLT, purpose="cooking"), FirstInputs(BOLT, base="x.ckpt")],
)
def test_what_cannot_be_begun_is_said_in_a_sentence(inputs, tmp_path):
    with pytest.raises(StudioError):
        suggest(inputs, tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="holds no images"):
        begin(suggest(FirstInputs(tmp_path / "empty"), tmp_path), tmp_path)


def test_settings_of_another_trainer_are_taken_over_with_what_became_of_each_key(tmp_path):
    images = image_folder(tmp_path / "images")
    settings = {"pretrained_model_name_or_path": SDXL, "network_module": "networks.lora", "network_dim": 8}
    settings |= {"train_data_dir": str(images), "max_train_steps": 50, "output_name": "old", "xyz_unknown": 1}
    file = tmp_path / "kohya.json"
    file.write_text(json.dumps(settings), "utf-8")
    made = from_settings([file], None, tmp_path)
    assert made.draft.entry("adapter.rank") == "8" and made.draft.faults == []
    assert any("network_dim" in there for _, there, _ in made.rows)
    assert any("xyz_unknown" in there for _, there, _ in made.rows)


@pytest.mark.parametrize("trigger, severity", [("dog", "warning"), ("sks", "note"), ("vkq", ""), ("", "")])
def test_the_trigger_is_judged_as_the_doctor_does(trigger, severity):
    words = (trigger, "robot") if trigger else (" ", "")
    found = read_trigger(KeptProcess(), SDXL, *words).result()
    assert found.severity == severity and (not trigger or f'"{trigger} robot"' in found.reading)


def test_a_base_that_is_not_there_is_a_sentence_of_the_verdict(tmp_path):
    for base in (str(tmp_path), str(tmp_path / "gone.safetensors")):
        assert isinstance(read_trigger(KeptProcess(), base, "vkq").exception(), StudioError)


@pytest.mark.slow
def test_a_base_with_a_tokenizer_of_its_own_is_asked_in_a_process_of_its_own():
    from lora_studio.families.loading import load_base

    own, kept = load_base("pocket", weights=False).caption_tokenizers, KeptProcess()
    asked = ("vkq robot", "woodcut print", "größe", "sks")
    found = [read_trigger(kept, "pocket", words).result(timeout=60) for words in asked]
    assert found == [verdict(words, "", own) for words in asked]
    assert found != [verdict(words, "", {"CLIP": ClipTokenizer()}) for words in asked]
    kept.close()


def test_forms_and_data_sets_need_no_torch():
    """The page is there at once: what needs torch runs elsewhere."""
    code = "import sys, pkgutil, importlib, lora_studio.web.forms, lora_studio.web.dataset\n"
    code += "for room in (lora_studio.web.forms, lora_studio.web.dataset):\n"
    code += "  for one in pkgutil.iter_modules(room.__path__):\n"
    code += "    importlib.import_module(f'{room.__name__}.{one.name}')\n"
    code += "print([one for one in ('torch', 'transformers', 'diffusers') if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
