"""Plain LoRA's own forward and backward passes beside PEFT's, and what lies in one tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_studio.adapters import lora_unit
from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.fast_lora import SMALL, TINY
from lora_studio.adapters.inject import inject
from lora_studio.adapters.lora_products import merged_products, products
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.families.base import SameInput

TOGETHER = {"m": (SameInput(("q", "k", "v")),)}
WIDTHS = {"tiny": 48, "small": 288, "wide": 400}
assert 48 * 56 <= TINY < 288 * 296 <= SMALL < 400 * 408


class Attending(nn.Module):
    """Three layers of one input, as attention has them, and one of its own behind."""

    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width + 8, bias=bias) for _ in range(3))
        self.out = nn.Linear(width + 8, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.q(x).sigmoid() * self.k(x) + self.v(x).square())


CASES: dict[str, Callable[[int], tuple[nn.Module, Tensor]]] = {
    "linear": lambda width: (nn.Sequential(nn.Linear(width, width + 8)), torch.randn(2, 50, width)),
    "without bias": lambda width: (
        nn.Sequential(nn.Linear(width, width, bias=False)),
        torch.randn(2, 50, width),
    ),
    "rows that do not follow each other": lambda width: (
        nn.Sequential(nn.Linear(width, width)),
        torch.randn(2, width, 4, 6).permute(0, 2, 3, 1).flatten(1, 2),
    ),
    "1x1": lambda width: (nn.Sequential(nn.Conv2d(width, width + 8, 1)), torch.randn(2, width, 8, 6)),
    "1x1 without bias": lambda width: (
        nn.Sequential(nn.Conv2d(width, width, 1, bias=False)),
        torch.randn(2, width, 4, 6).to(memory_format=torch.channels_last),
    ),
    "3x3": lambda width: (
        nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1)),
        torch.randn(2, width, 6, 5),
    ),
    "attention": lambda width: (Attending(width, bias=False), torch.randn(2, 50, width)),
    "attention with biases": lambda width: (Attending(width, bias=True), torch.randn(2, 50, width)),
}


def both(
    case: str, width: int, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, AdapterSet, nn.Module, Tensor]:
    """A frozen model with our adapters, and with PEFT's of the same numbers; an input."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model, x = CASES[case](width)
        models.append(model.requires_grad_(False).to(dtype))
    ours, theirs = models
    names = tuple(name for name, one in ours.named_modules() if isinstance(one, nn.Linear | nn.Conv2d))
    options = AdapterOptions("lora", rank=3, alpha=4.5, seed=1)
    adapters = inject(
        {"m": ours}, {"m": names}, options, canonical_path=lambda part, path: path, together=TOGETHER
    )
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=4.5, target_modules=[*names]), theirs)
    with torch.no_grad():
        for layer in adapters.layers:
            layer.tensors["up"].normal_(std=0.1)
            for end, name in (("down", "lora_A"), ("up", "lora_B")):
                place = getattr(theirs.get_submodule(layer.path), name)["default"]
                place.weight = nn.Parameter(layer.tensors[end].detach().clone())
    return ours, adapters, theirs, x


def output_and_gradients(model: nn.Module, x: Tensor, *, again: bool = False) -> list[Tensor]:
    """Of the input and of all factors, in the layers' order; `again`: through gradient checkpointing."""
    x = x.detach().requires_grad_()
    output = checkpoint(model, x, use_reentrant=False) if again else model(x)
    output.float().square().mean().backward()
    factors = [one for name, one in model.named_parameters() if "lora_" in name]
    assert len(factors) >= 2 and x.grad is not None
    return [output.detach(), x.grad, *(one.grad for one in factors)]


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("case", CASES)
def test_same_output_and_gradients_as_peft(case: str, width: int) -> None:
    ours, adapters, theirs, x = both(case, width)
    expected = output_and_gradients(theirs, x)
    for again in (False, True):
        adapters.clear_gradients()
        found = output_and_gradients(ours, x, again=again)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_under_autocast_it_is_as_near_to_float32_as_peft_is(case: str, dtype: torch.dtype) -> None:
    _, _, whole, x = both(case, WIDTHS["small"])
    exact = output_and_gradients(whole, x)
    ours, _, theirs, x = both(case, WIDTHS["small"], dtype)
    errors = []
    for model in (ours, theirs):
        with torch.autocast("cpu", dtype):
            found = output_and_gradients(model, x)
        errors.append([((a.float() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)])
    for own, of_peft in zip(*errors, strict=True):
        assert 1e-5 < of_peft < 2e-2 and own < 1.2 * of_peft


def test_gradients_add_up_over_passes_and_are_gone_when_either_is_cleared() -> None:
    ours, adapters, theirs, x = both("attention", 48)
    for _ in range(2):
        found, expected = output_and_gradients(ours, x), output_and_gradients(theirs, x)
    for one, other in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-5)
    once = output_and_gradients(both("attention", 48)[0], x)[2:]
    wholes = [stack.whole for stack in adapters.stacks]
    for cleared in (wholes, adapters.parameters("m")):
        torch.optim.SGD(cleared).zero_grad()
        found = output_and_gradients(ours, x)[2:]
        assert all(torch.equal(one, other) for one, other in zip(found, once, strict=True))


