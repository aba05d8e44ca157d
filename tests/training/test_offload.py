"""machine.offload_blocks: the same bits with blocks that come and go, and never more than two of them there.

The device is the CPU here, and main memory another tensor of it; weights that were put away have no memory.
What a GPU is launched in which order stands in ../cuda/test_matrix.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tiny import recipe_text
from torch import Tensor, nn

from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.errors import Interrupted, RecipeError
from lora_studio.families.base import ModelFamily, innermost_blocks
from lora_studio.families.loading import load_base
from lora_studio.processes import Processes
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.training import MachineConfig
from lora_studio.rng import generator
from lora_studio.training.events import Event, StepDone, StopTraining
from lora_studio.training.machine import Machine
from lora_studio.training.machine.offload import (
    BlockOffload,
    blocks_of_text,
    offload,
    offload_text,
    pieces,
    spread_evenly,
)
from lora_studio.training.planning.memory import stage_bytes
from lora_studio.training.prepare.checks import check_recipe, offload_faults
from lora_studio.training.session import train

CPU, EVERY = torch.device("cpu"), -1
BaseOf = Callable[[str], Path]


class Learner(NamedTuple):
    """A miniature with adapters that do something, on a machine."""

    family: ModelFamily
    adapters: dict[str, nn.Parameter]
    disabled: Callable[[], object]
    offloaded: BlockOffload | None
    dtype: torch.dtype


def learner(
    base: Path,
    kind: str = "lora",
    *,
    blocks: int = 0,
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = False,
    quantize: str = "none",
) -> Learner:
    family = load_base(str(base), dtype=dtype)
    denoiser = family.denoiser
    count = len([*innermost_blocks(family.parts[denoiser])]) if blocks == EVERY else blocks
    config = MachineConfig(gradient_checkpointing=checkpointing, offload_blocks=count)
    machine = Machine(CPU, dtype, quantize, config)
    machine.shrink(family)
    adapters = inject(
        family.parts,
        {denoiser: family.targets[denoiser]},
        AdapterOptions(kind, rank=2, alpha=2.0, seed=0),
        canonical_path=family.canonical_path,
        together=family.together,
    )
    with torch.no_grad():
        for key, tensor in adapters.named_parameters().items():
            tensor += 0.02 * torch.randn(tensor.shape, generator=generator(key))
    machine.speed_up(family, adapters.parts)
    offloaded = offload(family, machine, adapters.joined)
    family.place(CPU, *family.parts)
    return Learner(family, adapters.named_parameters(), adapters.disabled, offloaded, dtype)


def answers(one: Learner, *, steps: int = 2) -> list[Tensor]:
    """The base's predictions, the adapters', and their gradients, of batches in passes of a row each."""
    found, family = list[Tensor](), one.family
    latents, timestep, geometry = family.probe_inputs()

    def predict(row: int) -> Tensor:
        text = family.encode_text(["a red ball"])
        given = latents[row : row + 1], timestep[row : row + 1], text, geometry[:1]
        with torch.autocast("cpu", one.dtype, enabled=one.dtype != torch.float32):
            return family.denoise(*given).float()

    for _ in range(steps):
        with torch.no_grad(), one.disabled():  # type: ignore[attr-defined]
            found += [predict(0), predict(1)]
        for row in (0, 1):
            prediction = predict(row)
            with torch.no_grad(), one.disabled():  # type: ignore[attr-defined]
                found.append(predict(1 - row))  # before the backward pass
            prediction.square().mean().backward()
            found.append(prediction.detach())
        for tensor in one.adapters.values():
            assert tensor.grad is not None
            found.append(tensor.grad.clone())
            tensor.grad = None
    return found


def matrices(block: nn.Module) -> list[nn.Parameter]:
    return [one for one in block.parameters() if not one.requires_grad and one.dim() > 1]


CASES = {
    "unet": ("sd15 up and down", "lora", torch.float32, False, "none"),
    "unet, checkpointing": ("sd15 up and down", "lora", torch.float32, True, "none"),
    "unet, lycoris, half, checkpointing": ("sd15 up and down", "lokr", torch.bfloat16, True, "none"),
    "transformer, half": ("z_image", "lora", torch.bfloat16, False, "none"),
    "transformer, half, checkpointing": ("z_image", "lora", torch.bfloat16, True, "none"),
    "transformer, lycoris": ("z_image", "loha", torch.float32, False, "none"),
    "two kinds of blocks": ("flux1", "lora", torch.bfloat16, True, "none"),
    "int8": ("z_image", "lora", torch.bfloat16, False, "bnb_int8"),
    "int8, checkpointing": ("sd15 up and down", "lora", torch.float32, True, "bnb_int8"),
    "nf4, checkpointing": ("z_image", "lora", torch.bfloat16, True, "bnb_nf4"),
    "torchao": ("z_image", "lora", torch.bfloat16, False, "torchao_int8"),
}


@pytest.mark.filterwarnings("ignore")  # what these libraries say of themselves when imported
@pytest.mark.parametrize("case", CASES)
def test_blocks_that_come_and_go_change_no_bit(case: str, base_of: BaseOf) -> None:
    base, kind, dtype, checkpointing, quantize = CASES[case]
    if quantize != "none":
        pytest.importorskip("torchao" if quantize.startswith("torchao") else "bitsandbytes")
    how = {"dtype": dtype, "checkpointing": checkpointing, "quantize": quantize}
    expected = answers(learner(base_of(base), kind, **how))  # type: ignore[arg-type]
    one = learner(base_of(base), kind, blocks=3 if "two kinds" in case else EVERY, **how)  # type: ignore[arg-type]
    assert one.offloaded is not None and sum(map(bool, one.offloaded.sizes)) > 2
    assert all(torch.equal(*pair) for pair in zip(answers(one), expected, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_more_than_two_blocks_are_there_at_any_time(checkpointing: bool, base_of: BaseOf) -> None:
    one = learner(base_of("z_image"), blocks=EVERY, dtype=torch.bfloat16, checkpointing=checkpointing)
    denoiser, seen = one.family.parts["transformer"], list[int]()
    own = [matrices(block) for block in innermost_blocks(denoiser)]

    def count(*_: object) -> None:
        seen.append(sum(any(w.untyped_storage().nbytes() for w in weights) for weights in own))

    for module in denoiser.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    answers(one, steps=1)
    count()
    assert one.offloaded is not None and len(own) == len(one.offloaded.blocks) >= 4
    assert max(seen) == 2 == seen[-1]
    whole = sum(weight.nbytes for weights in own for weight in weights)
    assert sum(one.offloaded.sizes) == whole  # nothing stays back


def test_weights_that_were_put_away_are_no_silent_zeros(base_of: BaseOf) -> None:
    one = learner(base_of("z_image"), blocks=EVERY, dtype=torch.bfloat16)
    block = [*innermost_blocks(one.family.parts["transformer"])][-1]
    weight = matrices(block)[0]
    with pytest.raises(RuntimeError, match="requiring a storage size"):  # a kernel asked directly may crash
        F.linear(torch.ones(1, weight.shape[1], dtype=weight.dtype), weight)
    assert one.offloaded is not None
    one.offloaded.bring(next(m for m in block.modules() if m._parameters.get("weight") is weight))
    assert weight.isfinite().all() and weight.abs().sum() > 0


class Row(nn.Module):
    """Four blocks of a layer each."""

    _no_split_modules = ("Step",)

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Step() for _ in range(4))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layer(x).tanh()
        return out


def test_two_hundred_steps_leave_nothing_behind() -> None:
    network = Row()
    engine = BlockOffload(network, [*network.steps], CPU, ())
    held = set[tuple[int, int]]()
    for number in range(200):
        x = torch.randn(2, 32, generator=generator(number), requires_grad=True)
        network(x).square().sum().backward()
        with torch.no_grad():
            network(x)
        there = sum(p.untyped_storage().nbytes() for p in network.parameters() if p.dim() > 1)
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())
        assert x.grad is not None and len(engine._there) <= 2 and len(engine._order) == 4
        held.add((there, hooks))
    assert held == {(2 * 32 * 32 * 4, 8)}


def test_a_gradient_of_blocks_that_come_and_go_is_that_of_the_formula() -> None:
    """x + tanh(W x + b) each: against its derivative by hand, in float64."""
    network = Row().double()
    weights = [(s.layer.weight.clone(), s.layer.bias.clone()) for s in network.steps]
    BlockOffload(network, [*network.steps], CPU, ())
    x = torch.randn(32, generator=generator("x")).double().requires_grad_()
    network(x[None]).sum().backward()
    grad, inputs = torch.ones(32).double(), [x.detach()]
    for weight, bias in weights:
        inputs.append(inputs[-1] + (weight @ inputs[-1] + bias).tanh())
    for (weight, bias), given in zip(weights[::-1], inputs[-2::-1], strict=True):
        slope = 1 - (weight @ given + bias).tanh() ** 2
        grad = grad + weight.t() @ (slope * grad)
    torch.testing.assert_close(x.grad, grad)


@pytest.mark.parametrize("kind", ["z_image", "flux1", "flux2", "qwen_image"])
def test_a_text_encoder_whose_blocks_wait_reads_the_same_and_leaves_nothing(
    kind: str, base_of: BaseOf
) -> None:
    def reader(blocks: int) -> ModelFamily:
        family = load_base(str(base_of(kind)), dtype=torch.bfloat16, staged=True)
        offload_text(family, Machine(CPU, torch.bfloat16, text_blocks=blocks))
        return family

    plain, waits = reader(0), reader(99)
    name, blocks = blocks_of_text(waits)
    for captions in (["a red ball"], ["a blue cat and a dog"]):
        for family in (plain, waits):
            family.place(CPU, *family.text_encoders)
        expected, found = plain.encode_text(captions), waits.encode_text(captions)
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        there = [any(w.untyped_storage().nbytes() for w in matrices(block)) for block in blocks]
        assert sum(there) == min(2, len(blocks)) and len(there) > 1
        waits.place(CPU, "vae")
        assert all(one.is_meta for one in waits.parts[name].parameters())
        hooks = [
            [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in family.parts[name].modules()]
            for family in (plain, waits)
        ]
        assert hooks[0] == hooks[1]  # transformers' own


def test_a_plan_counts_what_is_left_of_a_text_encoder(base_of: BaseOf) -> None:
    """In bfloat16, all but the matrices of blocks that are not the two largest."""
    family = load_base(str(base_of("z_image")), dtype=torch.bfloat16, staged=True)
    encoder = load_base(str(base_of("z_image"))).parts["text_encoder"]
    sizes = sorted(sum(2 * one.numel() for one in matrices(block)) for block in innermost_blocks(encoder))
    whole = sum(2 * one.numel() for one in encoder.parameters())
    assert stage_bytes(family)["text encoders"] == whole
    assert stage_bytes(family, 99)["text encoders"] == whole - sum(sizes[:-2])


def test_with_auto_a_text_encoder_waits_whole_where_nothing_was_chosen(base_of: BaseOf) -> None:
    cuda = torch.device("cuda")
    for blocks, waits in (("auto", True), (3, False), (0, False)):
        family = load_base(str(base_of("z_image")), dtype=torch.bfloat16, staged=True)
        offload_text(family, Machine(cuda, torch.bfloat16, config=MachineConfig(offload_blocks=blocks)))  # type: ignore[arg-type]
        assert (list(family.arranged) == ["text_encoder"]) == waits


def test_blocks_are_spread_evenly() -> None:
    assert spread_evenly([*range(10)], 3) == [0, 3, 6]
    assert spread_evenly([*range(4)], 4) == [0, 1, 2, 3]


def test_what_a_pass_reads_when_it_begins_stays(base_of: BaseOf) -> None:
    """Keys and values of the text, which are computed at once, and small weights, which are added up."""
    one = learner(base_of("sd15 up and down"), blocks=EVERY)
    layers = {path: m for path, m in one.family.parts["unet"].named_modules() if hasattr(m, "base_layer")}
    adapted = {id(layer.base_layer.weight) for layer in layers.values()}
    for block in innermost_blocks(one.family.parts["unet"]):
        for weight in matrices(block):
            assert bool(weight.untyped_storage().nbytes()) == (id(weight) in adapted)


@pytest.mark.parametrize("count", [1, 2, 3, 11, 1000, 3072 * 12288])
def test_pieces_are_all_of_it_and_waste_little(count: int) -> None:
    """Pinned memory comes in powers of two."""
    found = [*pieces(count)]
    taken = sum(1 << (size - 1).bit_length() for size in found)
    assert sum(found) == count <= taken <= count * 17 / 16 + 1 and len(found) <= 6


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory, base_of: BaseOf, images: Path) -> Path:
    path = tmp_path_factory.mktemp("offload") / "tiny.toml"
    text = recipe_text(images, str(base_of("sd15 up and down")), extra="[validation]\ncount = 1\n")
    path.write_text(text.replace("resolution = 64", "resolution = 32"), "utf-8")
    return path


def test_a_run_and_its_resume_leave_the_bytes_of_one_without(recipe_path: Path, tmp_path: Path) -> None:
    """With validation, previews, a verified file, and preservation, whose passes of the base go between."""
    shown = ("samples.prompts=['a red ball']", "samples.steps=2", "objective.preservation=0.5")

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            raise StopTraining

    def left(folder: Path) -> list[bytes]:
        names = ("checkpoints/step_000004/adapters.safetensors", "validation.jsonl", "tiny.safetensors")
        return [(folder / name).read_bytes() for name in (*names, "previews/step_000004.png")]

    def recipe(*changes: str) -> Recipe:
        return load_recipe(recipe_path, changes=(*shown, *changes))

    train(recipe(), tmp_path / "plain")
    with pytest.raises(Interrupted):
        many = recipe("machine.offload_blocks=5", "machine.gradient_checkpointing=true")
        train(many, tmp_path / "run", on_event=stop)
    train(recipe("machine.offload_blocks=2"), tmp_path / "run", resume=True)
    assert left(tmp_path / "run") == left(tmp_path / "plain")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("machine.offload_blocks=99",), r"is 99, but this base has \d+ blocks; give 0 to \d+"),
        (("machine.compile=true",), "machine.compile do not go together"),
        (("adapter.kind=full",), "nor spread over processes nor in main memory"),
        (("adapter.kind=dora",), "goes with none of base.quantize"),
        (("adapter.start=pissa",), "goes with none of base.quantize"),
    ],
)
def test_what_does_not_go_with_it_is_one_sentence(
    changes: tuple[str, ...], said: str, recipe_path: Path
) -> None:
    recipe = load_recipe(recipe_path, changes=("machine.offload_blocks=1", *changes))
    with pytest.raises(RecipeError, match=said):
        check_recipe(recipe)


def test_it_is_for_one_process(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path, changes=("machine.offload_blocks=1",))
    assert "is for one process" in offload_faults(recipe, Processes(count=2))[0]
    assert offload_faults(recipe, Processes()) == []
