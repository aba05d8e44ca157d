"""[adapter] through a whole run: what is refused before it, what the plan says, and what is trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ready import prepared
from tiny import recipe_text

from lora_studio.adapters import ADAPTERS
from lora_studio.errors import RecipeError
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.loop.state import load_state
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.report.adapters import adapter_notes
from lora_studio.training.session import train

RULES = """
[[adapter.layers]]
pattern = "text_encoder*"
learning_rate = 1e-3
stop_at = 0.5
[[adapter.layers]]
pattern = "*attn2*"
rank = 2
"""


@pytest.fixture(scope="module")
def with_rules(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, images: Path) -> Path:
    """Another rank for cross-attention, and a text encoder that stops after two of four steps."""
    path = tmp_path_factory.mktemp("rules") / "tiny.toml"
    path.write_text(recipe_text(images, str(tiny_base), extra=RULES), "utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("adapter.kind=lokar",), "unknown adapter kind 'lokar'; did you mean 'lokr'"),
        (("adapter.blocks=style",), "adapter.blocks is 'style'; for this base it may be 'all'"),
        (("adapter.conv_rank=4",), 'adapter.conv = true, or adapter.kind = "locon"'),
        (
            ("adapter.kind=oft", "adapter.lora_plus_ratio=4"),
            "lora_plus_ratio does not go with the kind 'oft'",
        ),
        (("adapter.kind=dora", "base.quantize=bnb_nf4"), "reads the frozen weights"),
        (
            ("adapter.kind=loha", "adapter.rank_dropout=0.1"),
            "rank_dropout = 0.1 does not go with the kind 'loha'",
        ),
        (('adapter.layers=[{pattern="attn3*",rank=2}]',), "'attn3*' matches none of the"),
        (('adapter.layers=[{pattern="*"}]',), "'*' changes nothing"),
        (('adapter.layers=[{pattern="*",train=false,rank=3}]',), "train = false and other options"),
        (('adapter.layers=[{patern="*",rank=3}]',), "did you mean 'pattern'"),
    ],
)
def test_what_cannot_be_is_refused_before_an_image_is_read(
    changes: tuple[str, ...], words: str, recipe_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        prepared(load_recipe(recipe_file, changes=changes), tmp_path)
    assert words in str(caught.value)
    assert not (tmp_path / "manifest.jsonl").exists()


def test_the_text_encoder_stops_while_the_rest_goes_on(with_rules: Path, tmp_path: Path) -> None:
    recipe = load_recipe(with_rules, changes=("adapter.text_encoder=true", "adapter.max_norm=0.001"))
    session = prepare(recipe, Run(tmp_path), ignore_events)
    states = {0: session.adapters.state()}
    session.loop.save = lambda step: states.update({step: session.adapters.state()})
    session.loop.run(1)
    rows = session.run.metrics()
    session.run.close()
    assert sorted(states) == [0, 2, 4]
    for key in states[0]:
        if key.endswith("up"):
            moved = [bool((states[a][key] != states[b][key]).any()) for a, b in ((0, 2), (2, 4))]
            assert moved == [True, not key.startswith("text_encoder")], key
    assert all(delta.norm() <= 0.001001 for delta in session.adapters.delta().values())
    assert rows[-1]["limited_layers"] > 0
    assert adapter_notes(recipe, session.adapters)[1:] == (
        f"unet: {_count(session, 4, 'unet')} layers of rank 4, scale 1",
        f"unet: {_count(session, 2, 'unet')} layers of rank 2, scale 1",
        "text_encoder: 18 layers of rank 4, scale 1, learning rate 0.001, until step 2",
    )


def _count(session: Session, rank: int, part: str) -> int:
    return sum(layer.part == part and layer.rank == rank for layer in session.adapters.layers)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("adapter.rank=16", "adapter.alpha=16"), ""),
        (("adapter.rank=32", "adapter.alpha=32"), "32 / 32 = 1, so learning rates are as at any rank"),
        # 1e-3 * sqrt(1/16) = 2.5e-4; 1e-3 / sqrt(1/16) = 4e-3
        (
            ("adapter.rank=16", "adapter.alpha=1"),
            "1 / 16 = 0.0625, so with Adam .* about as 0.00025 .* 0.004 would",
        ),
        (("adapter.rank=16", "adapter.alpha=4", "adapter.rslora=true"), r"4 / sqrt\(16\) = 1,"),
        # the fourth root of 1/16, for four factors
        (("adapter.kind=loha", "adapter.rank=16", "adapter.alpha=1"), "about as 0.0005 "),
    ],
)
def test_the_plan_says_what_rank_and_alpha_do_to_the_step(
    changes: tuple[str, ...], words: str, recipe_file: Path, tmp_path: Path
) -> None:
    session = prepared(load_recipe(recipe_file, changes=changes), tmp_path)
    notes = adapter_notes(session.recipe, session.adapters)
    assert re.search(words, notes[0]) if words else notes == ()


@pytest.mark.parametrize("blocks", ["content", "style"])
def test_b_lora_trains_one_block_of_sdxl(
    blocks: str, base_of: Callable[[str], Path], images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(images, str(base_of("sdxl"))), "utf-8")
    session = prepared(load_recipe(path, changes=(f"adapter.blocks={blocks}",)), tmp_path)
    place = {"content": 0, "style": 1}[blocks]
    stem = f"up_blocks.0.attentions.{place}."
    assert session.adapters.layers and all(one.path.startswith(stem) for one in session.adapters.layers)


@pytest.mark.parametrize(
    "changes",
    [
        ("adapter.kind=lokr", "adapter.module_dropout=0.3", "adapter.max_norm=0.05", "training.ema=0.9"),
        ("adapter.start=pissa", "adapter.rank_dropout=0.3", "adapter.lora_plus_ratio=4"),
    ],
)
def test_a_resumed_run_is_the_same_to_the_last_bit(
    changes: tuple[str, ...], with_rules: Path, tmp_path: Path
) -> None:
    """With dropout, a limit, PiSSA's constants, and a text encoder that stops where it was stopped."""
    recipe = load_recipe(with_rules, changes=("adapter.text_encoder=true", *changes))
    run = Run(tmp_path)
    straight = prepare(recipe, run, ignore_events)
    straight.loop.run(1)
    resumed = prepare(recipe, run, ignore_events)
    assert load_state(tmp_path / "checkpoints" / "step_000002", resumed.loop.state) == 2
    resumed.loop.run(3)
    run.close()
    found = resumed.adapters.state()
    assert all(torch.equal(tensor, found[key]) for key, tensor in straight.adapters.state().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd2 v", "sdxl"])
@pytest.mark.parametrize("kind", ADAPTERS.names())
def test_a_run_of_every_kind_ends_with_a_verified_file(
    kind: str, name: str, base_of: Callable[[str], Path], images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    text = recipe_text(images, str(base_of(name)), steps=3)
    path.write_text(text.replace("rank = 4\nalpha = 4\n", "") if kind == "full" else text, "utf-8")
    result = train(load_recipe(path, changes=(f"adapter.kind={kind}",)), tmp_path / "run")
    assert isinstance(result, Finished) and result.report.ok
