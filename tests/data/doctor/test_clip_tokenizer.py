"""The tokenizer in the package against transformers' own and against published numbers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from transformers import CLIPTokenizer

from lora_studio.data.doctor import ClipTokenizer, _tokenizer


def test_it_gives_the_numbers_that_clip_was_trained_with() -> None:
    # "a photo of a cat" in the examples of openai/clip-vit-base-patch32
    assert ClipTokenizer()("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of a zwx dog, 35mm, masterpiece, (best quality:1.2)",
        "Ünïcödé 猫 emoji 😀, it's and it’s;  two   spaces\nand a line",
        "don't you'll we've 1234567 <b>tags</b> foo_bar",
        "supercalifragilisticexpialidocious " * 30,
    ],
)
def test_it_agrees_with_transformers(text: str) -> None:
    ours = ClipTokenizer()
    merges = json.loads(_tokenizer().to_str())["model"]["merges"]
    theirs = CLIPTokenizer(vocab=_tokenizer().get_vocab(), merges=[tuple(merge) for merge in merges])
    ids = ours(text)["input_ids"]
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


def test_a_folder_of_30_images_is_examined_without_torch_in_little_processor_time(tmp_path) -> None:
    from photographs import Planted

    planted = Planted(tmp_path / "images")
    for number in range(30):
        planted.add(f"{number}.png")
    script = "import sys, time; from lora_studio import cli; "
    script += "cli.guarded(lambda: cli.app(sys.argv[1:], standalone_mode=False)); "
    script += "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib'}; "
    script += "print('loaded:', sorted(heavy & set(sys.modules)), time.process_time())"
    command = [sys.executable, "-c", script, "doctor", str(planted.folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loaded, seconds = output.splitlines()[-1].rsplit(" ", 1)
    assert "30 images to train on" in output and loaded == "loaded: []"
    assert float(seconds) <= 2.5  # 0.7 where this was written
