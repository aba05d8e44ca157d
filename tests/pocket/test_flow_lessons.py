"""What the second pocket base is taught, on networks of a moment's size."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Model

from lora_studio.pocket import stages
from lora_studio.pocket.scenes import (
    COLOURS,
    OBJECT_NAMES,
    POSITIONS,
    SIZES,
    Scene,
    Thing,
    draw,
    training_scene,
    wording,
)
from lora_studio.pocket.stages import dense, text, transformer, vae

CAPTIONS = ["", "a red ball on a beach", "a small red ball and an orange house at night, wexzork style"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Qwen2Tokenizer:
    return text.new_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def encoder(tokenizer: Qwen2Tokenizer) -> Qwen3Model:
    torch.manual_seed(0)
    return text.new_text_encoder(tokenizer).model.eval()


@pytest.fixture(scope="module")
def denoiser() -> ZImageTransformer2DModel:
    """Small, and with something in the layers that begin as zero."""
    torch.manual_seed(0)
    small = {"dim": 48, "n_layers": 4, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [8, 8, 8]}
    made = ZImageTransformer2DModel(**(stages.configuration("flow_transformer") | small))
    return made.eval()


@pytest.fixture(scope="module")
def pipeline(
    tokenizer: Qwen2Tokenizer, encoder: Qwen3Model, denoiser: ZImageTransformer2DModel
) -> ZImagePipeline:
    small = stages.configuration("flow_vae") | {"block_out_channels": [4, 4, 4, 4]}
    parts = AutoencoderKL(**small), encoder, tokenizer, denoiser
    made = ZImagePipeline(transformer.new_flow_scheduler(), *parts)
    made.set_progress_bar_config(disable=True)
    return made


def test_components_come_in_their_order_uncorrelated_and_are_about_1() -> None:
    filters, biases = vae.principal_components(32, 8, 6)
    pixels = stages.images_to_tensor([vae.image_for_vae(number, 32) for number in range(512)])
    latents = torch.nn.functional.conv2d(pixels, filters, biases, stride=8).permute(1, 0, 2, 3).flatten(1)
    spreads = latents.std(1)
    assert spreads.tolist() == sorted(spreads.tolist(), reverse=True) and spreads[0] < 5 * spreads[-1]
    torch.testing.assert_close(latents.square().mean(), torch.tensor(1.0), rtol=0.05, atol=0)
    torch.testing.assert_close(torch.corrcoef(latents), torch.eye(6), rtol=0, atol=1e-3)


def test_crops_lie_inside_and_follow_their_seed() -> None:
    pixels = torch.arange(2 * 3 * 16 * 16).float().view(2, 3, 16, 16)
    crops = vae._cropped(pixels, 8, seed=5)
    assert crops.shape == (2, 3, 8, 8) and torch.equal(crops, vae._cropped(pixels, 8, seed=5))
    assert torch.equal(crops[:, :, 1:, :] - crops[:, :, :-1, :], torch.full((2, 3, 7, 8), 16.0))
    assert not torch.equal(crops, vae._cropped(pixels, 8, seed=6))
    assert vae._cropped(pixels, None, seed=5) is pixels


def test_every_word_is_one_token_and_all_captions_fit_a_multiple_of_32(tokenizer: Qwen2Tokenizer) -> None:
    for word in (
        *OBJECT_NAMES,
        *COLOURS,
        "small",
        "large",
        "meadow",
        "beach",
        "night",
        "snow",
        "desert",
        "room",
    ):
        assert len(tokenizer.tokenize(f" {word}")) == 1, word
    plain = [training_scene(number).caption() for number in range(300)]
    assert text.tokens(tokenizer, plain)[1].sum(1).max() <= 32  # a multiple that a Z-Image pads to
    assert tokenizer.decode(tokenizer("vkq robot é").input_ids) == "vkq robot é"


def test_what_a_caption_says_is_what_is_asked() -> None:
    slots = list(text._SLOTS.items())
    for scene in map(training_scene, range(200)):
        named = {slot: names[n] for (slot, names), n in zip(slots, text.said(scene), strict=True)}
        caption = wording(scene, random.Random(0))
        assert all(
            name in caption for slot, name in named.items() if slot != "background" and name != text.UNSAID
        )
        unsaid = itertools.chain(SIZES, POSITIONS) if len(scene.things) == 1 else ()
        assert all(
            (word in scene.caption()) == (word in named.values()) for word in unsaid if word != "medium"
        )


def test_features_are_the_pipelines_and_do_not_depend_on_the_batch(
    pipeline: ZImagePipeline, encoder: Qwen3Model, tokenizer: Qwen2Tokenizer
) -> None:
    ours = text.features(encoder, tokenizer, CAPTIONS)
    theirs = pipeline._encode_prompt(list(CAPTIONS))
    for caption, one, its in zip(CAPTIONS, ours, theirs, strict=True):
        torch.testing.assert_close(one, its, rtol=0, atol=1e-5)
        torch.testing.assert_close(one, text.features(encoder, tokenizer, [caption])[0], rtol=0, atol=1e-5)
        assert one.dtype == torch.float32


def test_samples_are_the_pipelines(
    pipeline: ZImagePipeline,
    encoder: Qwen3Model,
    tokenizer: Qwen2Tokenizer,
    denoiser: ZImageTransformer2DModel,
) -> None:
    """Sign, time, template and guidance all at once; the pipeline counts guidance from 0."""
    said, (empty,) = text.features(encoder, tokenizer, CAPTIONS[1:]), text.features(encoder, tokenizer, [""])
    ours = transformer.sample(denoiser, said, empty, seed=7, guidance=4.0, steps=3)
    options = {"guidance_scale": 3.0, "num_inference_steps": 3, "height": 128, "width": 128}
    noise = torch.randn((2, 16, 16, 16), generator=torch.Generator().manual_seed(7))
    theirs = pipeline(list(CAPTIONS[1:]), latents=noise, output_type="latent", **options).images
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (12, 20), (18, 14)])
@pytest.mark.parametrize("lengths", [(20, 32), (7, 45), (33, 64)])
def test_whole_batches_get_the_modules_own_answers_and_gradients(
    denoiser: ZImageTransformer2DModel, shape: tuple[int, int], lengths: tuple[int, ...]
) -> None:
    """Padding of captions and of images, the positions behind longer captions, masks, and every weight."""
    torch.manual_seed(1)
    noised, sigma = torch.randn(2, 16, *shape), torch.tensor([0.3, 0.8])
    said = [torch.randn(count, 128) for count in lengths]
    wanted = torch.randn(noised.shape)
    answers, gradients = [], []
    for is_dense in (False, True):
        if is_dense:
            captions = dense.padded(said)
            turns = dense.turns(denoiser, captions.lengths, captions.features.shape[1], _halves(shape))
            answer = -dense.forward(denoiser, noised, 1 - sigma, captions, turns, asked=1)[0]
        else:
            answer = transformer.velocity(denoiser, noised, sigma, said)
        denoiser.zero_grad()
        (answer * wanted).sum().backward()
        answers.append(answer.detach())
        gradients.append(
            {name: p.grad.clone() for name, p in denoiser.named_parameters() if p.grad is not None}
        )
    torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
    for name, gradient in gradients[0].items():
        spread = float(gradient.abs().max())
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-4 * spread + 1e-6, msg=name)


def _halves(shape: tuple[int, int]) -> tuple[int, int]:
    return shape[0] // 2, shape[1] // 2


def test_a_scenes_wordings_are_read_once_and_an_empty_caption_is_none(
    encoder: Qwen3Model, tokenizer: Qwen2Tokenizer, tmp_path: Path
) -> None:
    encoder.save_pretrained(tmp_path / "done")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "captions.safetensors"
    made = text.Wordings(tmp_path, path, 6, torch.device("cpu"))
    written = path.read_bytes()
    again = text.Wordings(tmp_path, path, 6, torch.device("cpu"))
    assert path.read_bytes() == written
    said, lengths = again.of([4, 2, 4], ["said", "", "said"], step=1)
    assert said.shape == (3, 32, encoder.config.hidden_size) and torch.equal(
        said, made.of([4, 2, 4], ["x", "", "x"], 1)[0]
    )
    empty = text.features(encoder, tokenizer, [""])[0]
    torch.testing.assert_close(said[1, : len(empty)], empty, rtol=0, atol=1e-2)
    assert lengths[1] == len(empty) and not said[1, len(empty) :].any()
    scene = training_scene(4)
    worded = [wording(scene, random.Random(2 * scene.seed + n)) for n in range(2)]
    known = text.features(encoder, tokenizer, worded)
    assert {len(one) for one in known} >= {int(lengths[0]), int(lengths[2])}
    assert (
        min(float((said[0, : len(one)] - one).abs().max()) for one in known if len(one) == lengths[0]) < 1e-2
    )


def test_long_captions_are_those_that_are_padded_to_64(tokenizer: Qwen2Tokenizer) -> None:
    for caption in (CAPTIONS[1], CAPTIONS[2], "a red ball"):
        longer = text.lengthened(tokenizer, caption, random.Random(1))
        assert longer.startswith(f"{caption}, ") and longer == text.lengthened(
            tokenizer, caption, random.Random(1)
        )
        assert 32 < text.tokens(tokenizer, [longer])[0].shape[1] <= 64


def test_muon_has_the_blocks_matrices_and_goes_on_where_it_was(tmp_path: Path) -> None:
    def trained(folder: Path, *parts: int) -> dict[str, Tensor]:
        for upto in parts:
            torch.manual_seed(0)
            small = stages.configuration("flow_transformer") | {"n_layers": 1}
            asked = transformer.Asked(ZImageTransformer2DModel(**small))
            config = stages.StageConfig("small", 8, 1e-3, matrix_rate=4e-3)
            trainee = stages.Trainee(asked, config, folder, matrices=asked.matrices())
            for step in range(trainee.step, upto):
                rng = torch.Generator().manual_seed(step)
                noised, said = torch.randn(2, 16, 4, 8, generator=rng), torch.randn(2, 32, 128, generator=rng)
                answer, named = asked(noised, torch.tensor([0.2, 0.9]), said, torch.tensor([9, 30]))
                trainee.update(answer.square().mean() + named.square().mean())
            trainee.save()
        assert len(asked.matrices()) == 7 * (1 + 2)
        return {name: p.detach() for name, p in asked.named_parameters()} | trainee.average

    whole, parted = trained(tmp_path / "whole", 2), trained(tmp_path / "parted", 1, 2)
    assert all(torch.equal(parted[name], tensor) for name, tensor in whole.items())
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("whole", "parted")]
    assert states[0] == states[1]


def test_the_velocity_of_a_model_that_knows_the_answer_has_no_error() -> None:
    clean, noise, sigma = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 4, 4), torch.tensor([0.25, 0.75])

    def knowing(latents: list[Tensor], time: Tensor, said: object, return_dict: bool) -> tuple[list[Tensor]]:
        torch.testing.assert_close(time, 1 - sigma)
        assert [one.shape for one in latents] == [(16, 1, 4, 4)] * 2
        return ([(x0 - n)[:, None] for x0, n in zip(clean, noise, strict=True)],)

    torch.testing.assert_close(transformer.velocity(knowing, clean, sigma, []), noise - clean)  # type: ignore[arg-type]


def test_half_of_the_sigmas_lie_at_high_noise_and_they_are_stratified() -> None:
    drawn = transformer.sigmas(1001, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.median(), torch.tensor(0.75), rtol=0, atol=5e-3)
    assert torch.equal(drawn, drawn.sort().values) and drawn[0] >= 0 and drawn[-1] <= 1


def test_objects_lie_in_the_map_where_they_are_drawn() -> None:
    ball = Thing("ball", "red", "large", "on the left", (0.28, 0.55), 0.25)
    star = Thing("star", "blue", "large", "on the right", (0.75, 0.5), 0.2)
    scene = Scene((ball, star), "meadow")
    for shape in ((16, 16), (12, 20)):
        found = transformer.object_map(scene, shape)
        assert found.shape == shape
        assert set(found.unique().tolist()) == {0, *(1 + OBJECT_NAMES.index(t.name) for t in scene.things)}
        image = stages.images_to_tensor([draw(scene, 8 * shape[1], 8 * shape[0])])[0]
        red, _, blue = image.unfold(1, 8, 8).unfold(2, 8, 8)[..., 3:5, 3:5].mean((3, 4))
        assert (red - blue)[found == 1 + OBJECT_NAMES.index("ball")].median() > 0.5
        assert (blue - red)[found == 1 + OBJECT_NAMES.index("star")].median() > 0.5


def test_patches_are_in_the_transformers_order(denoiser: ZImageTransformer2DModel) -> None:
    maps = torch.randint(0, 15, (1, 6, 8))
    theirs = denoiser._patchify_image(maps[:, None], 2, 1)[0]
    assert torch.equal(transformer._patches(maps)[0], theirs)


def test_a_new_transformer_answers_zero_and_learns_in_every_part(
    encoder: Qwen3Model, tokenizer: Qwen2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    asked = transformer.Asked(transformer.new_transformer())
    latents, sigma = torch.randn(2, 16, 16, 16), torch.tensor([0.3, 0.8])
    said = dense.padded(text.features(encoder, tokenizer, CAPTIONS[1:]))
    optimizer = torch.optim.AdamW(asked.parameters(), lr=1e-3)
    for step in range(3):
        answer, named = asked(latents, sigma, *said)
        assert answer.shape == latents.shape and named.shape == (2, 64, 4, len(OBJECT_NAMES) + 1)
        assert bool(answer.any()) == (step > 0)
        ((answer - latents).square().mean() + named.square().mean()).backward()
        optimizer.step()
        if step < 2:
            optimizer.zero_grad()
    still = [name for name, p in asked.named_parameters() if not p.grad.any()]  # type: ignore[union-attr]
    assert still == ["transformer.x_pad_token"]  # 64 tokens need no padding
