"""A base's configurations: absurd values, and those of other weights, are one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from memory import needs_proc, said_alone
from odd_bases import configuration_of, run
from safetensors.torch import load_file, save_file
from tiny import POCKET_FOLDER

from lora_studio.errors import BaseModelError
from lora_studio.families.loading import load_base
from lora_studio.families.loading.vae import load_vae
from lora_studio.families.original.glance import glance_at_base

Edit = Callable[..., Path]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """The pocket base with other values in a part's configuration."""

    def edit(part: str, **values: Any) -> Path:
        shutil.copytree(POCKET_FOLDER, tmp_path / "base", dirs_exist_ok=True)
        path = configuration_of(tmp_path / "base", part)
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")
        return tmp_path / "base"

    return edit


def refusal(folder: Path) -> str:
    with pytest.raises(BaseModelError) as caught:
        load_base(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


ABSURD: list[tuple[str, dict[str, Any], str]] = [
    ("unet", {"layers_per_block": 10**9}, "numbers up to 1,000,000 are possible"),
    (
        "unet",
        {"layers_per_block": 3},
        "says layers_per_block = 3, but the weights beside it have [2, 2, 2, 2]",
    ),
    (
        "unet",
        {"layers_per_block": 1},
        "says layers_per_block = 1, but the weights beside it have [2, 2, 2, 2]",
    ),
    ("unet", {"transformer_layers_per_block": [[10**6]] * 4}, "but its weights are of"),
    ("unet", {"reverse_transformer_layers_per_block": [5000] * 4}, "but its weights are of"),
    ("unet", {"down_block_types": ["DownBlock2D"] * 5000}, "has 5,000 down_block_types"),
    ("unet", {"block_out_channels": [48, 64, 96, 128]}, "the weights beside it have [48, 64, 96, 96]"),
    ("unet", {"sample_size": 10**6}, "says sample_size = 1000000, but 1 to 1024 are possible"),
    ("unet", {"sample_size": None}, "says sample_size = None, but 1 to 1024 are possible"),
    ("unet", {"sample_size": True}, "says sample_size = True, but 1 to 1024 are possible"),
    ("unet", {"norm_eps": float("nan")}, "says norm_eps = nan"),
    ("unet", {"act_fn": "tanh"}, "says act_fn = 'tanh', but possible are: silu, swish, gelu"),
    ("unet", {"norm_num_groups": 7}, "the part unet of the base model"),
    ("vae", {"scaling_factor": 0}, "says scaling_factor = 0, but 0.001 to 1000 are possible"),
    ("vae", {"scaling_factor": float("inf")}, "says scaling_factor = inf"),
    ("vae", {"latent_channels": 8}, "says latent_channels = 8, but the weights beside it have 4"),
    ("vae", {"layers_per_block": 2}, "says layers_per_block = 2, but the weights beside it have [1, 1, 1]"),
    ("text_encoder", {"num_hidden_layers": 10**6}, "but the weights beside it have 3"),
    (
        "text_encoder",
        {"num_hidden_layers": 1},
        "says num_hidden_layers = 1, but the weights beside it have 3",
    ),
    ("text_encoder", {"max_position_embeddings": 10**6}, "but the weights beside it have 32"),
    (
        "text_encoder",
        {"hidden_act": "nothing"},
        "says hidden_act = 'nothing', but possible are: quick_gelu, gelu",
    ),
    ("text_encoder", {"eos_token_id": True}, "says eos_token_id = True, but 0 to 1e+06 are possible"),
    ("scheduler", {"num_train_timesteps": 10**6}, "says num_train_timesteps = 1000000, but 701 to 10000"),
    ("scheduler", {"beta_end": 2.0}, "says beta_end = 2.0"),
    ("scheduler", {"trained_betas": 3}, "says trained_betas = 3"),
    ("scheduler", {"trained_betas": ["a"] * 1000}, "says trained_betas = ['a'"),
    ("tokenizer", {"model_max_length": 2}, "says model_max_length = 2"),
    ("unet", {"downsample_padding": []}, "the part unet of the base model"),
    ("unet", {"downsample_padding": 2}, "cannot compute: "),
    ("vae", {"down_block_types": ["DownEncoderBlock2D"]}, "the part vae of the base model"),
]


@pytest.mark.parametrize(
    ("part", "values", "words"), ABSURD, ids=[f"{part} {one}" for part, one, _ in ABSURD]
)
def test_an_absurd_value_is_one_sentence(part: str, values: dict[str, Any], words: str, edited: Edit) -> None:
    assert words in refusal(edited(part, **values))


def test_a_value_of_thousands_of_letters_is_cut(edited: Edit) -> None:
    assert len(said := refusal(edited("unet", resnet_time_scale_shift=[48] * 3000))) < 800
    assert "unknown time_embedding_norm : [48, 48" in said


def test_what_is_nested_beyond_measure_or_too_large_is_one_sentence(edited: Edit) -> None:
    for text in ('{"x":' * 100_000, "[" * 100_000, '{"x": "' + "y" * 2_000_000 + '"}'):
        folder = edited("vae")
        configuration_of(folder, "vae").write_text(text)
        assert "vae/config.json" in refusal(folder)
        assert "vae/config.json" in glance_at_base(str(folder)).doubt


def test_a_caption_is_as_long_as_the_text_encoder_reads(edited: Edit) -> None:
    """Whatever the tokenizer says, or where it says nothing."""
    for length in (10**30, 1e30, 33, 32):
        family = load_base(str(edited("tokenizer", model_max_length=length)))
        assert family.tokenizers["tokenizer"].model_max_length == 32
        assert family.encode_text(["word " * 100])["text"].shape[1] == 32


def test_a_tokenizer_with_more_words_than_the_text_encoder_is_one_sentence(edited: Edit) -> None:
    folder = edited("text_encoder", vocab_size=640)
    (path,) = (folder / "text_encoder").glob("*.safetensors")
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("token_embedding.weight"))
    save_file(tensors | {key: tensors[key][:640].clone()}, path, {"format": "pt"})
    assert "tokenizer/tokenizer_config.json" in (said := refusal(folder))
    assert "has no marks of begin, end and padding that the text encoder knows" in said


def test_a_vae_of_its_own_is_looked_at_likewise(edited: Edit) -> None:
    own = load_base("pocket").parts["vae"]
    for values, words in (
        ({"layers_per_block": 9}, "have [1, 1, 1]"),
        ({"scaling_factor": 0}, "0.001 to 1000"),
    ):
        with pytest.raises(BaseModelError, match=r"its config\.json says") as caught:
            load_vae(str(edited("vae", **values) / "vae"), own)  # type: ignore[arg-type]
        assert words in str(caught.value)


def test_mutated_configurations_are_used_or_refused_in_one_sentence(tmp_path: Path) -> None:
    counts, crashes = run(tmp_path, range(15))
    assert not crashes, "\n".join(crashes)
    assert min(counts.values()) >= 3  # neither everything nor nothing


@needs_proc
@pytest.mark.slow
def test_a_thousand_mutated_configurations_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    script = (
        "from odd_bases import run\n"
        "counts, crashes = run(Path(sys.argv[1]), range(100, 1100))\n"
        "print(json.dumps([counts, crashes, peak_bytes()]))"
    )
    counts, crashes, peak = said_alone(script, str(tmp_path))
    assert not crashes, "\n".join(crashes)
    assert min(counts.values()) > 200 and peak < 1e9, (counts, peak)
