"""The WD tagger: a small ONNX model, made here, whose outputs can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from lora_studio.data.captioners import WriterOptions
from lora_studio.data.captioners.wd14 import Wd14, prepare, words_of
from lora_studio.data.captioners.write import write_captions
from lora_studio.data.captions.wording import Wording
from lora_studio.data.scan import scan
from lora_studio.errors import CaptionError

TAGS = """tag_id,name,category,count
1,safe,9,1
2,bold,9,1
3,blue_sky,0,1
4,^_^,0,1
5,red_wall,0,1
6,rex_(robot),4,1
"""
# Outputs are the mean of blue, green, red over the image, 0 to 1, times this, one row a colour.
WEIGHTS = [[0.9, 0.1, 1, 0, 0, 0], [0, 0, 0, 0.5, 0, 0], [0.2, 0.8, 0, 0, 1, 0.9]]


def tagger(
    folder: Path, *, batch: int | str = "N", side: int = 4, weights: list[list[float]] = WEIGHTS
) -> Path:
    """A folder with an ONNX model for [batch, side, side, 3] images, and its tags."""
    folder.mkdir()
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "scale"], ["shares"]),
        helper.make_node("MatMul", ["shares", "weights"], ["tags"]),
    ]
    constants = {
        "axes": np.array([1, 2], dtype=np.int64),
        "scale": np.array(255, dtype=np.float32),
        "weights": np.array(weights, dtype=np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, side, side, 3])],
        [helper.make_tensor_value_info("tags", TensorProto.FLOAT, [batch, len(weights[0])])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    (folder / "selected_tags.csv").write_text(TAGS, "utf-8")
    return folder


def tags_of(folder: Path, model: Path, **options: object) -> list[str]:
    writer = Wd14(WriterOptions(model=str(model), **options))  # type: ignore[arg-type]
    return [answer.text for answer in writer.describe(scan(folder).used)]


@pytest.fixture
def three(folder, paint):
    paint("a.png", 32, 32, "blue")
    paint("b.png", 32, 32, "red")
    paint("c.png", 32, 32, "white")
    return folder


@pytest.mark.parametrize("batch", ["N", 1])
def test_tags_above_their_categorys_threshold_make_the_caption(three, tmp_path, batch):
    model = tagger(tmp_path / "tagger", batch=batch)
    assert tags_of(three, model) == [
        "blue sky",
        "rex (robot), red wall",
        "rex (robot), blue sky, red wall, ^_^",
    ]


def test_every_category_has_its_own_threshold_and_one_rating_is_enough(three, tmp_path):
    model = tagger(tmp_path / "tagger")
    limits = {"general": 0.6, "character": 0.95, "rating": 0.5}
    assert tags_of(three, model, thresholds=limits) == [
        "safe, blue sky",
        "bold, red wall",
        "safe, blue sky, red wall",
    ]


def test_captions_are_written_with_trigger_and_without_unwanted_tags(three, tmp_path):
    model = tagger(tmp_path / "tagger")
    wording = Wording(trigger="zwx", blacklist="red_wall, ^_^")
    writer = Wd14(WriterOptions(model=str(model), wording=wording, batch_size=2))
    write_captions(scan(three), writer, folder=three)
    assert (three / "c.txt").read_text() == "zwx, rex (robot), blue sky\n"


def test_the_image_is_padded_with_white_blue_comes_first_and_nothing_is_scaled():
    wide = Image.new("RGB", (8, 4), (10, 20, 30))
    pixels = prepare(wide, 8)
    assert pixels.dtype == np.float32 and pixels.shape == (8, 8, 3)
    assert pixels[4, 4].tolist() == [30, 20, 10] and pixels[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("tag", "words"),
    [("long_hair", "long hair"), ("^_^", "^_^"), ("o_o", "o_o"), ("(o)_(o)", "(o)_(o)"), ("1girl", "1girl")],
)
def test_underscores_are_spaces_but_in_faces(tag, words):
    assert words_of(tag) == words


def spoil_table(folder: Path) -> None:
    (folder / "selected_tags.csv").write_text("a,b\n1,2\n")


def fewer_tags(folder: Path) -> None:
    (folder / "selected_tags.csv").write_text("\n".join(TAGS.splitlines()[:4]))


def other_input(folder: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "other",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), r"holds no model\.onnx"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"\xff" * 50), "no ONNX model that can be run"),
        (spoil_table, "no table of tags"),
        (fewer_tags, "has 6 outputs, but its table 3 tags"),
        (other_input, "so it is no WD tagger"),
    ],
    ids=["no model", "damaged", "no tags", "too few tags", "another model"],
)
def test_a_model_that_cannot_be_used_is_one_sentence(three, tmp_path, spoil, words):
    model = tagger(tmp_path / "tagger")
    spoil(model)
    with pytest.raises(CaptionError, match=words) as caught:
        tags_of(three, model)
    assert "\n" not in str(caught.value)


def test_mistakes_in_the_options_are_one_sentence(three, tmp_path):
    model = tagger(tmp_path / "tagger")
    with pytest.raises(CaptionError, match="no tags of the category 'generl'; known: rating, character"):
        Wd14(WriterOptions(thresholds={"generl": 0.5}))
    with pytest.raises(CaptionError, match="cannot use --device 'mps'"):
        tags_of(three, model, device="mps")
    with pytest.raises(CaptionError, match="cannot be loaded"):
        tags_of(three, Path("nobody/nothing"))


def test_without_onnx_runtime_what_to_install_is_said(three, tmp_path, monkeypatch):
    import sys

    model = tagger(tmp_path / "tagger")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    with pytest.raises(CaptionError, match="pip install onnxruntime"):
        tags_of(three, model)
