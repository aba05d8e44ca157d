"""What every transformer of rectified flow promises: its pipeline's own numbers, and a plain step's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from anima_blocks import open_pipeline, torchvision_there
from diffusers import DiffusionPipeline
from peft import LoraConfig
from tiny import recipe_text
from torch import Tensor

from lora_studio.evaluate.previews import render
from lora_studio.families.base import Conditioning, ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.families.transformers import MASK, FlowTransformer, joined
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.training import SamplesConfig
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.prepare import Session, prepare

CAPTIONS = ["", "a red ball in a meadow", "moon " * 40]
SIZES = [(64, 64), (72, 44), (36, 100)]  # height, width
BaseOf = Callable[[str], Path]


def by_one_scale(pipeline: DiffusionPipeline, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """As pipelines put it: decode(latents / scaling_factor + shift_factor)."""
    config = pipeline.vae.config
    return mean / config.scaling_factor + (config.shift_factor or 0), std / config.scaling_factor


class Reference(NamedTuple):
    """How diffusers' pipeline of a family is asked."""

    text: Callable[[DiffusionPipeline, str], dict[str, Tensor]]  # a caption's conditioning, [n, D] and [P]
    spatial: Callable[[DiffusionPipeline, Tensor, int, int], Tensor]  # its latents -> [B, C, h, w]
    unguided: dict[str, Any]
    guided: Callable[[DiffusionPipeline, float, str], dict[str, Any]]  # as strong as UIs have it, and against
    velocity: Callable[[Any, Tensor, Tensor, list[dict[str, Tensor]]], Tensor]  # of its transformer, by hand
    # Mean and deviation of latents -> as the VAE itself has them.
    decoded: Callable[[DiffusionPipeline, Tensor, Tensor], tuple[Tensor, Tensor]] = by_one_scale
    sizes: Sequence[tuple[int, int]] = SIZES


def as_they_are(pipeline: DiffusionPipeline, latents: Tensor, height: int, width: int) -> Tensor:
    return latents


def z_image_text(pipeline: DiffusionPipeline, caption: str) -> dict[str, Tensor]:
    return {"text": pipeline.encode_prompt([caption], device="cpu", do_classifier_free_guidance=False)[0][0]}


def z_image_velocity(
    transformer: Any, noisy: Tensor, sigma: Tensor, texts: list[dict[str, Tensor]]
) -> Tensor:
    tokens = [one["text"] for one in texts]
    found = transformer([one[:, None] for one in noisy], 1 - sigma, tokens, return_dict=False)[0]
    return -torch.stack([one[:, 0] for one in found])


def flux_text(pipeline: DiffusionPipeline, caption: str) -> dict[str, Tensor]:
    length = 512 if pipeline.transformer.config.guidance_embeds else 256
    text, pooled, _ = pipeline.encode_prompt([caption], None, device="cpu", max_sequence_length=length)
    return {"text": text[0], "pooled": pooled[0]}


def qwen_latents(pipeline: DiffusionPipeline, latents: Tensor, height: int, width: int) -> Tensor:
    return pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)[:, :, 0]


def flux_latents(pipeline: DiffusionPipeline, latents: Tensor, height: int, width: int) -> Tensor:
    """`height` and `width` in pixels; the VAE of the miniatures halves them."""
    return pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)


def in_tokens(latents: Tensor) -> Tensor:
    """Four latents a token, in loops, as the paper puts it."""
    _, _, height, width = latents.shape
    places = [(row, column) for row in range(0, height, 2) for column in range(0, width, 2)]
    return torch.stack([latents[:, :, y : y + 2, x : x + 2].flatten(1) for y, x in places], dim=1)


