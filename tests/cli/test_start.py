"""`start` and `init` look at the folder and the base before a recipe is written, and say what they see."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from console import run
from PIL import Image
from safetensors.torch import save_file

from lora_studio.data.scan.glance import Glance, glance, shared_words
from lora_studio.errors import BaseModelError, RecipeError
from lora_studio.families.loading import POCKET_FOLDER, load_base
from lora_studio.families.original.glance import BaseGlance, glance_at_base
from lora_studio.families.original.transformers import TransformerKind
from lora_studio.pocket import pocket_note
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.presets import preset_base, preset_names
from lora_studio.training import starting

XL, FIRST = "stabilityai/stable-diffusion-xl-base-1.0", "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bare(images: Path) -> Path:
    """The images in a folder of the working directory, without captions."""
    folder = Path("my photos")
    folder.mkdir()
    for one in images.iterdir():
        if one.suffix != ".txt":
            shutil.copy(one, folder)
    return folder


@pytest.fixture
def flux() -> Path:
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 2)}, "flux.safetensors")
    return Path("flux.safetensors")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_from_a_folder_to_a_planned_recipe_without_a_question(images, tiny_base, capsys) -> None:
    shutil.copytree(images, "my_prints")
    code, out, _ = run(["start", "my_prints", "--base", str(tiny_base)], capsys)
    assert code == 0, out
    recipe = load_recipe(Path("my_prints.toml"))
    assert recipe.data.trigger == "zwx style"  # which ends every caption
    assert "my_prints: 5 images, all with a caption" in out and "pocket_style, a style on" in out
    assert "5 images to train on" in out and "fits into" in out  # the doctor, the plan
    assert out.rstrip().endswith("next: lora-studio train my_prints.toml")


def test_a_style_of_images_without_captions_is_planned_too(bare, tiny_base, capsys) -> None:
    code, out, _ = run(["start", str(bare), "--base", str(tiny_base)], capsys)
    assert code == 0, out
    recipe = load_recipe(Path("my_photos.toml"))
    assert recipe.objective.preservation > 0  # of what is left without the trigger
    assert recipe.data.instance_prompt == f"an image, {recipe.data.trigger}"


def test_in_a_terminal_it_asks_and_asks_again(bare, tiny_base, monkeypatch, capsys) -> None:
    answers = [str(tiny_base), "stile", "subject", "", "", "fox", "", "blurry", ""]
    monkeypatch.setattr(sys, "stdin", Terminal("\n".join(answers) + "\n"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, _ = run(["start", str(bare)], capsys)
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out)
    assert code == 0, said
    assert "unknown purpose 'stile'; did you mean 'style'?" in said
    assert "--class-word is missing: what it is one of" in said
    assert "unknown captioner 'blurry'" in said
    recipe = load_recipe(Path("my_photos.toml"))
    assert (recipe.data.trigger, recipe.data.class_words) == ("mypht fox", "fox")
    assert recipe.data.instance_prompt == "a photo of mypht fox"  # of the captions: the same for all
    assert sys.stdin.read() == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "FOLDER is missing"),
        (["nowhere"], "there is no folder nowhere"),
        (["empty"], "empty holds no images; put 20 to 50 there for a style"),
        (["my photos", "--learn", "faces"], "did you mean 'face'"),
        (["my photos", "--learn", "subject"], "--class-word is missing"),
        (["my photos", "--base", "flux.safetensors"], "is a Flux model"),
        (["my photos", "--base", "a/b"], "name a preset with --preset"),
        (["my photos", "--base", "a.safetensors"], "there is no file at a.safetensors"),
        (["my photos", "--preset", "sdxl_style", "--base", FIRST], "but the preset sdxl_style is for"),
    ],
)
def test_what_cannot_be_started_is_one_sentence_and_nothing_is_written(
    words, said, bare, flux, capsys
) -> None:
    Path("empty").mkdir()
    code, _, err = run(["start", *words], capsys)
    assert code == 2 and said in err and "Traceback" not in err
    assert not list(Path().glob("*.toml"))


def test_captions_are_written_if_that_is_asked_for(bare, tiny_base, capsys) -> None:
    for number, one in enumerate(sorted(bare.iterdir())):
        one.rename(bare / f"fox {'abcde'[number]}{one.suffix}")
    words = ["--learn", "subject", "--class-word", "fox", "--captions", "filename", "--name", "rnr"]
    code, out, _ = run(["start", str(bare), "--base", str(tiny_base), *words], capsys)
    assert code == 0, out
    assert sorted(one.read_text("utf-8") for one in bare.glob("*.txt"))[0] == "rnr fox, fox a\n"
    assert len(glance(bare).captions) == 5 and "without a caption" not in out


def test_init_says_what_is_not_there_yet_and_what_base_it_is(capsys) -> None:
    Path("foxes").mkdir()
    code, out, _ = run(["init", "pocket_style", "--images", "foxes", "--trigger", "zwx style"], capsys)
    assert code == 0 and "foxes holds no images" in out and "next, when that is mended:" in out
    assert "simple shapes at 64 x 64 pixels" in " ".join(out.split())


def test_images_in_folders_of_the_folder_are_pointed_at(bare, capsys) -> None:
    code, _, err = run(["start", str(bare.parent)], capsys)
    assert code == 2 and f"give one of its folders that do: {bare.name}" in " ".join(err.split())


def test_init_says_that_no_image_has_a_caption(bare, capsys) -> None:
    style = ["init", "sd15_style", "--images", str(bare), "--trigger", "zwx style", "--name"]
    code, out, _ = run([*style, "a"], capsys)
    assert code == 0 and "5 images of 5 without a caption; `lora-studio caption 'my photos'`" in out
    subject = ["init", "pocket_subject", "--images", str(bare), "--trigger", "zwx", "--class-word", "fox"]
    code, out, _ = run([*subject, "--name", "b"], capsys)
    assert code == 0 and '5 images without a caption will have "a photo of zwx fox"' in out
    assert load_recipe(Path("b.toml")).data.instance_prompt == "a photo of zwx fox"


def test_init_refuses_a_base_of_another_kind_and_names_what_suits_it(bare, flux, base_of, capsys) -> None:
    command = ["init", "sdxl_style", "--images", str(bare), "--trigger", "a", "--base"]
    code, _, err = run([*command, str(flux)], capsys)
    assert code == 2 and "flux.safetensors is a Flux model" in err
    code, _, err = run([*command, FIRST], capsys)
    assert code == 2 and "Stable Diffusion 1.x at 512 pixels" in err and "sd15_style" in err
    code, _, err = run([*command, str(base_of("sdxl"))], capsys)  # a miniature
    assert code == 2 and "at 64 pixels" in err
    assert not list(Path().glob("*.toml"))


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
def test_a_folders_kind_and_size_are_those_that_it_is_loaded_with(name, base_of) -> None:
    seen, loaded = glance_at_base(str(base_of(name))), load_base(str(base_of(name)), weights=False)
    assert seen.kind is type(loaded).kind and seen.side == loaded.native_side


def test_a_folder_that_is_no_base_is_a_doubt_and_a_transformer_a_refusal() -> None:
    Path("x").mkdir()
    assert "is no diffusers folder" in glance_at_base("x").doubt
    Path("x/model_index.json").write_text("[]", "utf-8")
    assert "does not hold a JSON object" in glance_at_base("x").doubt
    Path("x/model_index.json").write_text(json.dumps({"transformer": ["a", "b"]}), "utf-8")
    Path("x/transformer").mkdir()
    Path("x/transformer/config.json").write_text('{"_class_name": "LTXVideoTransformer3DModel"}', "utf-8")
    with pytest.raises(BaseModelError, match="has no UNet and no transformer that can be trained"):
        glance_at_base("x")


WITHOUT = TransformerKind("Made-up", "MadeUpTransformer2DModel", "made_up")


def test_a_base_that_no_preset_is_made_for_is_refused_with_what_to_do() -> None:
    with pytest.raises(RecipeError, match=r"^no preset is made for Made-up yet; "):
        starting.choose_preset(BaseGlance("x", WITHOUT, 1024), "style", Glance(3, (), 0))


def preset(base: str, purpose: str, *, masks: int = 0) -> str:
    found = glance(Path("my photos"))
    found = type(found)(found.images, found.captions, masks)
    return starting.choose_preset(glance_at_base(base), purpose, found).name


def test_the_preset_fits_base_purpose_masks_and_memory(bare, monkeypatch) -> None:
    monkeypatch.setattr(starting, "gpu_memory_gib", lambda: None)
    assert preset("pocket", "style") == "pocket_style" and preset("pocket", "face") == "pocket_subject"
    assert preset(FIRST, "face") == "sd15_subject" and preset(FIRST, "face", masks=5) == "sd15_face"
    assert preset(XL, "style") == "sdxl_style" and preset(XL, "face", masks=5) == "sdxl_subject"
    assert preset("stabilityai/stable-diffusion-2-1", "subject") == "sd21_subject"
    monkeypatch.setattr(starting, "gpu_memory_gib", lambda: 7.7)
    assert preset(XL, "subject") == "sdxl_8gb" and preset(FIRST, "style") == "sd15_style"
    monkeypatch.setattr(starting, "gpu_memory_gib", lambda: 12.0)
    assert preset(XL, "subject") == "sdxl_subject"


def test_every_presets_own_base_is_of_a_known_kind_and_suits_it() -> None:
    for name in preset_names():
        base = glance_at_base(preset_base(name))
        assert base.kind is not None and name in starting.presets_for(base)
        starting.check_base(name, base)
    with pytest.raises(RecipeError, match="take another base, or one of pocket_full"):
        starting.check_base("sdxl_style", glance_at_base("pocket"))
    assert BaseGlance("a/b").is_as(glance_at_base("pocket"))


def test_a_checkpoint_in_the_working_folder_is_the_default_base(flux) -> None:
    assert starting.default_base(Path()) == "pocket"
    shutil.copy(
        POCKET_FOLDER / "unet" / "diffusion_pytorch_model.safetensors", "a.safetensors"
    )  # no whole one
    assert starting.default_base(Path()) == "pocket"


@pytest.mark.parametrize(
    ("captions", "shared"),
    [
        (["a fox, zwx style", "two ZWX style owls"], "zwx style"),
        (["a vkq robot in a meadow", "a vkq robot"], "vkq robot"),
        (["a photo of a dog", "a photo of a cat"], ""),
        (["one alone"], ""),
        ([], ""),
    ],
)
def test_the_words_that_all_captions_share(captions: list[str], shared: str) -> None:
    assert shared_words(captions).casefold() == shared


@pytest.mark.parametrize(
    ("name", "word"),
    [("my_garden", "mygrd"), ("Bella", "bll"), ("Müller", "mllr"), ("猫", "zwx"), ("a1", "zwx")],
)
def test_a_new_word_is_made_of_the_name(name: str, word: str) -> None:
    assert starting.new_word(name) == word


def test_previews_are_of_the_users_own_captions(images, capsys) -> None:
    shutil.copytree(images, "prints")
    run(["init", "sd15_style", "--images", "prints", "--trigger", "zwx style"], capsys)
    prompts = load_recipe(Path("prints.toml")).samples.prompts
    own = [one.read_text("utf-8") for one in Path("prints").glob("*.txt")]
    assert set(prompts[:2]) <= set(own) and len(prompts) == 4
    assert prompts[2:] == ("a fox in the snow, zwx style", "a fox in the snow")


def test_a_folder_at_a_glance_counts_what_a_scan_finds(bare) -> None:
    Image.new("L", (8, 8), 255).save(bare / "00.mask.png")
    (bare / "00.txt").write_text("a fox", "utf-8")
    (bare / "01.txt").write_text("", "utf-8")
    (bare / "notes.md").write_text("x", "utf-8")
    found = glance(bare)
    assert (found.images, found.captions, found.masks) == (5, ("a fox",), 1)
    assert found.text == "5 images, 1 of them with a caption, 1 with a mask"


def test_the_pocket_base_says_what_it_draws_in_doctor_and_plan(images, capsys) -> None:
    assert load_base("pocket", weights=False).notes == (pocket_note("pocket"),)
    code, out, _ = run(["doctor", str(images), "--base", "pocket"], capsys)
    assert code == 0 and f"base: {pocket_note('pocket')}" in out
