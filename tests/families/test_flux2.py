"""What FLUX.2 has alone: a klein that was distilled, and a language model of which a part is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_studio.errors import BaseModelError
from lora_studio.families.loading import load_base
from lora_studio.families.loading.single_file import SingleFileOptions

BaseOf = Callable[[str], Path]


@pytest.fixture
def klein(base_of: BaseOf, tmp_path: Path) -> Path:
    """A folder of it without weights, to be changed."""
    bare = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(base_of("flux2"), tmp_path / "klein", ignore=bare))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def refusal_of(folder: Path) -> str:
    with pytest.raises(BaseModelError) as raised:
        load_base(str(folder), weights=False)
    return str(raised.value)


def test_a_folder_says_whether_its_klein_is_distilled_and_its_user_has_the_last_word(klein: Path) -> None:
    base = load_base(str(klein), weights=False)
    assert not base.distilled and base.notes == () and base.usual_sampling == (30, 4.0)
    edit(klein / "model_index.json", is_distilled=True)
    base = load_base(str(klein), weights=False)
    assert base.distilled and base.notes == () and base.usual_sampling == (4, 1.0)
    options = SingleFileOptions(distilled=False)
    assert not load_base(str(klein), weights=False, single_file=options).distilled


def test_a_klein_that_edits_images_is_refused_by_name(klein: Path) -> None:
    edit(klein / "model_index.json", _class_name="Flux2KleinKVPipeline")
    assert "it is FLUX.2 klein KV, which edits images (Flux2KleinKVPipeline)" in refusal_of(klein)


def test_parts_of_another_model_are_refused(klein: Path) -> None:
    config = klein / "text_encoder/config.json"
    whole = config.read_text("utf-8")
    edit(config, num_hidden_layers=20, layer_types=["full_attention"] * 20)
    assert "has 20 layers, and its transformer reads what comes out of the 27th" in refusal_of(klein)
    config.write_text(whole, "utf-8")
    edit(config, hidden_size=16)
    assert "its text encoder gives 48 numbers a token, but its transformer takes 24" in refusal_of(klein)
    config.write_text(whole, "utf-8")
    edit(klein / "transformer/config.json", in_channels=256)
    assert "its transformer takes 256 numbers a token; that of FLUX.2 takes 128" in refusal_of(klein)


def test_of_a_language_model_only_what_is_read_is_kept(base_of: BaseOf) -> None:
    """Neither eyes, nor a head, nor layers behind the last that is read."""
    for name, kind, layers in (("flux2", "Qwen3Model", 27), ("flux2 dev", "MistralModel", 30)):
        encoder = load_base(str(base_of(name)), weights=False).parts["text_encoder"]
        assert type(encoder).__name__ == kind and len(encoder.layers) == layers  # type: ignore[arg-type]