def in_latents(tokens: Tensor, height: int, width: int) -> Tensor:
    found = tokens.new_zeros(len(tokens), tokens.shape[-1] // 4, height, width)
    places = [(row, column) for row in range(0, height, 2) for column in range(0, width, 2)]
    for number, (y, x) in enumerate(places):
        found[:, :, y : y + 2, x : x + 2] = tokens[:, number].reshape(len(tokens), -1, 2, 2)
    return found


def stream_inputs(noisy: Tensor, sigma: Tensor, texts: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Of FLUX.1's and Chroma's transformer: a token's row and column, and no place for text."""
    height, width = noisy.shape[-2:]
    places = [(0, row, column) for row in range(height // 2) for column in range(width // 2)]
    longest = max(len(one["text"]) for one in texts)
    return {
        "hidden_states": in_tokens(noisy),
        "timestep": sigma,
        "encoder_hidden_states": torch.stack(
            [F.pad(t["text"], (0, 0, 0, longest - len(t["text"]))) for t in texts]
        ),
        "img_ids": torch.tensor(places, dtype=noisy.dtype),
        "txt_ids": torch.zeros(longest, 3, dtype=noisy.dtype),
        "return_dict": False,
    }


def flux_velocity(transformer: Any, noisy: Tensor, sigma: Tensor, texts: list[dict[str, Tensor]]) -> Tensor:
    pooled = torch.stack([one["pooled"] for one in texts])
    guidance = torch.ones(len(noisy)) if transformer.config.guidance_embeds else None
    found = transformer(**stream_inputs(noisy, sigma, texts), pooled_projections=pooled, guidance=guidance)[0]
    return in_latents(found, *noisy.shape[-2:])


def chroma_text(pipeline: DiffusionPipeline, caption: str) -> dict[str, Tensor]:
    text, _, mask, *_ = pipeline.encode_prompt([caption], device="cpu", do_classifier_free_guidance=False)
    return {"text": text[0, : int(mask.sum())]}


def chroma_velocity(transformer: Any, noisy: Tensor, sigma: Tensor, texts: list[dict[str, Tensor]]) -> Tensor:
    """One after the other, so that there is nothing to mask."""
    found = [
        transformer(**stream_inputs(noisy[row : row + 1], sigma[row : row + 1], texts[row : row + 1]))[0]
        for row in range(len(noisy))
    ]
    return in_latents(torch.cat(found), *noisy.shape[-2:])


def flux2_text(pipeline: DiffusionPipeline, caption: str) -> dict[str, Tensor]:
    return {"text": pipeline.encode_prompt([caption], device="cpu")[0][0]}


def flux2_latents(pipeline: DiffusionPipeline, latents: Tensor, height: int, width: int) -> Tensor:
    """Of sides in pixels, of which the miniature's tokens have four."""
    rows, columns = height // 4, width // 4
    places = pipeline._prepare_latent_ids(torch.empty(len(latents), 1, rows, columns))
    return pipeline._unpack_latents_with_ids(latents, places)


def flux2_decoded(pipeline: DiffusionPipeline, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    bn, eps = pipeline.vae.bn, pipeline.vae.config.batch_norm_eps
    center, spread = bn.running_mean[:, None, None], (bn.running_var + eps).sqrt()[:, None, None]
    whole = pipeline._unpatchify_latents
    return whole(mean * spread + center), whole(std * spread)


def flux2_velocity(transformer: Any, noisy: Tensor, sigma: Tensor, texts: list[dict[str, Tensor]]) -> Tensor:
    batch, _, height, width = noisy.shape
    text = torch.stack([one["text"] for one in texts])
    places = [(0, row, column, 0) for row in range(height) for column in range(width)]
    found = transformer(
        hidden_states=torch.stack([noisy[:, :, y, x] for _, y, x, _ in places], dim=1),
        encoder_hidden_states=text,
        timestep=sigma,
        img_ids=torch.tensor([places] * batch),
        txt_ids=torch.tensor([[(0, 0, 0, place) for place in range(text.shape[1])]] * batch),
        guidance=torch.ones(batch) if transformer.config.guidance_embeds else None,
        return_dict=False,
    )[0]
    return (
        torch.stack([found[:, number].T for number in range(len(places))])
        .permute(2, 1, 0)
        .reshape(noisy.shape)
    )


def flux2_guided(pipeline: DiffusionPipeline, strength: float, negative: str) -> dict[str, Any]:
    """klein's pipeline takes no negative prompt, but its tokens; dev is guided without."""
    guided = {"guidance_scale": strength}
    if pipeline.transformer.config.guidance_embeds:
        return guided
    return guided | {"negative_prompt_embeds": flux2_text(pipeline, negative)["text"][None]}


def krea2_text(pipeline: DiffusionPipeline, caption: str) -> dict[str, Tensor]:
    text, mask = pipeline.encode_prompt([caption], device="cpu")
    return {"text": text[0, mask[0]]}


def krea2_latents(pipeline: DiffusionPipeline, latents: Tensor, height: int, width: int) -> Tensor:
    return pipeline._unpack_latents(latents, height, width)[:, :, 0]


def krea2_velocity(transformer: Any, noisy: Tensor, sigma: Tensor, texts: list[dict[str, Tensor]]) -> Tensor:
    """One after the other, so that there is nothing to mask."""
    height, width = noisy.shape[-2:]
    of_image = [(0, row, column) for row in range(height // 2) for column in range(width // 2)]
    found = [
        transformer(
            in_tokens(noisy[row : row + 1]),
            encoder_hidden_states=one["text"][None],
            timestep=sigma[row : row + 1],
            position_ids=torch.tensor([(0, 0, 0)] * len(one["text"]) + of_image),
            return_dict=False,
        )[0]
        for row, one in enumerate(texts)
    ]
    return in_latents(torch.cat(found), height, width)


def sd3_text(pipeline: DiffusionPipeline, caption: str) -> dict[str, Tensor]:
    text, _, pooled, _ = pipeline.encode_prompt(
        [caption], None, None, device="cpu", do_classifier_free_guidance=False
    )
    return {"text": text[0], "pooled": pooled[0]}


def sd3_velocity(transformer: Any, noisy: Tensor, sigma: Tensor, texts: list[dict[str, Tensor]]) -> Tensor:
    text, pooled = (torch.stack([one[name] for one in texts]) for name in ("text", "pooled"))
    inputs = {"encoder_hidden_states": text, "pooled_projections": pooled, "timestep": 1000 * sigma}
    return transformer(noisy, **inputs, return_dict=False)[0]


def qwen_text(pipeline: DiffusionPipeline, caption: str) -> dict[str, Tensor]:
    text, _ = pipeline.encode_prompt([caption], device="cpu")
    return {"text": text[0]}


def qwen_velocity(transformer: Any, noisy: Tensor, sigma: Tensor, texts: list[dict[str, Tensor]]) -> Tensor:
    """One after the other, so that there is nothing to mask."""
    height, width = noisy.shape[-2:]
    found = [
        transformer(
            in_tokens(noisy[row : row + 1]),
            encoder_hidden_states=one["text"][None],
            timestep=sigma[row : row + 1],
            img_shapes=[(1, height // 2, width // 2)],
            return_dict=False,
        )[0]
        for row, one in enumerate(texts)
    ]
    return in_latents(torch.cat(found), height, width)


def lumina2_text(pipeline: DiffusionPipeline, caption: str) -> dict[str, Tensor]:
    text, mask, *_ = pipeline.encode_prompt([caption], device="cpu", do_classifier_free_guidance=False)
    return {"text": text[0, : int(mask.sum())]}


def lumina2_velocity(
    transformer: Any, noisy: Tensor, sigma: Tensor, texts: list[dict[str, Tensor]]
) -> Tensor:
    """One after the other, so that there is nothing to mask; the model counts from noise to image."""
    found = []
    for row, one in enumerate(texts):
        text = one["text"][None]
        mask = torch.ones(text.shape[:2], dtype=torch.bool)
        inputs = (noisy[row : row + 1], 1 - sigma[row : row + 1], text, mask)
        found.append(-transformer(*inputs, return_dict=False)[0])
    return torch.cat(found)


def anima_text(pipeline: Any, caption: str) -> dict[str, Tensor]:
    return {"text": pipeline.text(caption)}


def anima_velocity(transformer: Any, noisy: Tensor, sigma: Tensor, texts: list[dict[str, Tensor]]) -> Tensor:
    """Of a video of one frame, with 512 tokens of text, none of them masked."""
    text = torch.stack([F.pad(one["text"], (0, 0, 0, 512 - len(one["text"]))) for one in texts])
    mask = noisy.new_zeros(1, 1, *noisy.shape[-2:])
    with torchvision_there():
        found = transformer(noisy[:, :, None], sigma, text, padding_mask=mask, return_dict=False)[0]
    return found[:, :, 0]


def of_one_frame(pipeline: DiffusionPipeline, latents: Tensor, height: int, width: int) -> Tensor:
    return latents[:, :, 0]


def video_decoded(pipeline: DiffusionPipeline, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """decode(latents / (1 / latents_std) + latents_mean), of one frame."""
    config = pipeline.vae.config
    means, deviations = (torch.tensor(config[f"latents_{one}"])[:, None, None] for one in ("mean", "std"))
    return (mean * deviations + means)[:, :, None], (std * deviations)[:, :, None]


def with_negative(pipeline: DiffusionPipeline, strength: float, negative: str) -> dict[str, Any]:
    return {"guidance_scale": strength, "negative_prompt": negative}


FLUX2 = Reference(
    text=flux2_text,
    spatial=flux2_latents,
    unguided={"guidance_scale": 1.0},
    guided=flux2_guided,
    velocity=flux2_velocity,
    decoded=flux2_decoded,
)
SCHNELL = {"guidance_scale": 0.0, "max_sequence_length": 256}
SD3 = Reference(
    text=sd3_text,
    spatial=as_they_are,
    unguided={"guidance_scale": 1.0},
    guided=with_negative,
    velocity=sd3_velocity,
)
REFERENCES = {
    "flux1": Reference(
        text=flux_text,
        spatial=flux_latents,
        unguided={"guidance_scale": 1.0},
        guided=lambda pipeline, strength, negative: {"guidance_scale": strength},
        velocity=flux_velocity,
    ),
    "flux1 schnell": Reference(
        text=flux_text,
        spatial=flux_latents,
        unguided=SCHNELL,
        guided=lambda pipeline, strength, negative: SCHNELL,
        velocity=flux_velocity,
    ),
    "chroma": Reference(
        text=chroma_text,
        spatial=flux_latents,
        unguided={"guidance_scale": 1.0},
        guided=with_negative,
        velocity=chroma_velocity,
    ),
    "qwen_image": Reference(
        text=qwen_text,
        spatial=qwen_latents,
        unguided={"true_cfg_scale": 1.0},
        guided=lambda pipeline, strength, negative: {"true_cfg_scale": strength, "negative_prompt": negative},
        velocity=qwen_velocity,
        decoded=video_decoded,
    ),
    "krea2": Reference(
        text=krea2_text,
        spatial=krea2_latents,
        unguided={"guidance_scale": 0.0},
        guided=lambda pipeline, strength, negative: with_negative(pipeline, strength - 1, negative),
        velocity=krea2_velocity,
        decoded=video_decoded,
    ),
    "lumina2": Reference(
        text=lumina2_text,
        spatial=as_they_are,
        unguided={"guidance_scale": 1.0},
        guided=with_negative,
        velocity=lumina2_velocity,
        sizes=[(64, 64), (80, 48), (32, 112)],  # its pipeline takes multiples of 16 alone
    ),
    "anima": Reference(
        text=anima_text,
        spatial=of_one_frame,
        unguided={"guidance_scale": 1.0},
        guided=with_negative,
        velocity=anima_velocity,
        decoded=video_decoded,
    ),
    "flux2": FLUX2,
    "flux2 dev": FLUX2,
    "sd3": SD3,
    "sd3 first": SD3,
    "z_image": Reference(
        text=z_image_text,
        spatial=as_they_are,
        unguided={"guidance_scale": 0},
        guided=lambda pipeline, strength, negative: with_negative(pipeline, strength - 1, negative),
        velocity=z_image_velocity,
    ),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (" " in name)) for name in REFERENCES],
)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def family(name: str, base_of: BaseOf) -> ModelFamily:
    return load_base(str(base_of(name)))


@pytest.fixture(scope="module")
def pipeline(name: str, base_of: BaseOf) -> DiffusionPipeline:
    """diffusers' own, from the folder, without a line of ours."""
    loaded = open_pipeline(base_of(name))
    loaded.set_progress_bar_config(disable=True)
    if name == "chroma":  # whose own adds its mask, of numbers, to the logits
        prepare = loaded._prepare_attention_mask
        loaded._prepare_attention_mask = lambda attention_mask, **given: prepare(
            attention_mask=None if attention_mask is None else attention_mask.bool(), **given
        )
    return loaded


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_each_caption_is_encoded_as_its_pipeline_does(
    name: str, family: ModelFamily, pipeline: DiffusionPipeline
) -> None:
    batch = family.encode_text(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        theirs = REFERENCES[name].text(pipeline, caption)
        alone = family.encode_text([caption])
        length = len(theirs["text"])
        assert alone.keys() - {MASK} == theirs.keys()
        for key in theirs:
            close(alone[key][0], theirs[key])
            close(batch[key][row, : len(theirs[key])], theirs[key])
        if MASK in batch:
            assert batch[MASK][row].sum() == length == alone[MASK].sum()
            assert not batch["text"][row, length:].any()


def test_images_become_latents_that_its_pipeline_decodes(
    name: str, family: ModelFamily, pipeline: DiffusionPipeline
) -> None:
    pixels = torch.rand(2, 3, 64, 72, generator=generator("p")) * 2 - 1
    mean, std = family.encode_image(pixels)
    is_video = "z_dim" in pipeline.vae.config
    with torch.no_grad():
        theirs = pipeline.vae.encode(pixels[:, :, None] if is_video else pixels).latent_dist
    mean, std = REFERENCES[name].decoded(pipeline, mean, std)
    close(mean, theirs.mean)
    close(std, theirs.std)


def test_at_each_step_of_its_pipeline_our_prediction_is_what_its_scheduler_is_given(
    name: str, family: ModelFamily, pipeline: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sign, timestep, packing, positions and masks, for a batch of unequal captions at several sizes."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    step = type(pipeline.scheduler).step

    def listen(self: Any, output: Tensor, timestep: Tensor, sample: Tensor, *rest: Any, **more: Any) -> Any:
        seen.append((output, timestep, sample))
        return step(self, output, timestep, sample, *rest, **more)

    monkeypatch.setattr(type(pipeline.scheduler), "step", listen)
    reference, conditioning = REFERENCES[name], family.encode_text(CAPTIONS)
    for height, width in reference.sizes:
        del seen[:]
        draws = {"generator": generator("noise"), "output_type": "latent", "num_inference_steps": 2}
        pipeline(prompt=list(CAPTIONS), height=height, width=width, **draws, **reference.unguided)
        geometry = torch.tensor([[float(height), width, 0, 0, height, width]] * len(CAPTIONS))
        assert len(seen) == 2
        for output, timestep, sample in seen:
            latents = reference.spatial(pipeline, sample, height, width)
            sigma = (timestep / 1000).expand(len(CAPTIONS))
            with torch.no_grad():
                ours = family.denoise(latents, sigma, conditioning, geometry)
            close(ours, reference.spatial(pipeline, output, height, width))


@pytest.mark.parametrize("strength", [1.0, 3.5])
def test_a_preview_is_what_its_pipeline_draws(
    name: str, family: ModelFamily, pipeline: DiffusionPipeline, strength: float
) -> None:
    config = SamplesConfig(
        prompts=tuple(CAPTIONS[1:]), negative_prompt="a tree", steps=3, guidance=strength, seed=5
    )
    ours = render(family, config, side=64)
    reference = REFERENCES[name]
    wanted = reference.unguided if strength == 1 else reference.guided(pipeline, strength, "a tree")
    for number, prompt in enumerate(config.prompts):
        noise = generator(5, "preview", number)
        size = {"height": 64, "width": 64, "num_inference_steps": 3}
        theirs = pipeline(prompt=prompt, generator=noise, **size, **wanted)
        apart = np.asarray(ours[number]).astype(int) - np.asarray(theirs.images[0]).astype(int)
        assert abs(apart).max() <= 1 and np.asarray(ours[number]).std() > 1


def predicted(family: ModelFamily, conditioning: Conditioning, rows: slice) -> Tensor:
    latents, _, geometry = family.probe_inputs()
    noise = torch.cat([latents, latents.flip(0)])[: len(CAPTIONS)]
    sigma = torch.tensor([0.2, 0.5, 0.9])
    with torch.no_grad():
        return family.denoise(noise[rows], sigma[rows], conditioning, geometry[:1].expand(3, -1)[rows])


def test_unequal_captions_in_a_batch_are_each_as_alone_and_what_is_masked_changes_nothing(
    family: FlowTransformer,
) -> None:
    alone = [family.encode_text([caption]) for caption in CAPTIONS]
    batch = predicted(family, family.join(alone, alone[0]), slice(0, 3))
    for row, one in enumerate(alone):
        close(batch[row : row + 1], predicted(family, one, slice(row, row + 1)))
    close(predicted(family, family.encode_text(CAPTIONS), slice(0, 3)), batch)
    if MASK in alone[0]:
        longer = family.join(alone, alone[0])
        beside = torch.full_like(longer["text"][:, :7], 3.0)
        longer["text"] = torch.cat([longer["text"], beside], dim=1)
        longer[MASK] = torch.cat([longer[MASK], torch.zeros_like(longer[MASK][:, :7])], dim=1)
        longer["text"][~longer[MASK]] = 9.0
        close(predicted(family, longer, slice(0, 3)), batch)


def test_shorter_rows_end_in_zeros() -> None:
    rows = [torch.ones(1, 2, 3), torch.ones(1, 4, 3)]
    assert joined(rows).sum(dim=(1, 2)).tolist() == [6, 12] and not joined(rows)[0, 2:].any()
    assert torch.equal(joined(rows[:1] * 2), torch.ones(2, 2, 3))


RATES = {torch.optim.AdamW: 1e-3, torch.optim.SGD: 0.1}  # far beyond what weights are rounded to


def plain_step(
    session: Session, base: Path, reference: Reference, *, dtype: torch.dtype, make: Callable[..., Any]
) -> dict[str, Tensor]:
    """The weights after a step of diffusers, PEFT and torch.optim, from the same first values and draws."""
    pipeline = open_pipeline(base)
    transformer: Any = type(pipeline.transformer).from_pretrained(
        base / "transformer", torch_dtype=dtype, local_files_only=True
    )
    for name, part in pipeline.components.items():
        if name.startswith("text_"):
            part.to(dtype)
    layers = session.adapters.layers
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=[layer.path for layer in layers]))
    weights = {}
    for layer in layers:
        theirs = transformer.get_submodule(layer.path)
        for end, matrix in (("down", theirs.lora_A), ("up", theirs.lora_B)):
            weight = matrix["default"].weight
            weight.data = layer.tensors[end].detach().clone()
            weights[f"{layer.name}.{end}"] = weight
    batch, loop = session.loop.feed.micro_batch(1, 0), session.loop
    sigma = loop.objective.shares(batch.latents.shape, *loop.draw_of(1, 0))
    noise = torch.randn(batch.latents.shape, generator=loop.draw_of(1, 0)[0])
    mixed = sigma.view(-1, 1, 1, 1)
    with torch.no_grad():
        found = [reference.text(pipeline, caption) for caption in batch.captions]
    texts = [{key: value.to(dtype) for key, value in one.items()} for one in found]
    optimizer = make(weights.values(), lr=RATES[make], weight_decay=0.01)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        noisy = ((1 - mixed) * batch.latents + mixed * noise).to(dtype)
        velocity = reference.velocity(transformer, noisy, sigma, texts)
    (velocity.float() - (noise - batch.latents)).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
    optimizer.step()
    return {key: weight.detach() for key, weight in weights.items()}


@pytest.mark.parametrize(  # AdamW's first step goes as far along a gradient that is all rounding
    ("precision", "optimizer", "share"),
    [
        pytest.param("float32", "AdamW", 1e-4, marks=pytest.mark.slow),
        ("float32", "SGD", 1e-5),
        ("bfloat16", "SGD", 0.03),
    ],
)
def test_a_step_is_that_of_diffusers_peft_and_torch(
    name: str, base_of: BaseOf, images: Path, tmp_path: Path, precision: str, optimizer: str, share: float
) -> None:
    """`share`: how far the weights may be from theirs, of how far the step moves them."""
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(images, str(base_of(name)), steps=2), "utf-8")
    changes = (f"base.dtype={precision}", "training.warmup_steps=0", "training.lr_schedule=constant")
    changes += (f"training.optimizer={'adamw' if optimizer == 'AdamW' else 'torch.optim:SGD'}",)
    changes += (f"training.learning_rate={RATES[getattr(torch.optim, optimizer)]}",)
    session = prepare(load_recipe(path, changes=changes), Run(tmp_path / "run"), ignore_events)
    for layer in session.adapters.layers:  # while `up` is zero, nothing reaches `down`
        torch.nn.init.normal_(layer.tensors["up"], std=0.1, generator=generator(layer.name))
    before = {key: one.detach().clone() for key, one in session.adapters.named_parameters().items()}
    dtype, make = getattr(torch, precision), getattr(torch.optim, optimizer)
    theirs = plain_step(session, base_of(name), REFERENCES[name], dtype=dtype, make=make)
    session.loop.config = session.loop.config.model_copy(update={"steps": 1})
    session.loop.run(1)
    session.run.close()
    ours = session.adapters.named_parameters()
    assert ours.keys() == theirs.keys() == before.keys()
    moved = torch.cat([(theirs[key] - before[key]).flatten() for key in theirs])
    apart = torch.cat([(theirs[key] - ours[key].detach()).flatten() for key in theirs])
    assert moved.norm() > 0 and apart.norm() <= share * moved.norm(), apart.norm() / moved.norm()
