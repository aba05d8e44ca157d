from __future__ import annotations

import judge as judging
import pytest
import torch
from judge import Judge, JudgeNet
from renders import HEADS, UNLABELLED, labelled_renders, softened, to_unit

from lora_studio.pocket.scenes import draw, sample_scene
from lora_studio.pocket.styles import STYLES


def test_saved_judge_gives_the_same_verdicts(tmp_path):
    torch.manual_seed(0)
    judge = Judge(JudgeNet(), {"plain/object": 0.5})
    judging._save(judge.net, judge.accuracy_on_renders(), tmp_path / judging.FILE_NAME)
    again = judging.load_or_train(tmp_path)
    images = [draw(sample_scene(i), 64, 64) for i in range(4)] + [draw(sample_scene(4), 80, 48)]
    assert again.classify(images) == judge.classify(images)
    assert again.accuracy_on_renders() == {"plain/object": 0.5}


def test_judge_is_not_reused_when_the_world_has_new_names(tmp_path, monkeypatch):
    judging._save(JudgeNet(), {}, tmp_path / judging.FILE_NAME)
    monkeypatch.setitem(HEADS, "object", (*HEADS["object"], "teapot"))
    assert judging._load(tmp_path / judging.FILE_NAME) is None


def test_judge_is_not_reused_when_a_style_is_drawn_otherwise(tmp_path, monkeypatch):
    judging._save(JudgeNet(), {}, tmp_path / judging.FILE_NAME)
    monkeypatch.setitem(STYLES, "woodcut", STYLES["plain"])
    assert judging._load(tmp_path / judging.FILE_NAME) is None


@pytest.mark.parametrize("style", HEADS["style"])
def test_colour_is_asked_only_where_it_shows(style):
    plain = labelled_renders(40, style=style).labels
    is_character = plain["object"] >= len(HEADS["object"]) - 2
    assert ((plain["colour"] == UNLABELLED) == is_character).all()


def test_training_and_test_renders_differ_and_repeat():
    first, again = (labelled_renders(4, style="plain").pixels for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, labelled_renders(4, style="plain", test=True).pixels)


def test_softened_images_keep_shape_range_and_likeness():
    pixels = to_unit(labelled_renders(8, style="plain").pixels)
    soft = softened(pixels, torch.Generator().manual_seed(0))
    assert soft.shape == pixels.shape and soft.abs().max() <= 1
    assert (
        soft - pixels
    ).square().mean() < 0.05  # a PSNR of 19 dB: softer than any VAE that is worth judging
