"""adapter.kind = "full": what is trained, what is kept, and the folder that a run ends with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from ready import prepared
from safetensors.torch import load_file, save_file
from tiny import recipe_text
from torch import Tensor, nn

from lora_studio.errors import ExportMismatch, RecipeError
from lora_studio.families.loading import load_base
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.finish import verified as finish_folder
from lora_studio.training.loop.step_result import GradientWatch
from lora_studio.training.planning import plan
from lora_studio.training.prepare import prepare
from lora_studio.training.report.adapters import adapter_notes
from lora_studio.training.session import train

BaseOf = Callable[[str], Path]
BOTH = ("adapter.text_encoder=true", "training.text_encoder_learning_rate=1e-3")
IDLE = (
    "encoder.layers.2.",
    "final_layer_norm.",
)  # of SDXL's first text encoder: nothing reads its last layer


def full_text(images: Path, base: Path, *, steps: int = 4, extra: str = "") -> str:
    text = recipe_text(images, str(base), steps=steps, extra=extra)
    return text.replace("rank = 4\nalpha = 4\n", 'kind = "full"\n')


def recipe_of(folder: Path, images: Path, base: Path, *changes: str, steps: int = 4) -> Recipe:
    path = folder / "full.toml"
    path.write_text(full_text(images, base, steps=steps), "utf-8")
    return load_recipe(path, changes=changes)


def weights_of(part: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in part.named_parameters()}


def test_trained_convolutions_keep_their_memory_format(base_of: BaseOf, images: Path, tmp_path: Path) -> None:
    session = prepared(recipe_of(tmp_path, images, base_of("sd15"), "machine.channels_last=true"), tmp_path)
    wide = [
        tensor
        for layer in session.adapters.layers
        for tensor in layer.tensors.values()
        if tensor.ndim == 4 and tensor.shape[1] > 1 and tensor.shape[2] > 1
    ]
    assert wide and all(one.is_contiguous(memory_format=torch.channels_last) for one in wide)


@pytest.mark.parametrize("name", ["sd15", "sd2 v", "sdxl"])
def test_every_tensor_of_the_chosen_parts_is_trained_and_only_those(
    name: str, base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    """Norms and biases, too; with checkpointing the gradients are the same."""
    found = []
    for checkpointing in ("false", "true"):
        change = f"machine.gradient_checkpointing={checkpointing}"
        session = prepared(recipe_of(tmp_path, images, base_of(name), *BOTH, change), tmp_path)
        base = load_base(str(base_of(name)))
        trained = session.adapters.named_parameters()
        (batch,) = session.loop.feed.of_step(1)
        session.loop.forward_backward(batch, *session.loop.draw_of(1, 0))
        found.append({key: one.grad for key, one in trained.items() if one.grad is not None})
    parts = [part for part in base.parts if part != "vae"]
    expected = sum(
        sum(not (name == "sdxl" and part == "text_encoder" and key.startswith(IDLE)) for key in own)
        for part in parts
        for own in [weights_of(base.parts[part])]
    )
    assert len(trained) == expected == len(found[0])
    assert not [key for key, gradient in found[0].items() if not gradient.any()]
    assert all(torch.equal(gradient, found[1][key]) for key, gradient in found[0].items())
    assert not any(p.requires_grad for p in session.family.parts["vae"].parameters())


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_one_step_is_torchs_own_on_the_modules(
    name: str, base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(
        tmp_path, images, base_of(name), "data.caption_dropout=0", "training.max_grad_norm=0.5"
    )
    session = prepared(recipe, tmp_path)
    plain = load_base(str(base_of(name)))
    unet = plain.parts["unet"].requires_grad_(True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=0.01)
    (batch,) = session.loop.feed.of_step(1)
    noised = session.loop.objective.noise(batch.latents, *session.loop.draw_of(1, 0))
    conditioning = plain.encode_text(batch.captions)
    answer = plain.denoise(noised.latents, noised.timestep, conditioning, batch.geometry)
    ((answer - noised.target).square().mean(dim=(1, 2, 3)) * noised.weight).mean().backward()
    gradients = {key: p.grad.clone() for key, p in unet.named_parameters() if p.grad is not None}
    nn.utils.clip_grad_norm_(unet.parameters(), 0.5)
    optimizer.step()
    session.loop.base_rates = [1e-3]
    session.loop.train_step(1, GradientWatch(session.adapters))
    session.run.close()
    ours = weights_of(session.family.parts["unet"])
    before = weights_of(load_base(str(base_of(name))).parts["unet"])
    for key, expected in unet.named_parameters():
        clear = gradients[key].abs() > 1e-6  # nearer to 0 Adam makes a whole step of rounding
        assert ((ours[key] - expected.detach()).abs() < 2e-6)[clear].all(), key
        assert not clear.any() or not torch.equal(ours[key], before[key])


def test_while_it_is_disabled_it_is_the_base_bit_for_bit_and_the_files_stay(
    base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    """In bfloat16, too, where the trained weights have more digits than the base's."""
    files = {path: path.read_bytes() for path in base_of("sdxl").rglob("*") if path.is_file()}
    for dtype in ("float32", "bfloat16"):
        changes = (*BOTH, f"base.dtype={dtype}", "objective.preservation=0.9")
        session = prepared(recipe_of(tmp_path, images, base_of("sdxl"), *changes), tmp_path)
        session.loop.run(1)
        session.run.close()
        session.family.place(session.machine.device, *session.family.parts)  # those that were dropped, too
        base = load_base(str(base_of("sdxl")))
        base.cast(getattr(torch, dtype))
        live = session.adapters.state()
        with session.adapters.disabled():
            for part in base.parts:
                own, expected = weights_of(session.family.parts[part]), weights_of(base.parts[part])
                assert own.keys() == expected.keys()
                assert all(
                    torch.equal(own[k], expected[k]) and own[k].dtype == expected[k].dtype for k in own
                )
        assert all(torch.equal(one, live[key]) for key, one in session.adapters.state().items())
        assert {one.dtype for one in session.adapters.named_parameters().values()} == {torch.float32}
        assert all(delta.any() for delta in session.adapters.delta().values())
    assert all(path.read_bytes() == content for path, content in files.items())


