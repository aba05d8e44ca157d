"""Encoders on tiny random models, saved as the hub's folders, against what transformers itself computes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn.functional import cosine_similarity, normalize
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lora_studio.errors import RecipeError, StudioError
from lora_studio.evaluate.encoders import ENCODERS, load_encoder, usual_encoder
from lora_studio.evaluate.encoders.files import PIECES, TOKENIZER, WEIGHTS
from lora_studio.evaluate.encoders.pixels import pixels_of
from lora_studio.pocket import WEIGHTS as POCKET_FOLDER
from lora_studio.pocket.scenes import draw, held_out_scenes

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
SEEN = TOWER | {"image_size": 32, "patch_size": 8}
WORDS = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "ball": 4, "blue": 5, "cat": 6}


def noise(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Smooth random images of these widths and heights."""
    rng = np.random.default_rng(7)
    small = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)) for _ in sizes]
    return [one.resize(size, Image.Resampling.BICUBIC) for one, size in zip(small, sizes, strict=True)]


IMAGES = noise((64, 64), (90, 60), (60, 90), (33, 47), (40, 32))


def clip(folder: Path) -> tuple[PreTrainedModel, object]:
    tokenizer = CLIPTokenizer.from_pretrained(POCKET_FOLDER / "tokenizer")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 16} | ends
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=SEEN, projection_dim=24))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer.save_pretrained(folder)
    return network, processor


