"""Z-Image as a recipe asks for it: what is refused, what its options do, and a run that is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import AtStep, interrupt
from tiny import recipe_text
from torch import Tensor

from lora_studio.data.captions.trigger import find_cut
from lora_studio.errors import BaseModelError, Interrupted, RecipeError
from lora_studio.families import FAMILIES
from lora_studio.families.loading import load_base
from lora_studio.objectives.base import ObjectiveOptions
from lora_studio.objectives.sigmas import shifted
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.prepare import prepare
from lora_studio.training.session import train

BaseOf = Callable[[str], Path]
SHAPE = (512, 16, 32, 32)


@pytest.fixture
def base(base_of: BaseOf) -> Path:
    return base_of("z_image")


@pytest.fixture
def recipe(base: Path, images: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(images, str(base), steps=2), "utf-8")
    return path


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def refused(folder: Path) -> str:
    with pytest.raises(BaseModelError) as caught:
        load_base(str(folder), weights=False)
    return str(caught.value)


# ---- what is refused

RELATIVES = {
    "omni": ({"siglip_feat_dim": 1152}, "Z-Image-Omni"),
    "control": ({"_class_name": "ZImageControlTransformer2DModel"}, "a control model"),
    "channels": ({"in_channels": 33}, "takes 33 channels"),
    "another encoder": ({"cap_feat_dim": 99}, "gives 24 numbers a token, but its transformer takes 99"),
}


@pytest.mark.parametrize("case", RELATIVES)
def test_a_relative_of_it_is_refused_by_name(case: str, copy: Path) -> None:
    values, words = RELATIVES[case]
    edit(copy / "transformer/config.json", **values)
    assert words in refused(copy)


def test_a_tokenizer_without_a_template_is_refused(copy: Path) -> None:
    for path in copy.glob("tokenizer/*template*"):
        path.unlink()
    edit(copy / "tokenizer/tokenizer_config.json", chat_template=None)
    assert "no chat template that works" in refused(copy)


REFUSED = {
    "adapter.text_encoder=true": "text encoders of this kind of base stay as they are; leave it out.",
    "data.max_token_chunks=3": "reads a caption in one go, up to 4",
    "objective.snr_gamma=1": "signal-to-noise ratio",
    "objective.weighting=debiased": "signal-to-noise ratio",
    "objective.noise_offset=0.1": "noise alone",
    "base.prediction_type=epsilon": "flow matching",
}


def test_what_means_nothing_for_it_is_one_sentence_each(recipe: Path, tmp_path: Path) -> None:
    for option, words in REFUSED.items():
        with pytest.raises((RecipeError, BaseModelError), match=words):
            train(load_recipe(recipe, changes=(option,)), tmp_path / "run")


@pytest.mark.parametrize("option", ["density=uniform", "shift=3", "sigma_weighting=bell"])
def test_options_of_sigmas_mean_nothing_for_diffusion(
    option: str, images: Path, tiny_base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(images, str(tiny_base)), "utf-8")
    name = option.partition("=")[0]
    words = rf"^objective\.{name} is .*discrete diffusion, which has timesteps .* leave it out"
    with pytest.raises(RecipeError, match=words):
        train(load_recipe(path, changes=(f"objective.{option}",)), tmp_path / "run")


def test_a_weighted_density_needs_a_weight(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="gives no weight to draw by"):
        load_recipe(recipe, changes=("objective.density=weighted",))


# ---- what the options of sigmas do


def drawn(base: Path, **options: object) -> tuple[Tensor, Tensor]:
    """Many sigmas, sorted, and their weights."""
    objective = load_base(str(base), weights=False).objective(ObjectiveOptions(**options))  # type: ignore[arg-type]
    share = objective.shares(SHAPE, torch.Generator().manual_seed(0), None).sort().values
    noisy = objective.noise_at(torch.zeros(SHAPE[0], 1, 1, 1), torch.zeros(SHAPE[0], 1, 1, 1), share)
    return share, noisy.weight


def test_sigmas_are_shifted_logit_normal_as_the_bases_scheduler_says(base: Path) -> None:
    share, weight = drawn(base)
    even = (torch.arange(512) + 0.5) / 512  # stratified: one draw in each part
    normal = torch.special.ndtri(even)
    wanted = 3 * torch.sigmoid(normal) / (1 + 2 * torch.sigmoid(normal))
    assert (share - wanted)[8:-8].abs().max() < 0.02 and torch.equal(weight, torch.ones(512))


def test_density_shift_and_weights_are_the_recipes(base: Path) -> None:
    even = (torch.arange(512) + 0.5) / 512
    uniform, weight = drawn(base, density="uniform", shift=1.0, sigma_weighting="cosmap")
    assert (uniform - even).abs().max() < 0.002
    torch.testing.assert_close(weight, 2 / (torch.pi * (1 - 2 * uniform + 2 * uniform**2)))
    high, _ = drawn(base, density="uniform", shift=6.0)
    weighted, flat = drawn(base, density="weighted", sigma_weighting="bell", shift=1.0)
    assert (high - shifted(even, 6.0)).abs().max() < 0.01
    assert torch.equal(flat, torch.ones(512)) and weighted.std() < uniform.std()


# ---- a run


def test_a_caption_is_cut_where_the_text_encoder_stops_and_said_so(base: Path) -> None:
    family = load_base(str(base))
    around = family.encode_text([""])["text"].shape[1]
    cut = find_cut(family.caption_tokenizers.values(), "a.png", "m" * 512)
    assert cut is not None and (cut.read, len(cut.lost)) == (512 - around, around)
    assert find_cut(family.caption_tokenizers.values(), "a.png", "m" * (512 - around)) is None
    assert family.encode_text(["m" * 600])["text"].shape[1] == 512


def test_exactly_one_family_recognises_each_base(base_of: BaseOf) -> None:
    from tiny import BASES

    from lora_studio.families.loading.folder import BaseFolder

    for name in BASES:
        configurations = BaseFolder(base_of(name), name).configurations
        families = [FAMILIES[one] for one in FAMILIES.names()]
        assert sum(one.recognises(configurations) for one in families) == 1
        assert not [reason for one in families if (reason := one.refusal(configurations))]


def test_captions_are_cached_as_long_as_they_are_and_padded_in_a_batch(recipe: Path, tmp_path: Path) -> None:
    session = prepare(load_recipe(recipe), Run(tmp_path / "run"), ignore_events)
    batch = session.loop.feed.micro_batch(1, 0)
    session.run.close()
    assert batch.conditioning is not None and session.loop.feed.texts is not None
    mask, text = batch.conditioning["mask"], batch.conditioning["text"]
    texts = session.loop.feed.texts
    alone = {caption: texts.batch([caption])["text"] for caption in batch.captions}
    assert mask.sum(dim=1).tolist() == [alone[caption].shape[1] for caption in batch.captions]
    for row, one in enumerate(alone[caption] for caption in batch.captions):
        assert torch.equal(text[row, : one.shape[1]], one[0]) and not text[row, one.shape[1] :].any()
    both = texts.batch(["", batch.captions[0]])  # an empty one is the template's tokens alone
    assert both["mask"].sum(dim=1).tolist()[0] < both["text"].shape[1]


def left_behind(folder: Path) -> dict[str, bytes]:
    names = ("tiny.safetensors", "checkpoints/step_000002/state.json", "timesteps.json")
    return {name: (folder / name).read_bytes() for name in names}


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bytes(recipe: Path, tmp_path: Path) -> None:
    wanted = load_recipe(recipe)
    straight = train(wanted, tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(wanted, tmp_path / "stopped", on_event=AtStep(1, interrupt))
    assert left_behind(train(tmp_path / "stopped", resume=True).folder) == left_behind(straight.folder)


def test_all_of_the_transformer_is_trained_and_ends_as_a_folder(
    base: Path, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    text = recipe_text(images, str(base), steps=2).replace("rank = 4\nalpha = 4\n", 'kind = "full"\n')
    path.write_text(text, "utf-8")
    result = train(load_recipe(path), tmp_path / "run")
    before, after = (
        load_base(str(one)).parts["transformer"].state_dict() for one in (base, result.lora_file)
    )
    still = {key for key, one in before.items() if torch.equal(one.half().float(), after[key].float())}
    assert {"x_pad_token", "cap_pad_token"} <= still and "layers.0.attention.to_q.weight" not in still
