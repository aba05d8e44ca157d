"""adapter.init_from and [[base.loras]]: finished LoRA files that a run begins with or stands on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from ready import prepared
from safetensors.torch import load_file, save_file
from tiny import recipe_text
from torch import Tensor

from lora_studio.errors import RecipeError
from lora_studio.families.loading import load_base
from lora_studio.lora_file.lora_file import open_lora
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.training.finish import Finished
from lora_studio.training.prepare.base_model import base_of as loaded_base
from lora_studio.training.report.adapters import adapter_notes
from lora_studio.training.session import train

BaseOf = Callable[[str], Path]
PLACES = ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.attentions.0.proj_in")
ALPHAS = (3.0, 1.0)


def lora_file(
    path: Path, base: Path, *, rank: int = 2, text: bool = False, alphas: tuple[float, ...] = ALPHAS
) -> dict[str, Tensor]:
    """A file in the kohya format, written here; layer -> its change, by the formula."""
    family = load_base(str(base))
    places = [("unet", place) for place in PLACES]
    if text:
        places.append(("text_encoder", "text_model.encoder.layers.0.mlp.fc1"))
    tensors, changes = {}, {}
    for number, (part, place) in enumerate(places):
        name, weight = family.ui_name(part, place), family.layer(part, place).weight
        down = torch.randn(rank, *weight.shape[1:], generator=generator(name, "down")) / 8
        up = torch.randn(len(weight), rank, *(1,) * (weight.ndim - 2), generator=generator(name, "up")) / 8
        alpha = alphas[number % len(alphas)]
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up.contiguous()}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
        product = (up.flatten(1).double() @ down.flatten(1).double()) * alpha / rank
        changes[f"{part}.{place}"] = product.view(weight.shape)
    save_file(tensors, path)
    return changes


def recipe_of(folder: Path, images: Path, base: Path, *changes: str, extra: str = "") -> Recipe:
    (folder / "warm.toml").write_text(recipe_text(images, str(base), steps=2, extra=extra), "utf-8")
    return load_recipe(folder / "warm.toml", changes=changes)


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
@pytest.mark.parametrize("options", [(), ("adapter.rank=3", "adapter.alpha=1", "adapter.rslora=true")])
def test_at_step_zero_the_change_of_every_weight_is_the_files(
    name: str, options: tuple[str, ...], base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    """Whatever rank and alpha the recipe has: held against weights that were merged by the formula."""
    changes = lora_file(tmp_path / "a.safetensors", base_of(name))
    change = "adapter.init_from=a.safetensors"  # beside the recipe
    session = prepared(recipe_of(tmp_path, images, base_of(name), change, *options), tmp_path / "run")
    found = session.adapters.delta()
    for key, delta in found.items():
        expected = changes.get(key, torch.zeros_like(delta))
        torch.testing.assert_close(delta.double(), expected.double(), atol=1e-7, rtol=2e-6)
    merged = load_base(str(base_of(name)))
    for place in PLACES:
        weight = merged.layer("unet", place).weight
        weight.data.add_(changes[f"unet.{place}"].to(weight))
    latents = torch.randn(1, 4, 16, 16, generator=generator("x"))
    session.family.place(torch.device("cpu"), *session.family.parts)
    answers = [
        family.denoise(latents, torch.tensor([500]), family.encode_text(["a cat"]), torch.full((1, 6), 64.0))
        for family in (session.family, merged)
    ]
    torch.testing.assert_close(*answers, atol=2e-6, rtol=1e-4)
    for layer in session.adapters.layers:
        if layer.path in PLACES:  # what the file has no ranks for can still learn
            assert layer.tensors["down"].flatten(1).norm(dim=1).all() and not layer.tensors["up"][:, 2:].any()
    said = f"2 layers begin as a.safetensors has them, the other {len(found) - 2} as ever"
    assert said in adapter_notes(session.recipe, session.adapters)[0]


def test_a_files_own_dtype_alpha_and_extra_zero_layers_are_read_as_uis_do(
    tiny_base: Path, images: Path, tmp_path: Path
) -> None:
    """int64 alphas, as kohya writes them; none, which is the rank; a companion that does nothing."""
    lora_file(tmp_path / "a.safetensors", tiny_base, text=True)
    tensors = {key: tensor.half() for key, tensor in load_file(tmp_path / "a.safetensors").items()}
    first, second, text = (key.removesuffix(".alpha") for key in sorted(tensors) if key.endswith(".alpha"))
    assert "lora_te" in first
    tensors[f"{second}.alpha"] = torch.tensor([4])
    del tensors[f"{text}.alpha"]
    tensors[f"{first}.lora_up.weight"].zero_()
    save_file(tensors, tmp_path / "b.safetensors")
    session = prepared(recipe_of(tmp_path, images, tiny_base, "adapter.init_from=b.safetensors"), tmp_path)
    for layer in session.adapters.layers:
        name = session.family.ui_name(layer.part, layer.path)
        if name in (second, text):
            up, down = (tensors[f"{name}.lora_{end}.weight"].float().flatten(1) for end in ("up", "down"))
            expected = (up @ down * (2.0 if name == second else 1.0)).view(layer.delta().shape)
            torch.testing.assert_close(layer.delta(), expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        (
            "rank 8",
            (),
            "has rank 8 in a.safetensors, but 4 in the recipe, as have 2 layers in all; set adapter.r",
        ),
        (
            "text",
            (),
            "changes 1 layers that this recipe does not train, lora_te_text_model_encoder_layers_0_mlp_",
        ),
        ("sdxl", (), "of 2 layers of a.safetensors are not in this base, first lora_unet_middle_block_1"),
        ("sd2", (), "but this base has one of"),
        ("loha", (), "is not plain LoRA: 1 tensor of another kind, first lora_unet_x.hada_w1_a"),
        ("not finite", (), "is not a complete LoRA file: 1 of 2 layers"),
        ("good", ("adapter.kind=lokr",), "does not go with adapter.kind = 'lokr'"),
        ("good", ("adapter.start=pissa",), "adapter.start = 'pissa'"),
        ("missing", (), "but there is no such file"),
        ("folder", (), "A run is continued with --resume"),
        ("checkpoint", (), "is the checkpoint of a run; continue that run with --resume"),
    ],
)
def test_a_file_that_cannot_be_begun_with_is_refused_before_an_image_is_read(
    case: str, changes: tuple[str, ...], words: str, base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    other = base_of(case if case in ("sdxl", "sd2") else "sd15")
    lora_file(path, other, rank=8 if case == "rank 8" else 2, text=case == "text")
    tensors = load_file(path)
    if case == "loha":
        save_file(tensors | {"lora_unet_x.hada_w1_a": torch.ones(2, 2)}, path)
    elif case == "not finite":
        save_file({key: one / 0 if "to_q.lora_up" in key else one for key, one in tensors.items()}, path)
    elif case == "checkpoint":
        save_file({"unet.mid_block.down": torch.ones(2, 2), "unet.mid_block.up": torch.ones(2, 2)}, path)
    elif case in ("missing", "folder"):
        path.unlink()
        if case == "folder":
            path.mkdir()
    recipe = recipe_of(tmp_path, images, base_of("sd15"), "adapter.init_from=a.safetensors", *changes)
    with pytest.raises(RecipeError) as caught:
        prepared(recipe, tmp_path / "run")
    assert words in str(caught.value) and not (tmp_path / "run").exists()


LORAS = '[[base.loras]]\nfile = "a.safetensors"\nstrength = 0.5\n[[base.loras]]\nfile = "b.safetensors"\n'


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
def test_loras_of_the_base_are_merged_into_its_weights(
    name: str, base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    """Against the formula, and against diffusers with the same files and strengths.

    With one alpha in each: diffusers loses those of some layers otherwise.
    """
    both = [
        lora_file(tmp_path / f"{one}.safetensors", base_of(name), text=True, rank=r, alphas=(3.0,))
        for one, r in (("a", 2), ("b", 3))
    ]
    family = loaded_base(recipe_of(tmp_path, images, base_of(name), extra=LORAS))
    plain = load_base(str(base_of(name)))
    for key in both[0]:
        part, _, path = key.partition(".")
        expected = plain.layer(part, path).weight.double() + 0.5 * both[0][key] + both[1][key]
        torch.testing.assert_close(family.layer(part, path).weight.double(), expected, atol=1e-6, rtol=1e-6)
    theirs = DiffusionPipeline.from_pretrained(base_of(name), dtype=torch.float32, local_files_only=True)
    for adapter, strength in (("a", 0.5), ("b", 1.0)):
        theirs.load_lora_weights(tmp_path, weight_name=f"{adapter}.safetensors")
        theirs.fuse_lora(lora_scale=strength)
        theirs.unload_lora_weights()
    moved = 0
    for part in plain.targets:
        other = dict(getattr(theirs, part).named_parameters())
        before = dict(plain.parts[part].named_parameters())
        for key, tensor in family.parts[part].named_parameters():
            torch.testing.assert_close(tensor, other[key], atol=2e-6, rtol=1e-4)
            moved += not torch.equal(tensor, before[key])
    assert moved == len(both[0])
    assert family.fingerprint("unet") != plain.fingerprint("unet")
    assert "a.safetensors is merged into it with a strength of 0.5: 3 layers are changed" in family.notes[-2]


def test_a_run_on_top_of_loras_says_that_it_needs_them(base_of: BaseOf, images: Path, tmp_path: Path) -> None:
    for name in "ab":
        lora_file(tmp_path / f"{name}.safetensors", base_of("sdxl"))
    result = train(recipe_of(tmp_path, images, base_of("sdxl"), extra=LORAS), tmp_path / "run")
    assert isinstance(result, Finished) and result.report.ok
    metadata = open_lora(result.lora_file).metadata
    digests = [hashlib.sha256((tmp_path / f"{name}.safetensors").read_bytes()).hexdigest() for name in "ab"]
    assert json.loads(metadata["lora_studio.base_loras"]) == [[digests[0], 0.5], [digests[1], 1.0]]
    assert f"needs them: sha256 {digests[0][:10]} at 0.5" in metadata["ss_training_comment"]
    assert "a.safetensors" not in str(metadata) and str(tmp_path) not in str(metadata)
    merged = loaded_base(recipe_of(tmp_path, images, base_of("sdxl"), extra=LORAS))
    assert metadata["lora_studio.base_fingerprint"] == merged.fingerprint("unet")


def test_a_lora_of_another_base_is_not_merged(base_of: BaseOf, images: Path, tmp_path: Path) -> None:
    lora_file(tmp_path / "a.safetensors", base_of("sdxl"))
    lora_file(tmp_path / "b.safetensors", base_of("sd15"))
    with pytest.raises(RecipeError, match=r"base.loras\[0\].file: 2 of 2 layers .* not in this base"):
        loaded_base(recipe_of(tmp_path, images, base_of("sd15"), extra=LORAS))


def test_a_resume_is_no_warm_start_and_wants_the_files_it_began_with(
    tiny_base: Path, images: Path, tmp_path: Path
) -> None:
    lora_file(tmp_path / "a.safetensors", tiny_base)
    lora_file(tmp_path / "b.safetensors", tiny_base, rank=1)
    run, first = tmp_path / "run", ("adapter.init_from=a.safetensors", "training.lr_schedule=constant")
    result = train(recipe_of(tmp_path, images, tiny_base, *first), run)
    assert isinstance(result, Finished)
    on = recipe_of(tmp_path, images, tiny_base, *first, "training.steps=3")
    other = recipe_of(tmp_path, images, tiny_base, "adapter.init_from=b.safetensors", first[1])
    with pytest.raises(RecipeError, match=r"was started when adapter\.init_from held another file"):
        train(other, run, resume=True)
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes())
    with pytest.raises(RecipeError, match=r"was started when adapter\.init_from held another file"):
        train(on, run, resume=True)
    (tmp_path / "a.safetensors").write_bytes(content)
    assert isinstance(train(on, run, resume=True), Finished)
    trained, begun = (
        load_file(run / f"checkpoints/step_00000{step}/adapters.safetensors") for step in (3, 2)
    )
    assert any(not torch.equal(trained[key], begun[key]) for key in begun)


def test_what_a_warm_start_begins_with_is_measured_at_step_zero(
    base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    """Not the base, beside which everything that the file had learned would look learned now."""
    base, rows = base_of("sd15"), {}
    lora_file(tmp_path / "start.safetensors", base)
    for name, begins in {
        "warm": ("adapter.init_from=start.safetensors", "adapter.rank=2"),
        "cold": (),
    }.items():
        recipe = recipe_of(tmp_path, images, base, "validation.count=1", "training.steps=1", *begins)
        assert isinstance(train(recipe, tmp_path / name), Finished)
        lines = (tmp_path / name / "validation.jsonl").read_text("utf-8").splitlines()
        rows[name] = json.loads(lines[0])
    assert {row["step"] for row in rows.values()} == {0}
    assert rows["cold"]["relative"] == 1 and rows["warm"]["relative"] != 1