def siglip2(folder: Path) -> tuple[PreTrainedModel, object]:
    made = Tokenizer(WordLevel(WORDS, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>").save_pretrained(
        folder
    )
    text = TOWER | {"vocab_size": len(WORDS), "max_position_embeddings": 16, "projection_size": 32}
    network = SiglipModel(SiglipConfig(text_config=text, vision_config=SEEN))
    return network, SiglipImageProcessorPil(size={"height": 32, "width": 32})


def dinov2(folder: Path) -> tuple[PreTrainedModel, object]:
    sizes = {key: value for key, value in SEEN.items() if key != "intermediate_size"}
    processor = BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    return Dinov2Model(Dinov2Config(**sizes)), processor


MAKERS: dict[str, Callable[[Path], tuple[PreTrainedModel, object]]] = {
    "clip": clip,
    "siglip2": siglip2,
    "dinov2": dinov2,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name the folder of a tiny random encoder, as the hub has them."""
    folders = {}
    for name, make in MAKERS.items():
        folder = folders[name] = tmp_path_factory.mktemp("encoder") / name
        torch.manual_seed(3)
        network, processor = make(folder)
        network.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folders


@pytest.fixture
def copied(saved: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copy(name: str) -> Path:
        return shutil.copytree(saved[name], tmp_path / name)

    return copy


@pytest.mark.parametrize("name", MAKERS)
def test_its_embeddings_are_those_of_transformers(saved, tmp_path, name):
    made, processor = MAKERS[name](tmp_path)
    network = type(made).from_pretrained(saved[name])
    pixels = torch.cat([processor(one, return_tensors="pt").pixel_values for one in IMAGES])
    encoder = load_encoder(name, str(saved[name]))
    assert encoder.name == name
    with torch.no_grad():
        whole = network.eval()(pixels) if name == "dinov2" else network.eval().get_image_features(pixels)
    expected = normalize(whole.pooler_output, dim=-1)
    features = encoder.features(IMAGES)
    assert features.dtype == torch.float32 and features.shape[0] == len(IMAGES)
    assert torch.allclose(features.norm(dim=-1), torch.ones(len(IMAGES)))
    shown = features[:, : expected.shape[1]]
    assert torch.allclose(normalize(shown, dim=-1), expected, atol=1e-5)
    if name != "dinov2":
        assert torch.allclose(encoder.aligned(IMAGES), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip2"])
def test_its_texts_are_those_of_transformers(saved, name):
    network = (CLIPModel if name == "clip" else SiglipModel).from_pretrained(saved[name])
    encoder = load_encoder(name, str(saved[name]))
    texts = ["a red ball", "a blue cat " * 20]
    ids = encoder.tokenizer(texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        expected = network.eval().get_text_features(ids.input_ids).pooler_output
    assert torch.allclose(encoder.texts(texts), normalize(expected, dim=-1), atol=1e-6)


def test_siglip2_reads_lower_case(saved):
    lower, upper = load_encoder("siglip2", str(saved["siglip2"])).texts(["a red ball", "A Red BALL"])
    assert torch.equal(lower, upper)


def test_an_encoder_of_images_alone_reads_no_texts(saved):
    encoder = load_encoder("dinov2", str(saved["dinov2"]))
    assert encoder.aligned(IMAGES) is None
    assert encoder.texts(["a red ball"]) is None


@pytest.mark.parametrize("name", [*MAKERS, "pocket"])
def test_an_image_is_encoded_alike_alone_and_among_others(saved, name):
    encoder = load_encoder(name, str(saved[name]) if name in saved else "")
    many = IMAGES * 14
    assert torch.allclose(encoder.features(many)[-1:], encoder.features(IMAGES[-1:]), atol=1e-5)


@pytest.mark.parametrize("processor", [CLIPImageProcessorPil, SiglipImageProcessorPil, BitImageProcessorPil])
def test_pixels_are_those_of_the_libraries_slow_processor(processor):
    slow = processor()
    values = json.loads(slow.to_json_string())
    for image in [*IMAGES, IMAGES[0].convert("L"), IMAGES[1].convert("RGBA"), IMAGES[2].convert("P")]:
        expected = slow(image, return_tensors="pt").pixel_values
        assert torch.allclose(pixels_of(values, "it")([image]), expected, atol=1e-5)


def test_a_digest_is_that_of_the_weights_alone(saved, copied):
    folder = copied("clip")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=7))
    expected = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert load_encoder("clip", str(folder)).digest == expected


def test_weights_in_pieces_are_those_in_one_file(saved, copied):
    folder = copied("dinov2")
    network = Dinov2Model.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    network.save_pretrained(folder, max_shard_size="60KB")
    assert (folder / PIECES).is_file()
    whole, pieces = (load_encoder("dinov2", str(one)) for one in (saved["dinov2"], folder))
    assert torch.equal(whole.features(IMAGES), pieces.features(IMAGES))
    assert whole.digest != pieces.digest
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(StudioError, match=rf"dinov2 lacks {WEIGHTS}"):
        load_encoder("dinov2", str(folder))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (name, file)
        for name in MAKERS
        for file in ("config.json", "preprocessor_config.json", WEIGHTS, *TOKENIZER)
        if name != "dinov2" or file not in TOKENIZER
    ],
)
def test_a_missing_file_is_named_with_the_whole_layout(copied, name, file):
    folder = copied(name)
    (folder / file).unlink()
    with pytest.raises(StudioError) as raised:
        load_encoder(name, str(folder))
    message = str(raised.value)
    assert f"the encoder {name} lacks {file} in {folder}" in message
    assert f"a folder with config.json, preprocessor_config.json{', ' if name != 'dinov2' else ' and '}" in (
        message
    )
    assert message.count("\n") == 0 and "safetensors" in message


def test_pickled_weights_are_not_read(copied):
    folder = copied("clip")
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(StudioError, match=r"lacks model.safetensors.*pickled weights"):
        load_encoder("clip", str(folder))


def test_lacking_tensors_are_never_filled_with_noise(copied):
    folder = copied("clip")
    tensors = load_file(folder / WEIGHTS)
    del tensors["visual_projection.weight"], tensors["vision_model.post_layernorm.bias"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(StudioError, match=r"lack .*post_layernorm.bias and 1 more"):
        load_encoder("clip", str(folder))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[1]"),
        ("preprocessor_config.json", b'{"size": {"shortest_edge": 0}}'),
        ("preprocessor_config.json", b'{"size": 32, "image_mean": [0, 0], "image_std": [1, 1, 1]}'),
        ("preprocessor_config.json", b'{"size": 32, "image_mean": [0, 0, 0], "image_std": [1, 0, 1]}'),
        ("preprocessor_config.json", b"{}"),
        (WEIGHTS, b"nothing"),
        ("tokenizer.json", b"{}"),
    ],
)
def test_a_damaged_file_is_one_sentence(copied, file, content):
    folder = copied("clip")
    (folder / file).write_bytes(content)
    with pytest.raises(StudioError) as raised:
        load_encoder("clip", str(folder))
    assert "download" in str(raised.value) and "\n" not in str(raised.value)


def test_another_kinds_folder_is_refused(saved):
    with pytest.raises(StudioError, match=r"type 'siglip', but the encoder clip is one of type 'clip'"):
        load_encoder("clip", str(saved["siglip2"]))


def test_offline_an_id_of_the_hub_is_one_sentence():
    with pytest.raises(StudioError) as raised:
        load_encoder("dinov2")
    message = str(raised.value)
    assert "the encoder dinov2 is the hub's facebook/dinov2-base" in message and "\n" not in message
    assert "give a folder with config.json, preprocessor_config.json and model.safetensors" in message


def test_from_the_hubs_cache_without_a_network(saved, tmp_path, monkeypatch):
    from huggingface_hub import constants

    repository = tmp_path / "models--someone--tiny-dino"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(saved["dinov2"], snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached, local = (load_encoder("dinov2", one) for one in ("someone/tiny-dino", str(saved["dinov2"])))
    assert torch.equal(cached.features(IMAGES), local.features(IMAGES))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StudioError, match=r"no such folder; give a folder with config.json"):
        load_encoder("clip", str(tmp_path / "none"))


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(RecipeError, match=r"unknown encoder 'siglip'; did you mean 'siglip2'\?"):
        load_encoder("siglip")


def test_the_usual_one_follows_the_base():
    assert usual_encoder("pocket") == "pocket"
    assert usual_encoder("runwayml/stable-diffusion-v1-5") == "clip"
    assert set(ENCODERS.names()) == {"pocket", *MAKERS}


def test_the_pocket_encoder_knows_what_pocket_images_show():
    encoder = load_encoder("pocket")
    scenes = held_out_scenes(60)
    images, captions = [draw(one, 64, 64) for one in scenes], [one.caption() for one in scenes]
    found = (encoder.texts(captions) @ encoder.aligned(images).T).argmax(1).tolist()
    assert np.mean([captions[i] == captions[j] for i, j in enumerate(found)]) > 0.8


def test_the_pocket_encoder_is_not_read_from_elsewhere(saved):
    with pytest.raises(StudioError, match="ships with the package"):
        load_encoder("pocket", str(saved["clip"]))


def test_features_tell_how_an_image_is_drawn_beside_what_it_shows():
    encoder = load_encoder("pocket")
    scenes = held_out_scenes(12)
    plain, woodcut = (
        encoder.features([draw(one, 64, 64, style=style) for one in scenes]) for style in ("plain", "woodcut")
    )
    others = plain.roll(1, 0)
    alike = cosine_similarity(plain, others).mean()
    assert cosine_similarity(plain, woodcut).mean() < 0.9
    assert cosine_similarity(woodcut, woodcut.roll(1, 0)).mean() > cosine_similarity(woodcut, others).mean()
    assert alike < 0.99
