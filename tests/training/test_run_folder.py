"""What a finished run leaves behind."""

from __future__ import annotations

import getpass
import json
import math
import socket
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from tiny import SD15_LAYERS

from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.evaluate.previews import render
from lora_studio.families.loading import load_base
from lora_studio.lora_file.lora_file import open_lora
from lora_studio.metadata.provenance import check_provenance
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.training import SamplesConfig
from lora_studio.training.finish import Finished
from lora_studio.training.loop.state import State, load_state


def test_the_run_folder_holds_everything(finished: Finished) -> None:
    names = {str(path.relative_to(finished.folder)) for path in finished.folder.rglob("*") if path.is_file()}
    wanted = {"recipe.toml", "manifest.jsonl", "metrics.jsonl", "loss.png", "tiny.safetensors", "verify.json"}
    wanted |= {"summary.json", "previews/step_000000.png", "previews/step_000004.png"}
    wanted |= {
        f"checkpoints/step_000004/{n}"
        for n in ("state.json", "adapters.safetensors", "optimizer.safetensors")
    }
    assert wanted <= names
    assert not [name for name in names if "tmp" in name]


def test_metrics_have_one_line_a_step_with_finite_loss(finished: Finished) -> None:
    rows = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)


def test_the_recipe_as_run_loads_and_is_complete(finished: Finished, recipe_file: Path) -> None:
    as_run = load_recipe(finished.folder / "recipe.toml")
    assert as_run == load_recipe(recipe_file)
    assert "max_grad_norm = 1.0" in (finished.folder / "recipe.toml").read_text()


def test_the_manifest_lists_every_image_without_local_paths(finished: Finished, images: Path) -> None:
    text = (finished.folder / "manifest.jsonl").read_text("utf-8")
    assert {json.loads(line)["name"] for line in text.splitlines()} == {
        p.name for p in images.iterdir() if p.suffix != ".txt"
    }
    assert str(images.parent) not in text


def test_nothing_of_the_users_is_in_the_bytes_of_the_file(
    finished: Finished, recipe_file: Path, images: Path, tiny_base: Path
) -> None:
    content = finished.lora_file.read_bytes().lower()
    captions = [one.read_text("utf-8").partition(",")[0] for one in images.glob("*.txt")]
    names = [
        "rosalinde",
        "hf_qqq",
        f"{images.name}/",
        f"/{getpass.getuser()}",
        socket.gethostname(),
        *captions,
    ]
    names += [str(one) for one in (images, images.parent, tiny_base, recipe_file, finished.folder)]
    files = [one.name for one in images.iterdir()]
    assert not [name for name in [*names, *files] if name.lower().encode() in content]
    assert recipe_file.parent.name == finished.folder.parent.name == "rosalinde.huber"
    assert b"zwx style" in content  # so that such a search finds what is there
    card = "".join(
        path.read_text("utf-8") for path in (finished.folder / "README.md", finished.folder / "tiny.json")
    )
    assert not [name for name in names if name.lower() in card.lower()]


def test_the_file_tells_how_it_was_trained(finished: Finished) -> None:
    with safe_open(finished.lora_file, framework="pt") as file:
        found = file.metadata()
    assert int(found["ss_num_epochs"]) == math.ceil(4 / int(found["ss_num_batches_per_epoch"]))
    assert found["ss_mixed_precision"] == "no" and found["ss_clip_skip"] == "None"
    assert found["ss_unet_lr"] == "0.001" and "ss_text_encoder_lr" not in found
    assert json.loads(found["ss_dataset_dirs"]) == {"1_images": {"n_repeats": 1, "img_count": 5}}
    assert json.loads(found["ss_tag_frequency"]) == {"trigger": {"zwx style": 5}}
    assert found["ss_network_dim"] == found["ss_network_alpha"] == "4"


def test_run_and_images_prove_where_the_file_came_from(finished: Finished, images: Path) -> None:
    assert finished.lora_file
    origin = check_provenance(finished.lora_file, [finished.folder, images])
    assert origin.proven and "the options that change what is learned" in origin.same


def test_previews_show_base_left_and_tuned_right(finished: Finished) -> None:
    before, after = (
        np.asarray(Image.open(finished.folder / "previews" / f"step_{step:06}.png"), float) for step in (0, 4)
    )
    assert before.shape == after.shape
    half = before.shape[1] // 2
    assert np.array_equal(before[:, :half], after[:, :half])
    assert np.array_equal(before[30:60, 20:200].shape, before[30:60, 20:200].shape)
    assert not np.array_equal(before[:, half:], after[:, half:])


def test_the_reloaded_file_draws_what_the_live_adapter_draws(finished: Finished, recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    samples = SamplesConfig(prompts=("a red ball, zwx style",), seed=5, steps=6, guidance=3.0)
    live = load_base(recipe.base.model)
    adapters = inject(
        live.parts,
        {"unet": live.targets["unet"]},
        AdapterOptions("lora", recipe.adapter.rank, recipe.adapter.alpha, recipe.training.seed),
        canonical_path=live.canonical_path,
    )
    optimizer = torch.optim.AdamW(adapters.parameters("unet"))
    assert load_state(finished.folder / "checkpoints" / "step_000004", State(adapters, optimizer)) == 4
    fresh = load_base(recipe.base.model)
    pipeline = fresh.pipeline()
    pipeline.load_lora_weights(finished.lora_file.parent, weight_name=finished.lora_file.name)
    drawn, redrawn = (np.asarray(render(family, samples, side=64)[0], int) for family in (live, fresh))
    base = np.asarray(render(load_base(recipe.base.model), samples, side=64)[0], int)
    assert np.abs(drawn - redrawn).max() <= 2
    assert np.abs(drawn - base).max() > 0


def test_diffusers_uses_every_key(finished: Finished, tiny_base: Path) -> None:
    family = load_base(str(tiny_base))
    family.pipeline().load_lora_weights(finished.lora_file.parent, weight_name=finished.lora_file.name)
    loaded = [m for m in family.parts["unet"].modules() if getattr(m, "lora_A", None)]
    assert len(loaded) == len(open_lora(finished.lora_file).layers) == SD15_LAYERS
