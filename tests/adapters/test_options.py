"""What each option of the adapters does to layers, their answers and their gradients."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from small import INPUT, TARGETS, Small
from torch import Tensor, nn

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.errors import RecipeError
from lora_studio.recipe.adapter import LayersConfig
from lora_studio.training.loop.step_result import GradientWatch
from lora_studio.training.optimizers.choose import parameter_groups


def adapted(kind: str = "lora", **options: object) -> tuple[Small, AdapterSet]:
    """A small model whose adapters do something; rank 4, alpha 2."""
    model = Small()
    wishes = AdapterOptions(kind, **({"rank": 4, "alpha": 2.0, "seed": 1, "steps": 9} | options))  # type: ignore[arg-type]
    adapters = inject({"small": model}, TARGETS, wishes, canonical_path=lambda part, path: path)
    torch.manual_seed(2)
    with torch.no_grad():
        for tensor in adapters.parameters("small"):
            tensor += 0.2 * torch.randn(tensor.shape)
    return model, adapters


def by_name(adapters: AdapterSet) -> dict[str, tuple[int, float]]:
    return {layer.path: (layer.rank, layer.scale) for layer in adapters.layers}


def test_alpha_is_divided_by_the_rank_or_with_rslora_by_its_root() -> None:
    assert by_name(adapted()[1])["linear"] == (4, 0.5)
    assert by_name(adapted(scaling="sqrt_rank")[1])["linear"] == (4, 1.0)


def test_convolutions_have_a_rank_and_alpha_of_their_own_but_not_those_of_1x1() -> None:
    _, adapters = adapted("locon", conv_rank=2, conv_alpha=4.0)
    assert by_name(adapters) == {"linear": (4, 0.5), "narrow": (4, 0.5), "wide": (2, 2.0)}
    wide = adapters.layers[2]
    assert (wide.tensors["down"].shape, wide.tensors["up"].shape) == ((2, 6, 3, 3), (5, 2, 1, 1))


def test_a_rule_changes_the_layers_it_matches_and_a_later_one_wins() -> None:
    rules = [
        LayersConfig(pattern="small.*", rank=8),
        LayersConfig(pattern="n*w", rank=2, alpha=2.0),
        LayersConfig(pattern="small.wide", train=False),
    ]
    assert by_name(adapted(rules=rules)[1]) == {"linear": (8, 0.5), "narrow": (2, 1.0)}


def test_a_later_rule_does_not_train_what_an_earlier_one_leaves_unless_it_says_so() -> None:
    rules = [LayersConfig(pattern="n*w", train=False), LayersConfig(pattern="*", learning_rate=1e-5)]
    assert set(by_name(adapted("locon", rules=rules)[1])) == {"linear", "wide"}
    rules.append(LayersConfig(pattern="narrow", train=True))
    assert set(by_name(adapted("locon", rules=rules)[1])) == {"linear", "narrow", "wide"}


def test_a_new_rank_alone_keeps_the_scale_whatever_alpha_is_divided_by() -> None:
    rules = [LayersConfig(pattern="linear", rank=16), LayersConfig(pattern="narrow", rank=16, alpha=2.0)]
    of_root = by_name(adapted("locon", rules=rules, scaling="sqrt_rank", conv_rank=1)[1])
    assert of_root == {"linear": (16, 1.0), "narrow": (16, 0.5), "wide": (1, 1.0)}


def test_a_later_rule_takes_an_earlier_stop_back() -> None:
    rules = [
        LayersConfig(pattern="*", stop_at=2),
        LayersConfig(pattern="n*w", stop_at=9),
        LayersConfig(pattern="wide", rank=2),
    ]
    _, adapters = adapted(rules=rules)
    assert {layer.path: layer.last_step for layer in adapters.layers} == {
        "linear": 2,
        "narrow": None,
        "wide": 2,
    }


def test_an_untrained_layer_is_not_touched() -> None:
    model, _ = adapted(rules=[LayersConfig(pattern="wide", train=False)])
    assert type(model.wide) is nn.Conv2d


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            [LayersConfig(pattern="attn2", rank=2)],
            "'attn2' matches none of the 3 layers.*small.linear, small.narrow, small.wide",
        ),
        ([LayersConfig(pattern="*", train=False)], "no layer to train"),
        ([LayersConfig(pattern="*", stop_at=3)], "no layer to train to the last step"),
    ],
)
def test_rules_that_train_nothing_are_refused(rules: list[LayersConfig], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        adapted(rules=rules)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("oft", {"rank_dropout": 0.1}, "rank_dropout = 0.1 .*'oft'; it is for lora, locon, dora"),
        ("dora", {"max_norm": 1.0}, "max_norm = 1 .*'dora'; it is for lora, locon, loha, lokr"),
        ("loha", {"start": "pissa"}, "pissa.*'loha'"),
        ("lora", {"start": "pissa", "max_norm": 1.0}, "leave one of them out"),
    ],
)
def test_what_a_kind_cannot_do_is_one_sentence(kind: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        adapted(kind, **options)


def test_layers_that_stop_keep_their_values_and_get_no_gradient_while_others_go_on() -> None:
    model, adapters = adapted(rules=[LayersConfig(pattern="narrow", stop_at=2)])
    optimizer = torch.optim.AdamW(adapters.parameters("small"), lr=0.1, weight_decay=0.1)
    watch = GradientWatch(adapters)
    states = []
    for step in range(1, 5):
        adapters.at_step(step)
        with adapters.disabled():  # as for images that preserve the base
            assert torch.equal(model(INPUT), Small()(INPUT))
        model(INPUT).square().mean().backward()
        watch.update(watch.sizes().tolist(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        states.append(adapters.state())
    moves = {
        key: [not torch.equal(before[key], after[key]) for before, after in pairwise(states)]
        for key in states[0]
    }
    assert moves["small.narrow.up"] == moves["small.narrow.down"] == [True, False, False]
    assert moves["small.linear.up"] == [True] * 3


def test_groups_have_the_rates_of_parts_rules_and_lora_plus() -> None:
    _, adapters = adapted(rules=[LayersConfig(pattern="wide", learning_rate=3e-3)])
    groups = parameter_groups(adapters, {"small": 1e-3}, faster=4)
    found = {id(tensor): group["lr"] for group in groups for tensor in group["params"]}
    rates = {key: found[id(tensor)] for key, tensor in adapters.named_parameters().items()}
    assert rates == {
        **{f"small.{name}.down": 1e-3 for name in ("linear", "narrow")},
        **{f"small.{name}.up": 4e-3 for name in ("linear", "narrow")},
        **{"small.wide.down": 3e-3, "small.wide.up": pytest.approx(12e-3)},
    }
    assert len(parameter_groups(adapted()[1], {"small": 1e-3})) == 1


def answer(model: Small, adapters: AdapterSet, *names: int) -> Tensor:
    with adapters.dropped(*names), torch.no_grad():
        return model(INPUT)


@pytest.mark.parametrize("options", [{"rank_dropout": 0.5}, {"module_dropout": 0.5}])
def test_what_is_dropped_is_a_function_of_the_key_and_nothing_is_outside(options: dict[str, float]) -> None:
    model, adapters = adapted(**options)
    torch.manual_seed(0)
    first = answer(model, adapters, 1, 7)
    torch.manual_seed(1)
    assert torch.equal(first, answer(model, adapters, 1, 7))
    assert len({tuple(answer(model, adapters, 1, step).flatten().tolist()) for step in range(20)}) > 3
    torch.testing.assert_close(model(INPUT), adapted()[0](INPUT))


def test_dropped_ranks_are_made_up_for_and_dropped_layers_are_the_bases_own() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(8, 8)}).requires_grad_(False)
    base = model["linear"](INPUT)
    wishes = AdapterOptions("lora", 2, 2.0, 1, rank_dropout=0.25)
    adapters = inject({"m": model}, {"m": ("linear",)}, wishes, canonical_path=lambda part, path: path)
    tensors = adapters.layers[0].tensors
    tensors["up"].data.normal_(generator=torch.Generator().manual_seed(0))
    ranks = [torch.outer(tensors["up"][:, r], tensors["down"][r]).detach() / 0.75 for r in range(2)]
    allowed = [base + INPUT @ (a * ranks[0] + b * ranks[1]).t() for a in (0, 1) for b in (0, 1)]
    counts = [0] * 4
    for step in range(400):
        with adapters.dropped(step), torch.no_grad():
            found = model["linear"](INPUT)
        (which,) = [n for n, one in enumerate(allowed) if torch.allclose(one, found, atol=1e-5)]
        counts[which] += 1
    expected = [25, 75, 75, 225]  # a quarter of each rank, independently
    assert sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True)) < 16.3  # chi-square, p 0.001


def test_gradients_of_what_was_dropped_are_zero() -> None:
    model, adapters = adapted(module_dropout=0.5)
    seen = set()
    for step in range(10):
        with adapters.dropped(step):
            left_out = {layer.path for layer in adapters.layers if layer.module.share == 0}
            model(INPUT).square().mean().backward()
        for layer in adapters.layers:
            for tensor in layer.tensors.values():
                assert tensor.grad is not None and bool(tensor.grad.any()) == (layer.path not in left_out)
                tensor.grad = None
        seen |= left_out
    assert seen == {"linear", "narrow", "wide"}


@pytest.mark.parametrize("kind", [name for name in ADAPTERS.names() if ADAPTERS[name].is_product])
def test_a_change_larger_than_max_norm_is_made_as_large_and_no_other_is_touched(kind: str) -> None:
    _, free = adapted(kind)
    before = free.delta()
    most = sorted(one.norm().item() for one in before.values())[1] * 1.0001  # of three: one is too large
    _, adapters = adapted(kind, max_norm=most)
    limited = adapters.limit()
    assert limited is not None and limited.item() == 1
    for name, delta in adapters.delta().items():
        wanted = before[name] * min(1.0, most / before[name].norm().item())
        torch.testing.assert_close(delta, wanted, rtol=1e-4, atol=1e-6)
    assert free.limit() is None


def test_pissa_begins_at_the_weights_main_directions_without_any_effect() -> None:
    model = Small()
    wishes = AdapterOptions("locon", 2, 3.0, 1, start="pissa")
    adapters = inject({"small": model}, TARGETS, wishes, canonical_path=lambda part, path: path)
    assert torch.equal(model(INPUT), Small()(INPUT))
    for layer in adapters.layers:
        weight = layer.module.get_base_layer().weight.flatten(1)
        left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
        best = left[:, :2] * sizes[:2] @ right[:2]
        own = layer.scale * layer.tensors["up"].flatten(1) @ layer.tensors["down"].flatten(1)
        torch.testing.assert_close(own.detach(), best, atol=1e-4, rtol=1e-3)
        assert torch.equal(weight, Small().get_submodule(layer.path).weight.flatten(1))


def test_pissa_is_exactly_a_lora_of_twice_the_rank_and_goes_through_a_checkpoint() -> None:
    model, adapters = adapted("locon", start="pissa")
    for layer in adapters.layers:
        factors = layer.factors()
        assert factors is not None and len(factors.down) == 8
        torch.testing.assert_close((factors.up @ factors.down).view(layer.delta().shape), layer.delta())
        now, first = ({end: layer.tensors[end].double() for end in ("up", "down")}, layer.constants)
        product = now["up"].flatten(1) @ now["down"].flatten(1)
        began = first["up0"].double().flatten(1) @ first["down0"].double().flatten(1)
        expected = (0.5 * (product - began)).float().view(layer.delta().shape)
        torch.testing.assert_close(layer.delta(), expected.detach(), atol=1e-5, rtol=1e-4)
    other, others = adapted("locon", start="pissa", seed=9)
    others.load(adapters.state())
    assert torch.equal(other(INPUT), model(INPUT))
