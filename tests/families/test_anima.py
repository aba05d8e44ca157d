"""Anima: what is refused, what it does without torchvision, and its folders of a modular pipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anima_blocks import AnimaBlocks
from diffusers.models.transformers import transformer_cosmos
from tiny import recipe_text

from lora_studio.errors import BaseModelError
from lora_studio.families.loading import load_base, load_tokenizers
from lora_studio.families.loading.hub import wanted_files
from lora_studio.families.original.glance import glance_at_base
from lora_studio.recipe.load import load_recipe
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

BaseOf = Callable[[str], Path]
INDEX = "modular_model_index.json"


@pytest.fixture
def copy(base_of: BaseOf, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_of("anima"), tmp_path / "copy"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


RELATIVES = {
    "cosmos": (INDEX, {"_class_name": "Cosmos2TextToImagePipeline"}, "Cosmos, from which Anima was made"),
    "control": (
        "transformer/config.json",
        {"_class_name": "CosmosControlNetModel"},
        "a ControlNet of Cosmos",
    ),
    "video": ("transformer/config.json", {"in_channels": 17}, "takes 17 channels; that of Anima takes 16"),
    "2.5": ("transformer/config.json", {"use_crossattn_projection": True}, "is that of Cosmos"),
    "no mask": ("transformer/config.json", {"concat_padding_mask": False}, "is that of Cosmos"),
    "shift": ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "shifts by an image's size"),
    "another encoder": (
        "text_conditioner/config.json",
        {"source_dim": 99},
        "gives 8 numbers a token, but its transformer takes 99",
    ),
    "another conditioner": (
        "transformer/config.json",
        {"text_embed_dim": 99},
        "gives 24 numbers a token, but its transformer takes 99",
    ),
}


@pytest.mark.parametrize("case", RELATIVES)
def test_a_relative_of_it_is_refused_by_name(case: str, copy: Path) -> None:
    file, values, words = RELATIVES[case]
    edit(copy / file, **values)
    with pytest.raises(BaseModelError, match=words):
        load_base(str(copy), weights=False)


def test_cosmos_has_no_text_conditioner(copy: Path) -> None:
    index = json.loads((copy / INDEX).read_text("utf-8"))
    del index["text_conditioner"]
    (copy / INDEX).write_text(json.dumps(index), "utf-8")
    with pytest.raises(BaseModelError, match="it has no text_conditioner, so it is Cosmos"):
        load_base(str(copy), weights=False)


def test_nothing_is_asked_of_torchvision(base_of: BaseOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer_cosmos, "transforms", SimpleNamespace(), raising=False)
    family = load_base(str(base_of("anima")))
    latents, timestep, geometry = family.probe_inputs()
    with torch.no_grad():
        found = family.denoise(latents, timestep, family.encode_text(["", "a ball"]), geometry)
    assert found.shape == latents.shape and found.isfinite().all()


def test_a_caption_is_cut_where_its_blocks_cut_it(base_of: BaseOf) -> None:
    family, blocks = load_base(str(base_of("anima"))), AnimaBlocks(base_of("anima"))
    assert {one.model_max_length for one in family.tokenizers.values()} == {512}
    ours, theirs = family.encode_text(["q" * 600])["text"][0], blocks.text("q" * 600)
    assert len(ours) == 512
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_an_index_that_was_written_before_the_parts_were_loaded_lists_them(
    base_of: BaseOf, copy: Path
) -> None:
    """As the hub's has null for library and class, and both in a hint."""
    index = json.loads((copy / INDEX).read_text("utf-8"))
    listed = {name: [None, None, one[2]] for name, one in index.items() if isinstance(one, list)}
    assert len(listed) == 7 and {tuple(one) for one in map(sorted, (one[2] for one in listed.values()))}
    (copy / INDEX).write_text(json.dumps(index | listed), "utf-8")
    known, own = (load_base(str(path)) for path in (copy, base_of("anima")))
    assert all(known.fingerprint(name) == own.fingerprint(name) for name in own.parts)
    assert load_tokenizers(str(copy)).keys() == {"tokenizer", "t5_tokenizer"}


def test_it_is_known_at_a_glance_and_of_the_hub_no_file_is_fetched_that_it_does_not_need(
    base_of: BaseOf,
) -> None:
    folder = base_of("anima")
    glance = glance_at_base(str(folder))
    assert (glance.title, glance.side, glance.doubt) == ("Anima", 256, "")
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    parts = (
        "transformer",
        "vae",
        "text_encoder",
        "text_conditioner",
        "tokenizer",
        "t5_tokenizer",
        "scheduler",
    )
    assert set(wanted_files([*files, "README.md", "text_conditioner/model.bin"], parts)) == set(files)


def test_its_own_layers_are_trained_into_a_folder_that_diffusers_blocks_load(
    base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    text = recipe_text(images, str(base_of("anima")), steps=1)
    path.write_text(text.replace("rank = 4\nalpha = 4\n", 'kind = "full"\n'), "utf-8")
    result = train(load_recipe(path), tmp_path / "run")
    assert isinstance(result, Finished) and result.report.ok, result
    (folder,) = (one.parent for one in (tmp_path / "run").rglob(INDEX))
    assert str(tmp_path) not in (folder / INDEX).read_text("utf-8")
    own, theirs = load_base(str(folder)), AnimaBlocks(folder)
    for name, part in own.parts.items():
        state: Any = getattr(theirs, name).state_dict()
        assert all(torch.equal(one.float(), state[key].float()) for key, one in part.state_dict().items())
    assert theirs.transformer.config.concat_padding_mask
