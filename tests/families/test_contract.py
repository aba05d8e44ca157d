"""What every family promises, over all of them: shapes, gradients, and diffusers' own numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from anima_blocks import open_pipeline
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, SchedulerMixin
from tiny import BASES, NOISE, recipe_text
from torch import Tensor

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.inject import inject
from lora_studio.adapters.layer import NAME
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.data.feed import geometry
from lora_studio.data.manifest import Bucket, Record
from lora_studio.errors import BaseModelError
from lora_studio.families import FAMILIES
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.families.noise_schedule import read_schedule
from lora_studio.lora_file.lora_file import open_lora
from lora_studio.metadata.sidecars import card_version
from lora_studio.objectives.base import ObjectiveOptions
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.training import MachineConfig
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.tools.convert import convert
from lora_studio.training.events import ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.machine import Machine
from lora_studio.training.prepare import prepare
from lora_studio.training.session import train

CAPTIONS = ["", "a red ball in a meadow", "moon " * 40]
STABILITY, FLUX = (
    "https://github.com/Stability-AI/generative-models",
    "https://github.com/black-forest-labs/flux",
)
Z_IMAGE, CHROMA = "https://github.com/Tongyi-MAI/Z-Image", "https://huggingface.co/lodestones/Chroma"
FLUX2 = "https://github.com/black-forest-labs/flux2"
LUMINA2 = "https://github.com/Alpha-VLLM/Lumina-Image-2.0"
TRAITS = {
    "sd15": ("sd_v1", False, "stable-diffusion-v1/lora", "epsilon", STABILITY),
    "sd2": ("sd_v2", True, "stable-diffusion-v2-512/lora", "epsilon", STABILITY),
    "sd2 v": ("sd_v2_v", True, "stable-diffusion-v2-768-v/lora", "v", STABILITY),
    "sdxl": ("sdxl_base_v1-0", False, "stable-diffusion-xl-v1-base/lora", "epsilon", STABILITY),
    "sdxl v zero-snr": ("sdxl_base_v1-0", False, "stable-diffusion-xl-v1-base/lora", "v", STABILITY),
    "z_image": ("z_image", False, "Z-Image/lora", "", Z_IMAGE),
    "flux1": ("flux1", False, "flux-1-dev/lora", "", FLUX),
    "flux1 schnell": ("flux1", False, "flux-1-schnell/lora", "", FLUX),
    "chroma": ("chroma", False, "chroma/lora", "", CHROMA),
    "krea2": ("krea2", False, "Krea-2/lora", "", "https://huggingface.co/krea/Krea-2-Raw"),
    "flux2": ("flux_2_klein_4b", False, "Flux.2-klein-4b/lora", "", FLUX2),
    "flux2 dev": ("flux_2_dev", False, "Flux.2-dev/lora", "", FLUX2),
    "sd3": ("3-5-medium", False, "stable-diffusion-3.5-medium/lora", "", "diffusers"),
    "qwen_image": ("qwen_image", False, "Qwen-Image/lora", "", "https://github.com/QwenLM/Qwen-Image"),
    "lumina2": ("lumina2", False, "lumina-2/lora", "", LUMINA2),
    "anima": (
        *("anima", False, "anima-preview/lora", ""),
        "https://huggingface.co/circlestone-labs/Anima",
    ),
    "sd3 first": ("3-medium", False, "stable-diffusion-3-medium/lora", "", "diffusers"),
}
CARDS = {
    **{"sd15": "SD1", "sd2": "SD2", "sdxl": "SDXL", "z_image": "Z-Image"},
    **{"flux1": "Flux", "flux2": "Flux.2", "chroma": "Chroma", "sd3": "SD3"},
    **{"qwen_image": "Qwen-Image", "krea2": "Krea 2", "lumina2": "Lumina-Image 2", "anima": "Anima"},
}
UNETS = [name for name in BASES if name.startswith("sd") and not name.startswith("sd3")]
TRANSFORMERS = [name for name in BASES if name not in UNETS]
SHAPES = dict.fromkeys(UNETS, (4, 4, 8, 64)) | dict.fromkeys(TRANSFORMERS, (16, 2, 4, 64))
SHAPES |= dict.fromkeys(("flux2", "flux2 dev"), (128, 4, 4, 64))
SHAPES |= dict.fromkeys(
    ("qwen_image", "krea2", "anima"), (16, 2, 4, 256)
)  # 128 latents, as its pipeline has it by itself
SHAPES["lumina2"] = (16, 8, 16, 64)
"""Channels of latents, pixels of a latent's side, of a bucket's sides, and of a native image's."""
CHECKPOINTING = "machine.gradient_checkpointing=true"
BOTH_SIDES = ("adapter.text_encoder=true", "training.text_encoder_learning_rate=1e-3")
CHECKPOINTED = (
    *("ResnetBlock2D", "CLIPEncoderLayer", "ZImageTransformerBlock", "FluxTransformerBlock"),
    *("ChromaTransformerBlock", "JointTransformerBlock", "QwenImageTransformerBlock"),
    *("Flux2TransformerBlock", "Krea2TransformerBlock", "Lumina2TransformerBlock"),
    "CosmosTransformerBlock",
)
NEVER_AGAIN = {"lumina2": "refiner"}  # blocks that diffusers does not checkpoint
BaseOf = Callable[[str], Path]
each_tree = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (" " in name)) for name in BASES], indirect=True
)
"""Every base; those that differ from another one in what they predict alone are slow tests."""


