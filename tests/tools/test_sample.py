"""`sample`: images of a finished file or of a run's checkpoints, at any strength, the base beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from console import run
from lora_files import write_random_lora
from PIL import Image
from safetensors.torch import save_file
from tiny import SD15_LAYERS, recipe_text

from lora_studio.evaluate.previews import render
from lora_studio.families.loading import load_base
from lora_studio.recipe.training import SamplesConfig
from lora_studio.tools.sample import SampleRequest, sample
from lora_studio.tools.sample.source import FileSource, RunSource
from lora_studio.training.session import train

PROMPT = "a fox, zwx style"
EXTRA = f"""
[export]
dtype = "float32"
[samples]
prompts = ["{PROMPT}", "a fox"]
steps = 2
guidance = 2
"""


def trained(folder: Path, images: Path, base: Path, *, kind: str = "lora", extra: str = "") -> Path:
    text = recipe_text(images, str(base), extra=EXTRA + extra).replace("1e-3", "5e-2")
    (folder / "a.toml").write_text(text.replace("[adapter]", f'[adapter]\nkind = "{kind}"'), "utf-8")
    train(folder / "a.toml", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_base: Path, images: Path) -> Path:
    return trained(tmp_path_factory.mktemp("sampled"), images, tiny_base)


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), np.int16)


def difference(one: str | Path, other: str | Path | Image.Image) -> int:
    other = np.asarray(other, np.int16) if isinstance(other, Image.Image) else pixels(other)
    return int(np.abs(pixels(one) - other).max())


def test_a_runs_images_are_its_previews_again(finished: Path, tmp_path: Path) -> None:
    found = sample(finished, SampleRequest(grid=frozenset({"prompts"}), folder=tmp_path / "out"))
    assert [(one.checkpoint, one.strength) for one in found.images] == [(None, None)] * 2 + [(4, 1.0)] * 2
    for one, name in zip(found.images, ("base_00", "base_01", "tuned_00", "tuned_01"), strict=True):
        assert difference(one.file, finished / "previews" / f"{name}.png") == 0
    assert difference(found.images[0].file, found.images[2].file) > 20


def test_a_file_is_drawn_as_diffusers_draws_it_at_that_strength(finished, tiny_base, tmp_path) -> None:
    file = finished / "tiny.safetensors"
    request = SampleRequest(strengths=(0.5,), seeds=(7,), base=str(tiny_base), side=64, steps=2, guidance=2)
    found = sample(file, SampleRequest(**{**vars(request), "prompts": (PROMPT,), "folder": tmp_path}))
    family = load_base(str(tiny_base))
    pipeline = family.pipeline()
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    pipeline.fuse_lora(lora_scale=0.5)
    config = SamplesConfig(prompts=(PROMPT,), seed=7, steps=2, guidance=2)
    (expected,) = render(family, config, side=64)
    assert difference(found.images[1].file, expected) <= 2  # of 255: the order of sums
    assert difference(found.images[0].file, expected) > 10


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_run_at_a_strength_is_its_file_at_that_strength(
    kind, finished, tiny_base, images, tmp_path
) -> None:
    folder = finished if kind == "lora" else trained(tmp_path, images, tiny_base, kind=kind)
    request = SampleRequest(strengths=(0.5, 1.0), folder=tmp_path / "run_images")
    of_run = sample(folder, request).images
    of_file = sample(folder / "tiny.safetensors", SampleRequest(strengths=(0.5, 1.0), folder=tmp_path / "b"))
    for one, other in zip(of_run, of_file.images, strict=True):  # DoRA's change is a plain one in the file
        assert difference(one.file, other.file) <= 3
    assert difference(of_run[1].file, of_run[2].file) > 5


@pytest.mark.parametrize("kind", ["file", "run"])
def test_afterwards_the_base_is_as_it_was_bit_for_bit(kind, finished) -> None:
    target = finished / "tiny.safetensors" if kind == "file" else finished
    source = (FileSource if kind == "file" else RunSource)(target, SampleRequest())
    denoiser, step = source.family.parts[source.family.denoiser], 4 if kind == "run" else None
    with source.drawing(step, 1.0):
        """From here on the adapters are those of the checkpoint."""
    before = {name: one.clone() for name, one in denoiser.state_dict().items()}
    with source.drawing(step, 0.5):
        changed = [name for name, one in denoiser.state_dict().items() if not one.equal(before[name])]
    assert len(changed) == SD15_LAYERS
    assert all(one.equal(before[name]) for name, one in denoiser.state_dict().items())


def test_a_grid_has_every_checkpoint_and_strength_and_seed(finished, tmp_path, capsys) -> None:
    words = ["sample", str(finished), "--prompt", PROMPT, "--seeds", "1-2", "-o", str(tmp_path), "--json"]
    code, out, _ = run([*words, "--grid", "prompts x strengths x checkpoints"], capsys)
    assert code == 0
    told = json.loads(out)
    found = {(one["checkpoint"], one["strength"], one["seed"]) for one in told["images"]}
    own = {(step, strength, seed) for step in (2, 4) for strength in (0.5, 0.75, 1, 1.25) for seed in (1, 2)}
    assert found == own | {(None, None, 1), (None, None, 2)} and len(told["images"]) == 18
    with Image.open(told["sheet"]) as sheet:
        assert sheet.width > 9 * 250 and sheet.height > 2 * 250
    assert Path(told["sheet"]) == tmp_path / "001.png"
    code, _, _ = run([*words, "--checkpoint", "2", "--strength", "-0.5"], capsys)
    assert code == 0 and (tmp_path / "002.png").is_file()  # nothing is replaced
    assert json.loads((tmp_path / "002" / "images.json").read_text("utf-8"))[-1]["strength"] == -0.5


def test_an_older_checkpoint_is_another_image(finished, tmp_path) -> None:
    found = sample(finished, SampleRequest(checkpoints=(2, 4), folder=tmp_path)).images
    assert [one.checkpoint for one in found] == [None, 2, 4]
    assert difference(found[1].file, found[2].file) > 5


def test_a_learned_word_is_in_a_runs_images_at_every_strength(tiny_base, images, tmp_path) -> None:
    folder = trained(tmp_path, images, tiny_base, extra='[[tokens]]\ntoken = "zwx"\nstart = "a"\n')
    found = sample(
        folder, SampleRequest(prompts=("zwx",), strengths=(0.0, 1.0), folder=tmp_path / "o")
    ).images
    assert difference(found[0].file, found[1].file) > 0  # at 0 the word alone
    assert difference(found[1].file, found[2].file) > 5
    alone = FileSource(folder / "tiny.safetensors", SampleRequest())
    assert alone.lacking_words == ("zwx",)  # an embedding of its own, which an evaluation says


@pytest.mark.parametrize("prefix", ["diffusion_model", "transformer"])
def test_a_transformers_file_is_added_to_its_base_in_any_spelling(base_of, tmp_path, prefix) -> None:
    path, base = "layers.1.attention.to_q", base_of("z_image")
    draw, width = torch.Generator().manual_seed(0), load_base(str(base)).parts["transformer"].config.dim
    down, up = torch.randn(4, width, generator=draw), torch.randn(width, 4, generator=draw)
    tensors = {f"{prefix}.{path}.lora_A.weight": down, f"{prefix}.{path}.lora_B.weight": up}
    save_file(tensors, tmp_path / "a.safetensors")
    source = FileSource(tmp_path / "a.safetensors", SampleRequest(base=str(base)))
    weight = source.family.layer("transformer", path).weight
    before = weight.detach().clone()
    with source.drawing(None, 0.5):
        assert torch.allclose(weight, before + 0.5 * up @ down, atol=1e-5)
    assert weight.equal(before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["FILE", "--checkpoint", "2"], "a file has no checkpoints"),
        (["FILE", "--grid", "sizes"], "--grid has 'sizes'; it is made of prompts, strengths, checkpoints"),
        (["FILE", "--strength", "11"], "it must be a number from -10 to 10"),
        (["FILE", "--strength", "nan"], "it must be a number from -10 to 10"),
        (["FILE", "--strength", "much"], "--strength has 'much', which is no number"),
        (["FILE", "--seeds", "1-9999"], "a range goes up, by at most 400"),
        (["FILE", "--seeds", "x"], "write whole numbers"),
        (["FILE", "--seeds", "1-300", "--strength", "1,2"], "that would be 900 images"),
        (["FILE", "--size", "65"], "must be a multiple of 8 from 8 to"),
        (["FILE", "--size", "0"], "--size is 0"),
        (["FILE", "--size", "80000"], "must be a multiple of 8 from 8 to"),
        (["FILE", "--steps", "0"], "--steps is 0"),
        (["FILE", "--guidance", "nan"], "--guidance is nan"),
        (["FILE", "--device", "cuda:9"], "which this machine does not have"),
        (["RUN", "--checkpoint", "3"], "there are those of 2, 4"),
        (["RUN", "--base", "pocket"], "--base is for a file"),
        (["OTHER"], "does not say which base it is for"),
        (["OTHER", "--base", "pocket"], "is not in this base"),
        (["nowhere.safetensors"], "nowhere.safetensors"),
        (["."], "is no run's folder"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(words, said, finished, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_random_lora(tmp_path / "other.safetensors", seed=0, shapes={"lora_unet_nothing": (8, 8)})
    names = {"FILE": str(finished / "tiny.safetensors"), "RUN": str(finished), "OTHER": "other.safetensors"}
    code, _, err = run(["sample", *(names.get(word, word) for word in words)], capsys)
    assert code == 2 and said in err and "Traceback" not in err, err
    assert [one.name for one in tmp_path.iterdir()] == ["other.safetensors"]
