"""New tokens in the miniatures of every base, against the base itself and diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.adapters.textual_inversion import inject_tokens
from lora_studio.errors import CheckpointError, RecipeError
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.recipe.adapter import TokenConfig

NAMES = ["sd15", "sd2", "sdxl"]
OPTIONS = AdapterOptions("none", 1, 1.0, 0)
BALL = TokenConfig(token="zwx", start="red ball")
SNOW = TokenConfig(token="qbl", start="snow", vectors=3)


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest, base_of: Callable[[str], Path]) -> str:
    return str(base_of(request.param))


@pytest.fixture
def family(path: str) -> ModelFamily:
    return load_base(path)


def tokens_in(family: ModelFamily, *wanted: TokenConfig) -> AdapterSet:
    adapters = AdapterSet([], OPTIONS)
    adapters.tokens = inject_tokens(family, wanted or (BALL, SNOW))
    return adapters


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def learn(family: ModelFamily, adapters: AdapterSet) -> None:
    """One step towards something."""
    answer = family.encode_text(["a zwx in the qbl", "a blue cat"])
    sum(one.float().square().sum() for one in answer.values()).backward()  # type: ignore[union-attr]
    torch.optim.SGD(adapters.named_parameters().values(), lr=1e-2).step()


def test_untrained_or_disabled_tokens_are_their_start_to_the_last_bit(path: str, family: ModelFamily) -> None:
    """`snow` is one token in these bases, or several; as many as `qbl` has are said one after the other."""
    said = "snow"
    pieces = family.tokenizer_of("text_encoder")(said, add_special_tokens=False)["input_ids"]
    snow = TokenConfig(token="qbl", start=said, vectors=2 * len(pieces))
    with torch.no_grad():
        base = load_base(path).encode_text(["a red ball in the snow snow", "a blue cat"])
    adapters = tokens_in(family, BALL, snow)
    captions = ["a zwx in the qbl", "a blue cat"]
    with torch.no_grad():  # with gradients attention rounds otherwise
        assert same(family.encode_text(captions), base)
    learn(family, adapters)
    with torch.no_grad():
        learned = family.encode_text(captions)
        assert all(not torch.equal(learned[key][0], base[key][0]) for key in base)
        assert all(torch.equal(learned[key][1], base[key][1]) for key in base)  # another caption's
        with adapters.disabled():
            assert same(family.encode_text(captions), base)
        assert same(family.encode_text(captions), learned)


def test_a_gradient_reaches_every_row_and_nothing_else_and_the_base_keeps_its_bytes(
    path: str, family: ModelFamily
) -> None:
    before = {
        (part, key.replace("base_layer.", "")): tensor.clone()
        for part in family.text_encoders
        for key, tensor in family.parts[part].state_dict().items()
    }
    adapters = tokens_in(family)
    learn(family, adapters)
    rows = adapters.named_parameters()
    assert rows.keys() == {
        f"{part}.tokens.{word}" for part in family.text_encoders for word in ("zwx", "qbl")
    }
    for name, parameter in rows.items():
        assert parameter.grad is not None and parameter.dtype == torch.float32
        assert parameter.grad.abs().amax(dim=1).all(), name
    ours = {id(one) for one in rows.values()}
    for part in family.text_encoders:
        assert all(one.grad is None for one in family.parts[part].parameters() if id(one) not in ours)
    after = {
        (part, key.replace("base_layer.", "")): tensor
        for part in family.text_encoders
        for key, tensor in family.parts[part].state_dict().items()
        if ".rows." not in key
    }
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_tokens_are_saved_and_loaded_exactly(path: str, family: ModelFamily) -> None:
    adapters = tokens_in(family)
    learn(family, adapters)
    again = load_base(path)
    other = tokens_in(again)
    other.load(adapters.state())
    assert same(other.state(), adapters.state())
    captions = ["a zwx in the qbl"]
    assert same(again.encode_text(captions), family.encode_text(captions))
    with pytest.raises(CheckpointError, match="does not fit these adapters"):
        tokens_in(load_base(path), BALL).load(adapters.state())


def test_previews_read_prompts_as_training_does(family: ModelFamily) -> None:
    """Through diffusers' own reading of words of several vectors."""
    learn(family, tokens_in(family))
    pipeline = family.pipeline()
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    with torch.no_grad():
        prompt, *rest = pipeline.encode_prompt("a zwx in the qbl", **options)
        ours = family.encode_text(["a zwx in the qbl"])
    torch.testing.assert_close(prompt, ours["text"])
    if "pooled" in ours:
        torch.testing.assert_close(rest[1], ours["pooled"])


def test_the_pooled_answer_is_that_at_the_end_mark_whatever_the_configuration_says(
    base_of: Callable[[str], Path],
) -> None:
    """Published bases say eos_token_id 2, by which transformers takes a new token for the end."""
    path = str(base_of("sdxl"))
    with torch.no_grad():
        expected = load_base(path).encode_text(["a red ball"])["pooled"]
        family = load_base(path)
        for module in family.parts["text_encoder_2"].modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = 2
        assert torch.equal(family.encode_text(["a red ball"])["pooled"], expected)
        tokens_in(family, BALL)
        assert torch.equal(family.encode_text(["a zwx"])["pooled"], expected)


def test_norms_are_drawn_to_the_tables_mean_a_tenth_of_the_way(tiny_base: Path) -> None:
    family = load_base(str(tiny_base))
    table = family.parts["text_encoder"].get_input_embeddings().weight.clone()
    free = TokenConfig(token="qbl", start="snow", keep_norm=False)
    adapters = tokens_in(family, BALL, free)
    usual, ball = table.norm(dim=1).mean(), adapters.tokens[0]
    first, others = ball.rows.detach().clone(), adapters.tokens[1].rows.detach().clone()
    adapters.pull_tokens(kept=0.0)  # a step that was skipped
    assert torch.equal(ball.rows, first)
    adapters.pull_tokens()
    expected = (0.9 * first.norm(dim=1).log() + 0.1 * usual.log()).exp()
    torch.testing.assert_close(ball.rows.detach().norm(dim=1), expected)
    cosine = torch.cosine_similarity(ball.rows.detach(), first)
    torch.testing.assert_close(cosine, torch.ones(len(first)))
    assert torch.equal(adapters.tokens[1].rows, others)


def test_small_steps_are_kept_beside_a_base_of_few_bits(tiny_base: Path) -> None:
    family = load_base(str(tiny_base))
    family.cast(torch.bfloat16)
    adapters = tokens_in(family, BALL)
    rows, first = adapters.tokens[0].rows, adapters.tokens[0].rows.detach().clone()
    for _ in range(10):
        with torch.no_grad():
            rows.add_(1e-6)  # bfloat16 would round each away
    torch.testing.assert_close(rows.detach() - first, torch.full_like(first, 1e-5), atol=2e-7, rtol=0)
    assert family.encode_text(["a zwx"])["text"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (TokenConfig(token="robot", start="ball"), "tokens.token 'robot' is one token of this base"),
        (
            TokenConfig(token="zwx", start="red ball", vectors=1),
            "'red ball' has 2 tokens for this base, but tokens.vect",
        ),
    ],
)
def test_what_this_base_cannot_learn_is_refused(wanted: TokenConfig, words: str, tiny_base: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        inject_tokens(load_base(str(tiny_base)), [wanted])