each_unet = pytest.mark.parametrize("name", UNETS, indirect=True)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (" " in name and name in TRANSFORMERS))
        for name in BASES
    ],
)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def family(name: str, base_of: BaseOf) -> ModelFamily:
    return load_base(str(base_of(name)))


@pytest.fixture
def pipeline(name: str, base_of: BaseOf) -> DiffusionPipeline:
    """diffusers' own, from the folder, without a line of ours."""
    loaded: DiffusionPipeline = open_pipeline(base_of(name))
    loaded.set_progress_bar_config(disable=True)
    return loaded


def encoded(pipeline: DiffusionPipeline, captions: list[str]) -> dict[str, Tensor]:
    """What the pipeline's own `encode_prompt` gives, by our names."""
    answer = pipeline.encode_prompt(
        captions, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return {"text": answer[0]} | ({"pooled": answer[2]} if len(answer) == 4 else {})


def test_every_family_has_a_miniature(base_of: BaseOf) -> None:
    of_bases = {type(load_base(str(base_of(name)), weights=False)) for name in BASES}
    assert of_bases == {FAMILIES[name] for name in FAMILIES.names()}


def test_the_file_says_of_its_base_what_uis_look_for(name: str, family: ModelFamily) -> None:
    assert tuple(vars(family.traits).values()) == TRAITS[name]
    version = {"ss_base_model_version": family.traits.base_model_version}
    assert card_version(version) == CARDS[name.partition(" ")[0]]


def test_shapes_of_images_texts_and_answers(name: str, family: ModelFamily) -> None:
    channels, pixels, stride, side = SHAPES[name]
    assert (family.native_side, family.stride, family.pixels_per_latent) == (side, stride, pixels)
    width = 72 if 72 % stride == 0 else 80
    with torch.no_grad():
        mean, std = family.encode_image(torch.zeros(2, 3, 64, width))
        conditioning = family.encode_text(CAPTIONS[:2])
        timestep, sizes = family.probe_inputs().timestep, torch.tensor([[64.0, width, 0, 0, 64, width]] * 2)
        answer = family.denoise(mean, timestep, conditioning, sizes)
    assert mean.shape == std.shape == answer.shape == (2, channels, 64 // pixels, width // pixels)
    assert (std > 0).all() and answer.isfinite().all()
    assert all(len(value) == 2 for value in conditioning.values())


@each_unet
def test_conditioning_is_what_the_pipelines_encode_prompt_makes(
    family: ModelFamily, pipeline: DiffusionPipeline
) -> None:
    with torch.no_grad():
        ours, theirs = family.encode_text(CAPTIONS), encoded(pipeline, CAPTIONS)
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-6, rtol=1e-5)


@each_unet
def test_one_step_of_the_pipeline_asks_the_unet_what_we_ask_it(
    family: ModelFamily, pipeline: DiffusionPipeline, name: str
) -> None:
    seen: dict[str, Any] = {}

    def look(module: torch.nn.Module, arguments: Any, named: Any, answer: Any) -> None:
        seen.update(named, latents=arguments[0], timestep=arguments[1], answer=answer[0])

    pipeline.unet.register_forward_hook(look, with_kwargs=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    sizes = {"original_size": (100, 120), "crops_coords_top_left": (3, 5), "target_size": (64, 72)}
    pipeline(
        CAPTIONS[1],
        height=64,
        width=72,
        num_inference_steps=1,
        guidance_scale=1,
        generator=generator("noise"),
        output_type="latent",
        **(sizes if name.startswith("sdxl") else {}),
    )
    geometry = torch.tensor([[100.0, 120, 3, 5, 64, 72]])
    with torch.no_grad():
        conditioning = family.encode_text([CAPTIONS[1]])
        answer = family.denoise(seen["latents"], seen["timestep"], conditioning, geometry)
    torch.testing.assert_close(answer, seen["answer"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(conditioning["text"], seen["encoder_hidden_states"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["sdxl"], indirect=True)
def test_geometry_is_what_the_pipeline_makes_time_ids_of(pipeline: DiffusionPipeline) -> None:
    record = Record(
        name="a.png",
        path=Path("a.png"),
        width=1200,
        height=1000,
        bucket=Bucket(72, 64),
        resize=(77, 64),
        crop=(5, 0, 77, 64),
    )
    theirs = pipeline._get_add_time_ids((1000, 1200), (0, 5), (64, 72), torch.float32, 20)
    assert torch.equal(torch.tensor([geometry(record)]), theirs)


@each_unet
def test_geometry_changes_the_answer_of_the_family_that_reads_it(name: str, family: ModelFamily) -> None:
    with torch.no_grad():
        conditioning = family.encode_text([""])
        latents, timestep = torch.randn(1, 4, 16, 16, generator=generator("x")), torch.tensor([500])
        whole, cut = (
            family.denoise(latents, timestep, conditioning, torch.tensor([[512.0, 512, top, 0, 64, 64]]))
            for top in (0, 200)
        )
    assert torch.equal(whole, cut) != name.startswith("sdxl")


def gradients_of(family: ModelFamily, *, checkpointing: bool) -> dict[str, Tensor]:
    """Of every adapter, in all parts that can be trained, from one backward pass."""
    options = AdapterOptions("lora", rank=2, alpha=2.0, seed=0)
    adapters = inject(family.parts, family.targets, options, canonical_path=family.canonical_path)
    assert set(adapters.parts) == set(family.targets)
    for layer in adapters.layers:  # while `up` is zero, nothing reaches `down`
        torch.nn.init.normal_(layer.tensors["up"], std=0.02, generator=generator(layer.name))
    config = MachineConfig(gradient_checkpointing=checkpointing)
    Machine(torch.device("cpu"), torch.float32, config=config).speed_up(family, adapters.parts)
    latents = family.probe_inputs().latents
    noised = family.objective(ObjectiveOptions(timesteps="uniform")).noise(latents, generator("y"))
    conditioning = family.encode_text(CAPTIONS[1:])
    answer = family.denoise(noised.latents, noised.timestep, conditioning, torch.full((2, 6), 64.0))
    (answer - noised.target).square().mean().backward()
    gradients = {key: p.grad for key, p in adapters.named_parameters().items() if p.grad is not None}
    assert gradients.keys() == adapters.named_parameters().keys()
    return gradients


def test_a_gradient_reaches_every_adapter(family: ModelFamily) -> None:
    gradients = gradients_of(family, checkpointing=False)
    assert not [key for key, gradient in gradients.items() if not gradient.any()]


@each_tree
def test_gradient_checkpointing_computes_again_and_changes_no_gradient(name: str, base_of: BaseOf) -> None:
    calls: dict[tuple[bool, str], int] = {}
    found = []
    for checkpointing in (False, True):
        family = load_base(str(base_of(name)))
        for part in family.targets:
            named = family.parts[part].named_modules()
            apart = NEVER_AGAIN.get(name, "down")
            blocks = [m for path, m in named if type(m).__name__ in CHECKPOINTED and apart not in path]
            layer = blocks[0]  # the first of those that may come behind all adapters

            def count(*_: object, key: tuple[bool, str] = (checkpointing, part)) -> None:
                calls[key] = calls.get(key, 0) + 1

            next(layer.children()).register_forward_hook(count)
        found.append(gradients_of(family, checkpointing=checkpointing))
    for part in family.targets:
        assert calls[True, part] == calls[False, part] + 1, part  # the backward pass called it once more
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, atol=0, rtol=0)


KINDS = [kind for kind in ADAPTERS.names() if kind != "lora"]
ALL_KINDS = ("sd15", "z_image")


def kinds_of_trees() -> Iterator[ParameterSet]:
    """All kinds in a UNet and in a transformer, two of them in turn in every other base, the rest slowly."""
    for place, name in enumerate(BASES):
        for number, kind in enumerate(KINDS):
            slow = " " in name or (name not in ALL_KINDS and (number - 2 * place) % len(KINDS) > 1)
            yield pytest.param(name, kind, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize(("name", "kind"), [*kinds_of_trees()], indirect=["name"])
def test_every_kind_of_adapter_keeps_its_promises_in_every_family(
    name: str, kind: str, base_of: BaseOf
) -> None:
    """In all layers that it can be in: the pieces of adapters/test_contract.py, through a whole base."""
    family = load_base(str(base_of(name)))
    before = {part: module.state_dict() for part, module in load_base(str(base_of(name))).parts.items()}
    latents, timestep, _ = (one[:1] for one in family.probe_inputs())

    def answer() -> Tensor:
        text = family.encode_text(CAPTIONS[1:2])
        return family.denoise(latents, timestep, text, torch.full((1, 6), 64.0))

    with torch.no_grad():
        base = answer()
    targets = {part: ends + family.convolutions.get(part, ()) for part, ends in family.targets.items()}
    options = AdapterOptions(kind, rank=2, alpha=2.0, seed=0)
    adapters = inject(family.parts, targets, options, canonical_path=family.canonical_path)
    # torch may take another kernel for a 1x1 convolution whose weights fast.py adds up before it, and for
    # equal weights that lie elsewhere in memory
    torch.testing.assert_close(answer(), base, atol=2e-6 if kind in ("locon", "full") else 0.0, rtol=0.0)
    if kind == "locon":  # small layers' weights were laid together
        with adapters.disabled(), torch.no_grad():
            torch.testing.assert_close(answer(), base, atol=2e-6, rtol=0.0)
            base = answer()
    with torch.no_grad():
        for key, tensor in adapters.named_parameters().items():
            tensor += 0.02 * torch.randn(tensor.shape, generator=generator(key))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            config = MachineConfig(gradient_checkpointing=True)
            Machine(torch.device("cpu"), torch.float32, config=config).speed_up(family, adapters.parts)
        tuned = answer()
        tuned.square().mean().backward()
        gradients.append({key: p.grad for key, p in adapters.named_parameters().items()})
        for parameter in adapters.named_parameters().values():
            parameter.grad = None
    assert not [key for key, one in gradients[0].items() if one is None or not one.any()]
    assert all(torch.equal(one, gradients[1][key]) for key, one in gradients[0].items())
    with adapters.disabled(), torch.no_grad():
        assert torch.equal(answer(), base)
        for part, tensors in before.items():
            now = {
                key.replace(".base_layer.", "."): tensor
                for key, tensor in family.parts[part].state_dict().items()
                if f".{NAME}." not in key
            }
            same = all(torch.equal(now[key], tensors[key]) for key in now)
            assert now.keys() == tensors.keys() and same, part
    with torch.no_grad(), adapters.disabled():
        for layer in adapters.layers:
            own = layer.module.get_base_layer()
            for name, change in layer.changes().items():
                own.get_parameter(
                    name.removeprefix(f"{layer.name}.") if name != layer.name else "weight"
                ).add_(change)
        merged = answer()
    assert (merged - tuned).norm() < 1e-3 * (tuned - base).norm()


@each_unet
def test_the_noise_is_that_of_diffusers_scheduler(family: ModelFamily, pipeline: DiffusionPipeline) -> None:
    theirs = DDPMScheduler.from_config(pipeline.scheduler.config)
    objective = family.objective(ObjectiveOptions())
    # ours is made in float64, theirs in float32
    torch.testing.assert_close(objective.alphas, theirs.alphas_cumprod, atol=1e-6, rtol=1e-4)
    assert objective.prediction == theirs.config.prediction_type
    drawn: SchedulerMixin = family.pipeline().scheduler
    torch.testing.assert_close(drawn.alphas_cumprod, theirs.alphas_cumprod)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero", [False, True])
def test_every_schedule_is_diffusers(schedule: str, zero: bool) -> None:
    theirs = DDPMScheduler(
        beta_start=0.001,
        beta_end=0.02,
        beta_schedule=schedule,
        rescale_betas_zero_snr=zero,
        prediction_type="v_prediction",
    )
    ours = read_schedule(theirs.config).alphas
    torch.testing.assert_close(ours, theirs.alphas_cumprod, atol=2e-6, rtol=1e-4)
    assert (ours[-1] == 0) == zero


@each_unet
def test_weights_are_finite_over_the_whole_of_every_schedule(family: ModelFamily) -> None:
    for weighting in ("min_snr", "debiased"):
        objective = family.objective(ObjectiveOptions(weighting=weighting))  # type: ignore[arg-type]
        weight = objective.weight(torch.arange(1000))  # type: ignore[attr-defined]
        assert weight.isfinite().all() and (weight >= 0).all() and (weight[:-1] > 0).all()


CONTRADICTIONS = {
    "sample": (NOISE | {"prediction_type": "sample"}, "predicts 'sample'"),
    "epsilon at SNR 0": (NOISE | {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
    "no betas": ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
    "EDM": (NOISE | {"sigma_data": 0.5}, "another kind of noise"),
    "unknown betas": (NOISE | {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_noise_that_cannot_be_trained_on_is_one_sentence(case: str) -> None:
    scheduler, words = CONTRADICTIONS[case]
    with pytest.raises(BaseModelError, match=words):
        read_schedule(scheduler)


def _sides(name: str) -> tuple[str, ...]:
    """The text encoders are trained, too, where they can be."""
    return () if name in TRANSFORMERS else BOTH_SIDES


@each_tree
def test_a_run_ends_with_a_file_that_diffusers_loads_whole(
    name: str, base_of: BaseOf, pipeline: DiffusionPipeline, images: Path, tmp_path: Path
) -> None:
    preview = '[samples]\nprompts = ["a red ball"]\nsteps = 2\nguidance = 2\n'
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(images, str(base_of(name)), steps=2, extra=preview), "utf-8")
    result = train(load_recipe(path, changes=_sides(name)), tmp_path / "run")
    assert isinstance(result, Finished) and result.report.ok, result
    file = open_lora(result.lora_file)
    assert file.metadata["ss_base_model_version"] == TRAITS[name][0]
    assert file.metadata["ss_v2"] == str(TRAITS[name][1])
    assert file.metadata.get("modelspec.prediction_type", "") == TRAITS[name][3]
    loadable = result.lora_file
    if name.startswith(("flux", "chroma", "lumina2")):  # whose fused layers are several for diffusers
        loadable = Path(convert(loadable, "diffusers", out=tmp_path / "own.safetensors").path)
    pipeline.load_lora_weights(loadable.parent, weight_name=loadable.name)
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    loaded = [key for part in parts for key, _ in part.named_modules() if key.endswith("lora_A.default_0")]
    assert len(loaded) == len(open_lora(loadable).layers)


@each_tree
def test_training_leaves_every_byte_of_the_base(
    name: str, base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(images, str(base_of(name)), steps=2), "utf-8")
    changes = (*_sides(name), CHECKPOINTING)
    session = prepare(load_recipe(path, changes=changes), Run(tmp_path), ignore_events)
    session.loop.run(1)
    session.run.close()
    session.family.place(session.machine.device, *session.family.parts)  # those that were dropped, too
    assert any(layer.tensors["up"].any() for layer in session.adapters.layers)
    for part, module in load_base(str(base_of(name))).parts.items():
        now = {
            key.replace(".base_layer.", "."): tensor
            for key, tensor in session.family.parts[part].state_dict().items()
            if f".{NAME}." not in key
        }
        before = module.state_dict()
        assert now.keys() == before.keys()
        assert all(torch.equal(tensor, before[key]) for key, tensor in now.items()), part
