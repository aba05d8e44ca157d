"""What a file says of itself: right in type and content, small, and nothing of the user's."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from facts import FACTS, TRAITS
from safetensors import safe_open
from safetensors.torch import load_file, save

from lora_studio.data.manifest import Bucket, Manifest, Record
from lora_studio.export.embedding import embedding_metadata
from lora_studio.lora_file.write import write_lora
from lora_studio.metadata.write import MAX_BYTES, build_metadata, caption_table, of_file, size_of
from lora_studio.training.finish.file_facts import base_keys, image_keys


@pytest.mark.parametrize("numbers", [1000, 700_000])  # below and above 1 MiB of float32
def test_both_hashes_are_those_of_the_bytes_as_kohya_counts_them(numbers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {"a.lora_down.weight": torch.randn(numbers), "ä.alpha": torch.tensor(1.0)}
    facts = replace(FACTS, triggers={'a "quoted" ü': 3}, spec={"modelspec.author": "Zoë"})
    path = tmp_path / "a.safetensors"
    write_lora(path, tensors, dtype="float32", describe=lambda block: build_metadata(facts, TRAITS, block))
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["sshs_model_hash"] == hashlib.sha256(content[start:]).hexdigest()
    assert metadata["modelspec.hash_sha256"] == "0x" + metadata["sshs_model_hash"]
    trained = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    alone = save(load_file(path), metadata=trained)[0x100000:0x110000]
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(alone).hexdigest()[:8]
    assert (metadata["sshs_legacy_hash"] == "e3b0c442") == (numbers == 1000)
    assert start % 8 == 0


def test_what_cards_show_has_the_form_that_their_readers_take() -> None:
    facts = replace(FACTS, triggers={"zwx": 3}, tags={"a fox": 2}, needs=(("cd" * 32, 0.5),), strength=0.8)
    found = build_metadata(facts, TRAITS, b"")
    assert json.loads(found["ss_tag_frequency"]) == {"trigger": {"zwx": 3}, "captions": {"a fox": 2}}
    assert found["ss_v2"] == "False" and found["ss_base_model_version"] == "sd_v1"
    assert found["ss_network_module"] == "networks.lora" and found["ss_network_args"] == "{}"
    assert found["ss_network_dim"] == "4" and found["ss_network_alpha"] == "2"
    assert found["ss_unet_lr"] == "0.0001" and "ss_text_encoder_lr" not in found
    assert found["modelspec.usage_hint"] == "strength 0.8; trigger words: zwx"
    assert found["modelspec.merged_from"] == "0x" + "cd" * 32
    assert "ss_training_started_at" not in found and "modelspec.date" not in found
    native = build_metadata(
        replace(facts, algorithm="loha", options={"ss_network_args": '{"conv_dim": "2"}'}), TRAITS, b""
    )
    assert native["ss_network_module"] == "lycoris.kohya"
    assert json.loads(native["ss_network_args"]) == {"conv_dim": "2", "algo": "loha"}
    assert "ss_unet_lr" not in build_metadata(replace(facts, learning_rate=None), TRAITS, b"")


def layer(name: str, rank: int, *, kernel: int = 1, zero: bool = False) -> dict[str, torch.Tensor]:
    up = torch.zeros(8, rank, 1, 1) if zero else torch.ones(8, rank, 1, 1)
    down = torch.ones(rank, 8, kernel, kernel)
    return {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(6.0),
    }


def test_rank_and_alpha_are_the_files() -> None:
    doubled = of_file(
        FACTS, layer("a", 8) | layer("b", 8) | layer("c", 2, kernel=3) | layer("d", 1, zero=True)
    )
    assert (doubled.dim, doubled.alpha) == ("8", 6.0)
    assert of_file(FACTS, layer("a", 8) | layer("b", 4)).dim == "Dynamic"


def test_buckets_and_numbers_of_images_are_objects_without_names() -> None:
    one = Record(path="/home/rosa/a.png", name="rosa/a.png", bucket=Bucket(48, 80), repeats=5)
    records = (one, replace(one, name="b", repeats=1), replace(one, name="c", bucket=Bucket(64, 64)))
    found = image_keys(Manifest((*records, replace(one, role="prior"), replace(one, excluded="small"))))
    buckets = json.loads(found["ss_bucket_info"])["buckets"]
    assert {tuple(one["resolution"]): one["count"] for one in buckets.values()} == {(48, 80): 2, (64, 64): 1}
    dirs = json.loads(found["ss_dataset_dirs"])
    assert sorted((one["n_repeats"], one["img_count"]) for one in dirs.values()) == [(1, 1), (5, 2)]
    assert json.loads(found["ss_reg_dataset_dirs"]) == {"5_images": {"n_repeats": 5, "img_count": 1}}
    assert "rosa" not in str(found)


def test_a_base_in_one_file_has_its_name_and_hashes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = os.urandom(0x110000 + 5)
    path.write_bytes(content)
    found = base_keys(str(path))
    assert found["ss_sd_model_name"] == "model.safetensors"
    assert found["ss_sd_model_hash"] == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert found["ss_new_sd_model_hash"] == hashlib.sha256(content).hexdigest()
    assert base_keys(str(tmp_path)) == {} and base_keys("pocket") == {"ss_sd_model_name": "pocket"}
    assert base_keys("someone/a-model") == {"ss_sd_model_name": "someone/a-model"}


def test_of_many_tags_the_rarest_are_left_out_and_counted() -> None:
    tags = {f'tag "{number}" ö': 5_000 - number for number in range(5_000)}
    found = build_metadata(replace(FACTS, trigger="z" * 90_000, triggers={"zwx": 9}, tags=tags), TRAITS, b"")
    assert MAX_BYTES - 2000 < size_of(found) < MAX_BYTES
    kept = json.loads(found["ss_tag_frequency"])
    assert kept["trigger"] == {"zwx": 9}
    assert list(kept["captions"].items()) == list(tags.items())[: len(kept["captions"])]
    assert int(found["lora_studio.tags_left_out"]) == len(tags) - len(kept["captions"])


def test_tags_are_what_stands_between_commas() -> None:
    record = Record(path="", name="a", caption="zwx, a fox,  snow")
    table = caption_table([record, replace(record, caption="", lines=("zwx, a bear", "zwx"))])
    assert table == {"zwx": 2, "a bear": 1, "a fox": 1, "snow": 1}


def test_an_embedding_says_its_word_and_hash() -> None:
    found = embedding_metadata(replace(FACTS, provenance={"a": "b"}), TRAITS, "vkq", b"123")
    assert found["modelspec.trigger_phrase"] == "vkq" and found["a"] == "b"
    assert found["sshs_model_hash"] == hashlib.sha256(b"123").hexdigest()
