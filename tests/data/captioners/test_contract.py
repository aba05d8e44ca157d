"""What every captioner of the table promises."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields

import pytest

from lora_studio.data.captioners import CAPTION_WRITERS, CaptionWriter, WriterOptions, caption_writer
from lora_studio.errors import CaptionError

HEAVY = {"torch", "transformers", "onnxruntime", "huggingface_hub"}
URL = {"endpoint": "http://localhost:1/v1"}  # the one option that has no default


def made(name: str) -> CaptionWriter:
    return caption_writer(name)(WriterOptions(url=URL.get(name, "")))


@pytest.mark.parametrize("name", CAPTION_WRITERS.names())
def test_it_bears_its_name_and_reads_options_that_exist(name):
    writer = made(name)
    known = {field.name for field in fields(WriterOptions)}
    assert writer.name == name and set(writer.uses) <= known and writer.batch_size >= 1


@pytest.mark.parametrize("name", CAPTION_WRITERS.names())
def test_its_settings_are_plain_values_that_tell_its_work_apart(name):
    settings = made(name).settings
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize("name", CAPTION_WRITERS.names())
def test_it_refuses_options_that_would_do_nothing(name):
    values = {"model": "x", "device": "x", "prompt": "x", "template": "x", "url": "x", "max_tokens": 1}
    useless = {key: value for key, value in values.items() if key not in caption_writer(name).uses}
    with pytest.raises(CaptionError, match="does nothing with"):
        caption_writer(name)(WriterOptions(**useless))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CAPTION_WRITERS.names())
def test_it_takes_the_batch_size_asked_for(name):
    assert caption_writer(name)(WriterOptions(batch_size=3, url=URL.get(name, ""))).batch_size == 3


def test_all_are_made_without_loading_a_heavy_library():
    script = (
        "import sys; from lora_studio.data.captioners import *; "
        "from lora_studio.data.captioners import CAPTION_WRITERS; "
        "from lora_studio.data.captioners import WriterOptions; "
        f"urls = {URL!r}; "
        "[CAPTION_WRITERS[n](WriterOptions(url=urls.get(n, ''))) for n in CAPTION_WRITERS.names()]; "
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