def test_in_bfloat16_it_begins_with_all_the_bases_digits(
    base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    session = prepared(recipe_of(tmp_path, images, base_of("sd2"), "base.dtype=bfloat16"), tmp_path)
    exact = weights_of(load_base(str(base_of("sd2"))).parts["unet"])
    assert all(torch.equal(one, exact[key]) for key, one in weights_of(session.family.parts["unet"]).items())


RULES = """
[[adapter.layers]]
pattern = "*"
train = false
[[adapter.layers]]
pattern = "*attn2*"
train = true
learning_rate = 5e-4
[[adapter.layers]]
pattern = "*.bias"
train = false
[[adapter.layers]]
pattern = "mid_block.resnets.0.norm1"
train = true
stop_at = 0.5
"""


def test_chosen_layers_and_tensors_learn_and_everything_else_stays(
    tiny_base: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "rules.toml").write_text(full_text(images, tiny_base, extra=RULES), "utf-8")
    session = prepare(load_recipe(tmp_path / "rules.toml"), Run(tmp_path), ignore_events)
    before = weights_of(session.family.parts["unet"])
    halfway: dict[str, Tensor] = {}
    session.loop.save = lambda step: halfway.update(session.adapters.state()) if step == 2 else None
    session.loop.run(1)
    session.run.close()
    after = weights_of(session.family.parts["unet"])
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    norm = {f"mid_block.resnets.0.norm1.{end}" for end in ("weight", "bias")}
    wanted = {key for key in before if "attn2" in key and not key.endswith(".bias")} | norm
    assert moved == wanted == {key.removeprefix("unet.") for key in session.adapters.named_parameters()}
    assert all(torch.equal(halfway[f"unet.{key}"], after[key]) for key in norm)
    assert {group["lr"] for group in session.loop.state.optimizer.param_groups} <= {5e-4 * 0.1, 1e-3 * 0.1}
    with pytest.raises(RecipeError, match=r"'attn9\*' matches none of the"):
        prepared(
            load_recipe(
                tmp_path / "rules.toml", changes=('adapter.layers=[{pattern="attn9*",train=false}]',)
            ),
            tmp_path,
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("adapter.rank=8", "adapter.alpha=8"), "has no use for adapter.rank, adapter.alpha"),
        (("adapter.lora_plus_ratio=1",), "has no use for adapter.lora_plus_ratio"),
        (('adapter.layers=[{pattern="*",rank=2}]',), r"no use for the rank of an \[\[adapter.layers\]\]"),
        (("base.quantize=bnb_nf4",), "neither in fewer bits nor spread over processes"),
        (("adapter.init_from=some.safetensors",), "name the folder of an earlier full run as base.model"),
    ],
)
def test_what_means_nothing_to_it_is_refused_in_a_sentence(
    changes: tuple[str, ...], words: str, tiny_base: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=words):
        prepared(recipe_of(tmp_path, images, tiny_base, *changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_plan_says_what_it_costs(
    base_of: BaseOf, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(tmp_path, images, base_of("sd15"))
    found = plan(recipe)
    numbers = sum(p.numel() for p in load_base(str(base_of("sd15"))).parts["unet"].parameters())
    memory = found.memory
    assert (memory.adapters, memory.gradients, memory.originals) == (4 * numbers,) * 3
    assert 8 * numbers <= memory.optimizer < 8.1 * numbers and "unet" not in memory.parts
    assert found.disk.checkpoints >= 2 * 12 * numbers
    assert f"{numbers:,} numbers are trained" in " ".join(found.training.data["adapter_notes"])
    assert "a learning rate of 0.001 is one for adapters" in " ".join(found.training.data["adapter_notes"])
    assert list(tmp_path.iterdir()) == [tmp_path / "full.toml"]


@pytest.fixture(scope="module", params=["sd15", pytest.param("sd2 v", marks=pytest.mark.slow), "sdxl"])
def finished(
    request: pytest.FixtureRequest, base_of: BaseOf, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Finished, Path]]:
    folder, base = tmp_path_factory.mktemp("full"), base_of(request.param)
    result = train(recipe_of(folder, images, base, *BOTH, steps=2), folder / "run")
    assert isinstance(result, Finished)
    yield result, base


def test_the_folder_is_what_was_trained_and_diffusers_loads_it(finished: tuple[Finished, Path]) -> None:
    result, base = finished
    folder = result.lora_file
    assert folder == result.folder / "tiny" and result.report.ok, result.report
    loaded = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    before = DiffusionPipeline.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    assert type(loaded) is type(before) and type(loaded.scheduler) is type(before.scheduler)
    own, old = loaded.scheduler.config, before.scheduler.config
    assert {k: v for k, v in own.items() if k[0] != "_"} == {k: v for k, v in old.items() if k[0] != "_"}
    trained = load_file(result.folder / "checkpoints/step_000002/adapters.safetensors")
    for part in (name for name, one in before.components.items() if isinstance(one, nn.Module)):
        exact = weights_of(getattr(before, part))
        for key, tensor in weights_of(getattr(loaded, part)).items():
            inner = key if part in ("unet", "vae", "text_encoder_2") else f"text_model.{key}"
            expected = trained.get(f"{part}.{inner}", exact[key])
            assert torch.equal(tensor, expected if part == "vae" else expected.half().float()), key
    assert load_base(str(folder)).traits == load_base(str(base)).traits


def test_nothing_in_the_folder_says_where_it_was_made(finished: tuple[Finished, Path]) -> None:
    result, base = finished
    places = [str(base).encode(), str(result.folder).encode(), b"name_or_path"]
    for path in result.lora_file.rglob("*"):
        assert not path.is_file() or not any(place in path.read_bytes() for place in places), path
    written = json.loads((result.folder / "summary.json").read_text())
    assert written["file_bytes"] == sum(p.stat().st_size for p in result.lora_file.rglob("*") if p.is_file())
    assert not [path for path in result.folder.iterdir() if path.name.endswith((".tmp", ".old"))]


@pytest.mark.parametrize("harm", ["changed", pytest.param("not finite", marks=pytest.mark.slow), "cut"])
def test_a_folder_that_is_not_what_was_trained_is_set_aside(
    harm: str, base_of: BaseOf, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = finish_folder.write_folder

    def damaged(path: Path, *arguments: object, **named: object) -> float:
        error = write(path, *arguments, **named)  # type: ignore[arg-type]
        file = path / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        key = "conv_in.bias"
        tensors[key] = tensors[key] + (1 if harm == "changed" else float("nan"))
        save_file(tensors, file)
        if harm == "cut":
            file.write_bytes(file.read_bytes()[:-100])
        return error

    monkeypatch.setattr(finish_folder, "write_folder", damaged)
    recipe = recipe_of(tmp_path, images, base_of("sd15"), "training.steps=1")
    with pytest.raises(ExportMismatch, match=r"tiny\.unverified is not what was trained"):
        train(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "tiny.unverified").is_dir() and not (tmp_path / "run" / "tiny").exists()
    assert not json.loads((tmp_path / "run" / "verify.json").read_text())["whole"]


def test_a_recipe_as_run_can_be_run_again(finished: tuple[Finished, Path], tmp_path: Path) -> None:
    """What means nothing to the kind is not written into it, where it would be refused."""
    result, _ = finished
    recipe = load_recipe(result.folder / "recipe.toml", changes=("training.steps=1",))
    assert adapter_notes(recipe, prepared(recipe, tmp_path).adapters)


@pytest.mark.parametrize("optimizer", ["adafactor", pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_full_run_goes_on_after_a_resume_as_if_it_had_not_stopped(
    optimizer: str, base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    found = []
    for number, stop in enumerate([False, True]):
        run = tmp_path / str(number)
        changes = (
            *BOTH,
            f"training.optimizer={optimizer}",
            "training.lr_schedule=constant",
            "training.ema=0.5",
        )
        if stop:
            train(recipe_of(tmp_path, images, base_of("sd15"), *changes, "training.steps=2"), run)
        train(recipe_of(tmp_path, images, base_of("sd15"), *changes), run, resume=stop)
        last = run / "checkpoints/step_000004"
        names = ("adapters.safetensors", "ema.safetensors", "state.json")
        contents = {name: (last / name).read_bytes() for name in names}
        contents |= {
            str(p.relative_to(run)): p.read_bytes() for p in (run / "tiny").rglob("*") if p.is_file()
        }
        found.append(contents)
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []
