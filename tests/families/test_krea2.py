"""What Krea 2 has alone: twelve layers of a language model, norms with all their digits, and a Turbo."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, Krea2Transformer2DModel
from safetensors.torch import load_file, save_file

from lora_studio.errors import BaseModelError
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.families.loading.published import published_base
from lora_studio.families.stored import cast_weights
from lora_studio.objectives.base import ObjectiveOptions
from lora_studio.objectives.flow_matching import FlowMatching
from lora_studio.objectives.sigmas import shifted

BaseOf = Callable[[str], Path]


@pytest.fixture
def copy(base_of: BaseOf, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_of("krea2"), tmp_path / "copy"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


RELATIVES = {
    "channels": (
        "transformer/config.json",
        {"in_channels": 128},
        "its transformer takes 128 numbers a token",
    ),
    "layers": (
        "transformer/config.json",
        {"num_text_layers": 9},
        "its transformer reads 9 layers of its text",
    ),
    "other layers": (
        "model_index.json",
        {"text_encoder_select_layers": [1, 2]},
        "its pipeline reads the layers [1, 2] of its text encoder",
    ),
    "width": (
        "transformer/config.json",
        {"text_hidden_dim": 16},
        "its text encoder gives 8 numbers a token, but its transformer takes 16",
    ),
}


@pytest.mark.parametrize("case", RELATIVES)
def test_a_relative_of_it_is_refused_by_name(case: str, copy: Path) -> None:
    file, values, words = RELATIVES[case]
    edit(copy / file, **values)
    with pytest.raises(BaseModelError) as caught:
        load_base(str(copy), weights=False)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_of_a_text_encoder_as_published_only_what_is_read_is_loaded(base_of: BaseOf, copy: Path) -> None:
    """Saved with its head, too, it has other names; neither that nor eyes nor the last layer are kept."""
    edit(copy / "model_index.json", text_encoder=["transformers", "Qwen3VLForConditionalGeneration"])
    edit(copy / "text_encoder/config.json", architectures=["Qwen3VLForConditionalGeneration"])
    weights = copy / "text_encoder/model.safetensors"
    tensors = {f"model.{name}": tensor for name, tensor in load_file(weights).items()}
    assert any(".visual." in name for name in tensors)
    head = tensors["model.language_model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, weights, {"format": "pt"})
    published, own = (load_base(str(path)) for path in (copy, base_of("krea2")))
    encoder: Any = published.parts["text_encoder"]
    assert type(encoder).__name__ == "Qwen3VLTextModel" and len(encoder.layers) == 35
    assert not [name for name in encoder.state_dict() if "visual" in name or "head" in name]
    ours, theirs = (one.encode_text(["a red ball", ""])["text"] for one in (published, own))
    assert torch.equal(ours, theirs)


def test_a_caption_is_cut_where_its_pipeline_cuts_it(base_of: BaseOf) -> None:
    family = load_base(str(base_of("krea2")))
    assert family.tokenizers["tokenizer"].model_max_length == 512 - 5
    pipeline = DiffusionPipeline.from_pretrained(base_of("krea2"), local_files_only=True)
    long = "q" * 600
    with torch.no_grad():
        theirs, mask = pipeline.encode_prompt([long], device="cpu")
    ours = family.encode_text([long])["text"]
    assert mask.all() and ours.shape[1] == 512
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def dtypes(network: torch.nn.Module) -> dict[str, torch.dtype]:
    return {name: one.dtype for name, one in network.state_dict().items()}


def test_its_norms_keep_their_digits_in_half_precision_as_in_diffusers(base_of: BaseOf) -> None:
    """However they get there: cast, with shapes only, or read again."""
    folder = base_of("krea2")
    theirs = Krea2Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
    wanted = dtypes(theirs)
    assert set(wanted.values()) == {torch.float32, torch.bfloat16}
    family = load_base(str(folder), dtype=torch.bfloat16, staged=True)
    own = family.parts["transformer"]
    family.await_weights(torch.bfloat16)
    assert next(own.parameters()).is_meta and dtypes(own) == wanted
    family.place(torch.device("cpu"), "transformer")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(own.state_dict()[name], tensor), name
    whole = load_base(str(folder)).parts["transformer"]
    cast_weights(whole, torch.bfloat16)
    assert dtypes(whole) == wanted


def published() -> ModelFamily:
    found = published_base("krea/Krea-2-Raw")
    assert found is not None
    return found


def test_layers_within_blocks_are_quantised_and_no_others() -> None:
    """28 blocks and 4 of the text, with 8 layers each; of 12.8 billion numbers 12.5 billion."""
    family = published()
    paths, transformer = family.quantised_paths(), family.parts["transformer"]
    assert len(paths) == 8 * (28 + 4)
    assert {path.split(".")[0] for path in paths} == {"transformer_blocks", "text_fusion"}
    assert round(sum(transformer.get_submodule(path).weight.numel() for path in paths) / 1e9, 1) == 12.5


@pytest.mark.parametrize("distilled", [False, True])
def test_sigmas_are_shifted_as_its_pipeline_does(distilled: bool, copy: Path) -> None:
    """Of Raw more for larger images, of Turbo alike for all."""
    edit(copy / "model_index.json", is_distilled=distilled)
    family = load_base(str(copy))
    assert family.distilled is distilled
    assert family.usual_sampling == ((8, 1.0) if distilled else (28, 5.5))
    objective = family.objective(ObjectiveOptions())
    assert isinstance(objective, FlowMatching)
    pipeline = family.pipeline()
    for side in (32, 64):
        pipeline(prompt="a", height=side, width=side, num_inference_steps=4, output_type="latent")
        factor = objective.schedule.shift.factor((side // 4) ** 2)
        even = torch.tensor(np.linspace(1, 1 / 4, 4))
        theirs = pipeline.scheduler.sigmas[:-1].double()
        torch.testing.assert_close(shifted(even, factor), theirs, atol=1e-6, rtol=0)
