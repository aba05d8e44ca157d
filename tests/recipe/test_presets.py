"""Presets and `init`: a recipe that loads, from words that TOML would trip over, too."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from console import run

from lora_studio.recipe import Recipe
from lora_studio.recipe.load import PRESET_FOLDER, load_recipe
from lora_studio.recipe.presets import PresetInputs, fill, preset_names, preset_text
from lora_studio.text import with_class
from lora_studio.training.prepare.checks import name_faults

ROOT = Path(__file__).parents[2]
OURS = {"sd15_style", "sd15_subject", "sd21_style", "sd21_subject", "sdxl_style", "sdxl_subject", "sdxl_8gb"}
FLOW_BASES = ("z_image", "flux1", "flux2_klein", "chroma", "sd35", "qwen_image", "krea2", "lumina2", "anima")
FLOW = {f"{base}_{what}" for base in FLOW_BASES for what in ("style", "subject")} | {
    *("z_image_turbo", "z_image_8gb", "z_image_12gb", "flux1_12gb", "flux2_klein_8gb", "qwen_image_24gb"),
    *("flux2_klein_9b_12gb", "krea2_16gb", "anima_8gb"),
}
WITH_TOKENS = {"sd15_textual_inversion", "sdxl_pivotal", "pocket_pivotal"}


def test_images_of_a_subject_may_go_without_captions() -> None:
    """As the pages say; a style has none for all."""
    for name in preset_names():
        data = load_recipe(PRESET_FOLDER / f"{name}.toml").data
        assert bool(data.instance_prompt) == bool(data.class_words), name
        assert data.trigger in data.instance_prompt or not data.instance_prompt


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_short_recipe_that_loads_and_names_what_exists(name: str) -> None:
    recipe = load_recipe(PRESET_FOLDER / f"{name}.toml")
    assert name_faults(recipe) == []
    text = preset_text(name)
    assert recipe.name == name and text.startswith("# ")
    assert len(text.splitlines()) <= 45
    assert recipe.data.trigger in recipe.samples.prompts[0]
    assert recipe.data.class_words in recipe.data.trigger


def test_there_is_one_for_every_base_and_purpose() -> None:
    assert set(preset_names()) >= OURS | FLOW | WITH_TOKENS


@pytest.mark.parametrize("name", sorted(FLOW))
def test_transformers_learn_slowly_one_image_at_a_time_and_nothing_that_diffusion_alone_has(
    name: str,
) -> None:
    """1e-4 with AdamW and rank = alpha = 16; previews as is usual for the base."""
    recipe = load_recipe(PRESET_FOLDER / f"{name}.toml")
    training = recipe.training
    assert recipe.adapter.rank == recipe.adapter.alpha == 16 and not recipe.adapter.text_encoder
    assert training.learning_rate == 1e-4 and training.batch_size == 1 and training.optimizer == "adamw"
    assert 1000 <= training.steps <= 3000 and training.checkpoint_every * 10 == training.steps
    assert training.warmup_steps * 20 == training.steps
    assert recipe.objective == Recipe.model_fields["objective"].get_default(call_default_factory=True)
    assert recipe.samples.steps is None and recipe.samples.guidance is None
    assert recipe.machine.gradient_checkpointing
    assert recipe.data.resolution == 1024
    assert (recipe.base.training_adapter is not None) == (name == "z_image_turbo")


@pytest.mark.parametrize("name", sorted(OURS))
def test_the_numbers_are_those_that_sources_agree_on(name: str) -> None:
    """Rank = alpha = 16, 1e-4 with AdamW, frozen text encoders, epsilon weighted by min-SNR with 5."""
    recipe = load_recipe(PRESET_FOLDER / f"{name}.toml")
    training, side = recipe.training, recipe.data.resolution
    assert recipe.adapter.rank == recipe.adapter.alpha == 16 and not recipe.adapter.text_encoder
    assert training.learning_rate == 1e-4 and training.optimizer == "adamw"
    assert recipe.objective.snr_gamma == 5 and recipe.objective.noise_offset == 0
    assert side == (1024 if "sdxl" in name else 768 if "sd21" in name else 512)
    assert 0.03 <= training.warmup_steps / training.steps <= 0.06 and training.warmup_steps <= 100
    assert training.checkpoint_every * 10 == training.steps
    if "subject" in name:
        assert recipe.data.flip == 0 and recipe.data.class_words
        assert bool(recipe.data.regularization_images.count) == ("sdxl" not in name)


def test_the_face_is_learned_within_its_masks_alone_and_other_faces_stay() -> None:
    recipe = load_recipe(PRESET_FOLDER / "sd15_face.toml")
    assert recipe.objective.masked_preservation == 1 and 0 < recipe.objective.preservation < 0.5
    assert recipe.data.class_words == "woman" and recipe.data.crop == "focus" and recipe.data.flip == 0
    assert recipe.training.learning_rate == 5e-5
    assert recipe.training.checkpoint_every * 10 == recipe.training.steps


def test_a_filled_preset_keeps_its_comments_and_holds_the_words(tmp_path: Path) -> None:
    (tmp_path / "Müller's owl").mkdir()
    wishes = PresetInputs(tmp_path / "Müller's owl", 'qxz "owl"\\', "some/hub-id", "", "tawny owl")
    text, recipe = fill("sd15_subject", wishes, folder=tmp_path)
    comments = [line.partition("#")[2] for line in preset_text("sd15_subject").splitlines() if "#" in line]
    assert all(comment in text for comment in comments)
    assert recipe.data.images == tmp_path / "Müller's owl" and 'images = "Müller\'s owl"' in text
    assert recipe.data.trigger == 'qxz "owl"\\ tawny owl' and recipe.data.class_words == "tawny owl"
    assert recipe.base.model == "some/hub-id" and recipe.name == "M_ller_s_owl"
    assert recipe.data.instance_prompt == 'a photo of qxz "owl"\\ tawny owl'
    assert recipe.samples.prompts == (
        'a photo of qxz "owl"\\ tawny owl on a beach',
        'a photo of qxz "owl"\\ tawny owl in front of a castle',
        'an oil painting of qxz "owl"\\ tawny owl',
        "a photo of a tawny owl on a beach",
    )
    untouched = tomllib.loads(preset_text("sd15_subject"))["training"]
    assert tomllib.loads(text)["training"] == untouched


@pytest.mark.parametrize(
    ("trigger", "word", "joined"),
    [
        ("zwx", "dog", "zwx dog"),
        ("zwx Dog", "dog", "zwx Dog"),
        ("zwx hotdog", "dog", "zwx hotdog dog"),
        ("a", "", "a"),
        ("Bella dog", "dog", "Bella dog"),
        ("zwx robot", "red robot", "zwx robot"),
        ("zwx robot", "robot arm", "zwx robot arm"),
        ("zwx", "red robot", "zwx red robot"),
    ],
)
def test_the_class_stands_behind_a_trigger_that_does_not_say_it(trigger: str, word: str, joined: str) -> None:
    assert with_class(trigger, word) == joined


@pytest.mark.parametrize("name", preset_names())
def test_init_writes_a_recipe_that_loads_and_says_what_to_do_next(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my foxes").mkdir()
    Path("base.safetensors").touch()
    command = ["init", name, "--images", "my foxes", "--base", "base.safetensors"]
    code, out, _ = run([*command, "--trigger", "qxz fox", "--class-word", "fox"], capsys)
    assert code == 0
    recipe = load_recipe(Path("my_foxes.toml"))
    assert recipe.data.images == tmp_path / "my foxes" and recipe.base.model == str(
        tmp_path / "base.safetensors"
    )
    assert recipe.data.trigger == "qxz fox" and recipe.data.class_words == "fox"
    assert sum("qxz fox" in prompt for prompt in recipe.samples.prompts) >= 1
    assert not [prompt for prompt in recipe.samples.prompts if "zwx" in prompt or "dog" in prompt]
    assert [(one.token, one.start) for one in recipe.tokens] == [("qxz", "fox")] * (name in WITH_TOKENS)
    for verb in ("doctor", "plan", "train"):
        assert f"lora-studio {verb} my_foxes.toml" in " ".join(out.split())
    code, _, err = run([*command, "--trigger", "other fox", "--class-word", "fox"], capsys)
    assert code == 2 and "my_foxes.toml is there already and stays as it is" in err
    assert load_recipe(Path("my_foxes.toml")) == recipe


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["sdxl_stile", "--images", ".", "--trigger", "a"],
            "unknown preset 'sdxl_stile'; did you mean 'sdxl_style'",
        ),
        (["sd15_style", "--images", "nowhere", "--trigger", "a"], "there is no folder nowhere"),
        (["sd15_style", "--images", "."], "init needs --images"),
        (["sd15_subject", "--images", ".", "--trigger", "zwx"], "needs --class-word: what 'zwx' is one of"),
        (["sd15_style", "--images", ".", "--trigger", "a", "--name", "a b"], "name is 'a b'"),
        (
            ["sdxl_pivotal", "--images", ".", "--trigger", "my new", "--class-word", "dog"],
            "learns one new word, but --trigger 'my new dog' has 2 beside its class 'dog'",
        ),
        (["sd15_style", "--images", ".", "--trigger", "a", "--out", "no/where.toml"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(["init", *arguments], capsys)
    assert code == 2 and words in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_list_has_a_line_for_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["init", "--list"], capsys)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == preset_names()
    assert all(len(line.split()) > 5 for line in out.splitlines())


@pytest.mark.slow
def test_a_wheel_holds_the_presets_and_init_finds_them_there(tmp_path: Path) -> None:
    build = (
        "import os, sys; os.chdir(sys.argv[1]); from setuptools.build_meta import build_wheel; "
        "build_wheel(sys.argv[2])"
    )
    source = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if name.startswith(("lora_studio", "recipes")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", build, str(source), str(tmp_path)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    (tmp_path / "images").mkdir()
    script = (
        "import sys; sys.path.insert(0, 'installed'); from lora_studio import cli; "
        "assert 'installed' in cli.__file__; sys.exit(cli.guarded(lambda: cli.app(sys.argv[1:])))"
    )
    options = ["init", "sdxl_style", "--images", "images", "--trigger", "zwx style"]
    subprocess.run([sys.executable, "-P", "-c", script, *options], cwd=tmp_path, check=True, env={"PATH": ""})
    assert load_recipe(tmp_path / "images.toml").data.resolution == 1024
