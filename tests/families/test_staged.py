"""Large bases: each part is read when its turn comes, and is gone before the next one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from memory import needs_proc
from tiny import recipe_text
from torch import Tensor, nn

from lora_studio.errors import BaseModelError
from lora_studio.families.base import ModelFamily, innermost_blocks
from lora_studio.families.fingerprints import is_dropped
from lora_studio.families.loading import load_base
from lora_studio.families.stored import StoredPart
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.planning import plan
from lora_studio.training.planning.untouched import untouched_error
from lora_studio.training.prepare import prepare
from lora_studio.training.session import train

BaseOf = Callable[[str], Path]
NAMES = ("z_image", "flux1", "chroma", "sd3", "qwen_image", "flux2", "krea2", "lumina2", "anima")
BLOCKS = (
    *("layers.", "noise_refiner.", "context_refiner."),
    *("transformer_blocks.", "single_transformer_blocks.", "text_fusion.layerwise", "text_fusion.refiner"),
)
PREVIEW = '[samples]\nprompts = ["a red ball"]\nsteps = 2\nguidance = 2\n[validation]\ncount = 1\n'


@pytest.fixture(params=NAMES)
def base(request: pytest.FixtureRequest, base_of: BaseOf) -> Path:
    return base_of(request.param)


@pytest.fixture
def recipe(base_of: BaseOf, images: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(images, str(base_of("z_image")), steps=2, extra=PREVIEW), "utf-8")
    return path


def held(family: ModelFamily) -> set[str]:
    """The parts with weights in memory."""
    return {name for name, part in family.parts.items() if not is_dropped(part)}


def watch(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """What is in memory each time that a part has been placed or let go."""
    seen: list[set[str]] = []
    place = ModelFamily.place

    def listen(self: ModelFamily, device: torch.device, *names: str) -> None:
        place(self, device, *names)
        seen.append(held(self))

    monkeypatch.setattr(ModelFamily, "place", listen)
    return seen


def test_text_encoders_and_transformer_are_never_in_memory_together(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    seen = watch(monkeypatch)
    train(load_recipe(recipe), tmp_path / "run")
    assert all({part} in seen for part in ("vae", "text_encoder", "transformer"))
    assert not [now for now in seen if {"transformer", "text_encoder"} <= now]
    del seen[:]
    again = load_recipe(recipe, changes=("samples.prompts=[]", "validation.count=0"))
    train(again, tmp_path / "again")  # all is in the caches
    assert not [now for now in seen if "text_encoder" in now]


def test_what_is_read_in_turn_is_what_is_read_at_once(base: Path) -> None:
    at_once = load_base(str(base), dtype=torch.bfloat16)
    staged = load_base(str(base), dtype=torch.bfloat16, staged=True)
    assert not held(staged) and held(at_once) == set(staged.parts)
    for name, part in at_once.parts.items():
        assert staged.fingerprint(name) == at_once.fingerprint(name)
        staged.place(torch.device("cpu"), name)
        assert held(staged) - {staged.denoiser} == {name} - {staged.denoiser}
        own, other = part.state_dict(), staged.parts[name].state_dict()
        assert own.keys() == other.keys()
        assert all(torch.equal(own[key], other[key]) and own[key].dtype == other[key].dtype for key in own)
        buffers = dict(staged.parts[name].named_buffers())
        assert all(torch.equal(one, buffers[key]) for key, one in part.named_buffers())
    assert staged.precision == torch.bfloat16


def test_the_transformer_is_read_block_by_block_and_each_has_its_bits_at_once(base: Path) -> None:
    family = load_base(str(base), staged=True)
    denoiser = family.parts[family.denoiser]
    blocks = list(innermost_blocks(denoiser))
    largest, full = max(sum(isinstance(one, nn.Linear) for one in block.modules()) for block in blocks), []

    def shrink(paths: list[str]) -> None:
        layers = [one for one in denoiser.modules() if isinstance(one, nn.Linear) and not one.weight.is_meta]
        full.append(sum(one.weight.dtype == torch.float32 for one in layers))
        for path in paths:
            layer = denoiser.get_submodule(path)
            layer.weight = nn.Parameter(layer.weight.half(), requires_grad=False)

    paths = family.quantised_paths()
    family.read_denoiser(torch.device("cpu"), shrink, paths)
    assert len(full) == len(blocks) + 1 and max(full[:-1]) <= largest < len(paths)
    halves = {
        path
        for path, one in denoiser.named_modules()
        if isinstance(one, nn.Linear) and one.weight.dtype == torch.half
    }
    assert halves == set(paths) and not is_dropped(denoiser)
    outside = [one for one in halves if not one.startswith(BLOCKS)]
    assert not outside, "no embedder and no last layer"


@needs_proc
@pytest.mark.parametrize("in_pieces", [False, True])
def test_the_transformers_files_are_let_go_when_it_is_read(base_of: BaseOf, in_pieces: bool) -> None:
    """Its layers are laid elsewhere or quantised: what is mapped would be in memory beside that."""
    family = load_base(str(base_of("z_image")), staged=True)
    if in_pieces:
        family.read_denoiser(torch.device("cpu"), lambda paths: None, [])
    else:
        family.place(torch.device("cpu"), family.denoiser)
    mapped = Path("/proc/self/maps").read_text()
    assert not is_dropped(family.parts[family.denoiser])
    assert not [file for file in family.sources[family.denoiser].stamps if str(file) in mapped]


def test_a_file_that_changes_before_its_turn_is_one_sentence(base_of: BaseOf, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base_of("z_image"), tmp_path / "copy"))
    family = load_base(str(copy), staged=True)
    path = next((copy / "text_encoder").glob("*.safetensors"))
    path.write_bytes(path.read_bytes())
    for ask in (
        lambda: family.place(torch.device("cpu"), "text_encoder"),
        lambda: family.fingerprint("text_encoder"),
    ):
        with pytest.raises(BaseModelError, match="was changed or taken away while the run needed it"):
            ask()


def test_a_fingerprint_reads_no_number(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredPart, "each", None)
    family = load_base(str(base), staged=True)
    prints = {family.fingerprint(name) for name in family.parts}
    assert len(prints) == len(family.parts)


def test_the_plan_states_what_each_stage_holds_and_how_well_the_base_does(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    counted: dict[str, int] = {}
    place = ModelFamily.place

    def listen(self: ModelFamily, device: torch.device, *names: str) -> None:
        place(self, device, *names)
        for name in names:
            counted[name] = sum(one.nbytes for one in self.parts[name].parameters() if not one.is_meta)

    monkeypatch.setattr(ModelFamily, "place", listen)
    made = plan(load_recipe(recipe))
    assert made.memory.stages == {"text encoders": counted["text_encoder"], "VAE": counted["vae"]}
    assert made.memory.reading == 0, "on a CPU the parts are in main memory, and said as such"
    rows = dict(made.rows)
    assert made.base_error is not None and 0.9 < made.base_error < 3, "of random weights: nothing"
    assert (
        rows["base"]
        == f"validation loss of the untouched base: {made.base_error:.2f} of the target's variance"
    )
    assert "no better than no prediction" in rows["warning"]
    assert made.to_json()["base_error"] == made.base_error
    larger = replace(made.memory, stages={"text encoders": 10**12})
    assert larger.total == 10**12 and not larger.fits


@pytest.mark.parametrize(("answer", "wanted"), [("velocity", 0.0), ("zero", 1.0), ("other sign", 4.0)])
def test_a_wrong_sign_shows_in_the_plans_figure(
    recipe: Path, tmp_path: Path, answer: str, wanted: float
) -> None:
    session = prepare(load_recipe(recipe), Run(tmp_path / "run"), ignore_events)
    clean = session.loop.feed.micro_batch(1, 0).latents

    def denoise(latents: Tensor, timestep: Tensor, *_: object) -> Tensor:
        sigma = timestep.view(-1, 1, 1, 1)
        velocity = (latents - (1 - sigma) * clean) / sigma - clean
        return {"velocity": 1, "zero": 0, "other sign": -1}[answer] * velocity

    session.family.denoise = denoise  # type: ignore[method-assign]
    error = untouched_error(session)
    session.run.close()
    assert error == pytest.approx(wanted, abs=0.05 * max(wanted, 0.01))


def test_regularization_images_are_drawn_in_stages_and_only_once(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    drawn = [f"data.regularization_images.{one}" for one in ("count=2", "steps=2", "guidance=3")]
    wanted = load_recipe(recipe, changes=(*drawn, "samples.prompts=[]"))
    seen = watch(monkeypatch)
    prints = []
    for name in ("first", "second"):
        del seen[:]
        session = prepare(wanted, Run(tmp_path / name), ignore_events)
        prints.append([one.sha256 for one in session.manifest.of_role("prior")])
        session.run.close()
        beside = [now for now in seen if {"transformer", "text_encoder"} <= now]
        assert len(prints[-1]) == 2 and (name == "first" or not beside)
    assert prints[0] == prints[1]
