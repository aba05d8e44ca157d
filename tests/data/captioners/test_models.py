"""BLIP and Florence-2: real classes of transformers with random weights, loaded from the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_studio.data.captioners import WriterOptions
from lora_studio.data.captioners.vision_language import Blip, Florence
from lora_studio.data.captioners.write import write_captions
from lora_studio.data.captions import LEDGER
from lora_studio.data.images.decode import load_image
from lora_studio.data.scan import scan
from lora_studio.errors import CaptionError

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def options(folder: Path, **values: object) -> WriterOptions:
    return WriterOptions(model=str(folder), device="cpu", max_tokens=6, **values)  # type: ignore[arg-type]


@pytest.fixture
def noisy(folder: Path) -> Path:
    """Four images of noise, unlike each other and of several shapes."""
    random = np.random.default_rng(0)
    for number, size in enumerate([(32, 32), (40, 24), (24, 64), (70, 70)]):
        pixels = random.integers(0, 60 * (number + 1), (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def by_hand(path: str, side: int) -> torch.Tensor:
    """What CLIP's and BLIP's papers give the model, made with Pillow and numpy alone."""
    pixels = np.asarray(load_image(path).resize((side, side), Image.Resampling.BICUBIC)) / 255
    return torch.tensor((pixels - MEAN) / DEVIATION).permute(2, 0, 1)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_blip_answers_as_transformers_does_image_by_image(noisy, blip_folder, batch_size):
    from transformers import BertTokenizer, BlipForConditionalGeneration

    writer = Blip(options(blip_folder, batch_size=batch_size))
    outcome = write_captions(scan(noisy), writer, folder=noisy)
    model = BlipForConditionalGeneration.from_pretrained(blip_folder)
    tokenizer = BertTokenizer.from_pretrained(blip_folder)
    expected = []
    for record in scan(noisy).used:
        pixels = by_hand(record.path, 32).float()[None]
        ids = model.generate(pixel_values=pixels, max_new_tokens=6, num_beams=3, do_sample=False)
        expected.append(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
    written = {path.stem: path.read_text().strip() for path in noisy.glob("*.txt")}
    assert written == {str(number): text for number, text in enumerate(expected) if text}
    assert outcome.written == len(written) >= 1 and len(set(expected)) > 1


def test_a_blip_goes_on_from_the_words_it_is_given(noisy, blip_folder):
    answers = Blip(options(blip_folder, prompt="a photo")).describe(scan(noisy).used)
    assert all(answer.text.startswith("a photo") for answer in answers)


@pytest.mark.parametrize("length", ["short", "paragraph"])
def test_a_florence_is_asked_for_the_length(noisy, florence_folder, length):
    writer = Florence(options(florence_folder, prompt=length))
    records = scan(noisy).used
    inputs = writer.inputs([load_image(record.path) for record in records])
    expected = torch.stack([by_hand(record.path, 64) for record in records]).float()
    # Resized in 8 bits: one level is 1/255/0.26 = 0.015.
    assert torch.allclose(inputs["pixel_values"], expected, atol=0.016)
    question = writer.processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
    words = {"short": "What does the image describe?", "paragraph": "Describe with a paragraph"}
    assert words[length] in question
    assert len(writer.describe(records)) == 4


def test_a_florence_answers_in_a_batch_as_alone(noisy, florence_folder):
    writer = Florence(options(florence_folder))
    records = scan(noisy).used
    alone = [writer.describe([record])[0] for record in records]
    assert writer.describe(records) == alone and len(set(alone)) > 1


def test_the_record_names_the_model_but_not_where_it_lies(noisy, blip_folder):
    write_captions(scan(noisy), Blip(options(blip_folder, prompt="a photo")), folder=noisy)
    line = json.loads((noisy / LEDGER).read_text().splitlines()[0])
    assert line["author"] == "blip" and line["settings"]["model"] == "tiny-blip"
    assert str(blip_folder) not in json.dumps(line)


def test_nothing_is_loaded_when_nothing_is_to_do(paint, folder):
    paint("a.png", caption="mine")
    writer = Blip(WriterOptions(model="/nowhere"))
    assert write_captions(scan(folder), writer, folder=folder).written == 0


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))


def without_weights(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def damaged(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)


def with_a_part_missing(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if "crossattention" not in name},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def with_code(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_weights, "safetensors"),
        (damaged, "cannot be loaded"),
        (with_a_part_missing, "lacks .* weights, such as text_decoder"),
        (with_code, "code of its own, which is never done"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{}"), "is of the kind None, and blip needs"),
    ],
    ids=["pickle only", "damaged", "incomplete", "code", "no JSON", "no kind"],
)
def test_a_model_that_cannot_be_trusted_or_used_is_one_sentence(noisy, blip_folder, tmp_path, spoil, words):
    folder = copied(blip_folder, tmp_path)
    spoil(folder)
    with pytest.raises(CaptionError, match=words) as caught:
        Blip(options(folder)).describe(scan(noisy).used)
    assert "\n" not in str(caught.value)


def test_mistakes_in_the_options_are_one_sentence(noisy, blip_folder, florence_folder):
    with pytest.raises(CaptionError, match=r"'detaild'; did you mean 'detailed'\? use one of short"):
        Florence(WriterOptions(prompt="detaild"))
    with pytest.raises(CaptionError, match="of the kind blip, and florence needs florence2"):
        Florence(options(blip_folder)).describe(scan(noisy).used)
    with pytest.raises(CaptionError, match="cuda:99' is not in this machine"):
        Blip(WriterOptions(model=str(blip_folder), device="cuda:99")).describe(scan(noisy).used)
    with pytest.raises(CaptionError, match="cannot be loaded"):
        Blip(WriterOptions(model="nobody/nothing")).describe(scan(noisy).used)