def test_an_input_without_gradient_gets_none() -> None:
    for width in WIDTHS.values():
        ours, adapters, _, x = both("attention", width)
        ours(x).sum().backward()
        assert x.grad is None and all(one.grad is not None for one in adapters.parameters("m"))


def test_switched_off_it_is_the_base_to_the_last_bit() -> None:
    for case in CASES:
        for width in WIDTHS.values():
            ours, adapters, _, x = both(case, width)
            ours(x)
            torch.manual_seed(0)
            base = CASES[case](width)[0]
            with adapters.disabled():
                assert torch.equal(ours(x), base(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_side_by_side_may_be_asked_in_any_way(dtype: torch.dtype) -> None:
    """With other inputs, in another order, alone."""
    ours, _, theirs, x = both("attention", 48, dtype)
    order = ("v", "q", "q", "k", "v", "k")
    for model in (ours, theirs):
        model.forward = lambda x, model=model: torch.cat(  # type: ignore[method-assign]
            [model.get_submodule(name)(x if number % 2 else x + 1) for number, name in enumerate(order)]
        )
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        one, other = ours(x.to(dtype)), theirs(x.to(dtype))
    torch.testing.assert_close(one, other, atol=1e-5 if dtype == torch.float32 else 5e-2, rtol=2e-2)


class Reading(nn.Module):
    """Blocks that read the part's own input beside the one before them, and a last one that reads another."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.again = again  # through gradient checkpointing
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(24, 40, bias=name == "v") for name in ("k", "v")})
            for _ in range(3)
        )

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            read = text if number < 2 else text + 1

            def step(
                x: Tensor,
                block: nn.ModuleDict = block,
                read: Tensor = read,  # type: ignore[assignment]
            ) -> Tensor:
                return x + block["k"](read).sigmoid() * block["v"](read)

            x = checkpoint(step, x, use_reentrant=False) if self.again else step(x)
        return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_read_the_parts_own_input_are_one_product_a_pass(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the blocks are computed again; what reads another input gets that one's output."""
    computed: list[Tensor] = []

    def counted(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *given: computed.append(given[0]) or way(*given)  # type: ignore[func-returns-value]

    for way in (products, merged_products):
        monkeypatch.setattr(lora_unit, way.__name__, counted(way))
    torch.manual_seed(0)
    x, text = torch.randn(2, 5, 40).to(dtype), torch.randn(2, 5, 24).to(dtype)
    together = {"m": (SameInput(("k", "v"), "text"),)}
    options, canonical = AdapterOptions("lora", rank=3, alpha=4.5, seed=1), lambda part, path: path
    found: dict[str, list[Tensor]] = {}
    for way in ("peft", "ours", "again"):
        torch.manual_seed(0)
        model = Reading(again=way == "again").requires_grad_(False).to(dtype)
        if way == "peft":
            inject_adapter_in_model(LoraConfig(r=3, lora_alpha=4.5, target_modules=["k", "v"]), model)
        else:
            inject({"m": model}, {"m": ("k", "v")}, options, canonical_path=canonical, together=together)
        factors = {name: one for name, one in model.named_parameters() if "lora_" in name}
        for number, (_, one) in enumerate(sorted(factors.items())):
            one.data = torch.randn(one.shape, generator=torch.Generator().manual_seed(number)).mul(0.3)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = model(x, text=text) if way == "again" else model(x, text)
        output.float().square().mean().backward()
        found[way] = [output.detach().float(), *(one.grad for _, one in sorted(factors.items()))]
    assert len(computed) == 2 * 2  # with a bias and without
    assert len(found["peft"]) == 1 + 12  # factors: two of each of six layers
    for way in ("ours", "again"):
        for one, other in zip(found[way], found["peft"], strict=True):
            assert (one - other).norm() < (2e-6 if dtype == torch.float32 else 2e-2) * other.norm()


def test_layers_of_one_shape_lie_in_one_tensor_and_go_along_with_their_modules() -> None:
    ours, adapters, _, x = both("attention", 48)
    down, up = (stack for stack in adapters.stacks if len(stack.owners) == 3)
    assert down.whole.shape == (3, 3, 48) and up.whole.shape == (3, 56, 3)
    expected = ours(x)
    ours.double().float()  # every module has tensors of its own now, as after a move to another device
    kept = down.whole
    torch.testing.assert_close(ours(x), expected)
    with torch.no_grad():
        kept.zero_()
    assert not ours.q.lora_A["studio"].weight.any()
    assert down.whole is kept


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiler_sees_through_it_without_a_break_and_once_for_all_passes() -> None:
    """Of a block in the part, as a run compiles them; the factors change between the passes."""
    compiled, eager = ({}, {})
    for made in (compiled, eager):
        torch.manual_seed(0)
        model = nn.Sequential(Attending(48, bias=True)).requires_grad_(False).bfloat16()
        options, names = AdapterOptions("lora", rank=3, alpha=4.5, seed=1), ("q", "k", "v", "out")
        adapters = inject(
            {"m": model}, {"m": names}, options, canonical_path=lambda part, path: path, together=TOGETHER
        )
        if made is compiled:
            model[0].compile(backend="aot_eager", fullgraph=True)
        x = torch.randn(2, 50, 48).bfloat16().requires_grad_()
        for number in range(3):
            with (
                torch.autocast("cpu", torch.bfloat16),
                torch.compiler.set_stance("default" if number == 0 else "fail_on_recompile"),
            ):
                output = model(x)
            adapters.clear_gradients()
            output.float().square().mean().backward()
            gradients = [one.grad.clone() for one in adapters.parameters("m")]
            made[number] = [output.detach(), *gradients]
            with torch.no_grad():
                for one in adapters.parameters("m"):
                    one += 0.1 * torch.randn(one.shape)
    for number, values in eager.items():
        for one, other in zip(compiled[number], values, strict=True):
            assert (one.float() - other.float()).norm() <= 0.03 * other.float().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_that_alone_reads_the_parts_input_is_as_pefts(dtype: torch.dtype) -> None:
    """Also when it is given another one, which it was not computed for; wide, so that nothing is merged."""
    together = {"m": (SameInput(("v",), "text"),)}
    outputs = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = nn.ModuleDict({"v": nn.Linear(400, 408)}).requires_grad_(False).to(dtype)
        first, second = torch.randn(2, 7, 400).to(dtype), torch.randn(2, 7, 400).to(dtype)
        model.forward = lambda x, text, own=model: own["v"](text) - own["v"](x)  # type: ignore[method-assign]
        if ours:
            options = AdapterOptions("lora", rank=3, alpha=4.5, seed=1)
            inject(
                {"m": model}, {"m": ("v",)}, options, canonical_path=lambda _, path: path, together=together
            )
        else:
            inject_adapter_in_model(LoraConfig(r=3, lora_alpha=4.5, target_modules=["v"]), model)
        for number, one in enumerate(one for name, one in model.named_parameters() if "lora_" in name):
            one.data = torch.randn(one.shape, generator=torch.Generator().manual_seed(number)).mul(0.1)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            outputs.append(model(second, first).float())
    one, other = outputs
    assert (one - other).norm() < (2e-6 if dtype == torch.float32 else 2e-2) * other.norm()
