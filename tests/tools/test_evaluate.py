"""`evaluate`: a run or a file is measured beside its base, and what was drawn is not drawn again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import run
from lora_files import write_random_lora
from tiny import recipe_text

import lora_studio
from lora_studio.errors import StudioError
from lora_studio.evaluate import artist
from lora_studio.evaluate.result import Variant, evaluation_of
from lora_studio.families.loading import load_base
from lora_studio.lora_file.lora_file import base_layers
from lora_studio.pocket.samples import subject_samples
from lora_studio.runs import Run
from lora_studio.tools.evaluate import EvaluationRequest, evaluate, folders_for
from lora_studio.training.prepare.data import manifest_of
from lora_studio.training.session import train

COUNT, SEEDS = 2, (1, 2)
EACH = 4 * COUNT * len(SEEDS)  # images of the base, and as many of what was tuned


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("references")
    for number, one in enumerate(subject_samples()):
        one.image().convert("RGB").save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random changes of the pocket base, of some layers."""
    folder, layers = tmp_path_factory.mktemp("files"), base_layers(load_base("pocket"))
    shapes = {name: tuple(one.weight.shape) for name, one in layers.items() if "mid_block" in name}
    made = {
        name: write_random_lora(folder / f"{name}.safetensors", shapes=shapes, seed=len(name))
        for name in "ab"
    }
    return made | {"other": write_random_lora(folder / "other.safetensors", shapes=shapes, seed=7)}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The prompts of all images that are really drawn; the cache is this test's own."""
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    prompts, draw = list[str](), artist.draw_asked

    def noted(family, asked, *arguments, **named):
        prompts.extend(prompt for prompt, _ in asked)
        return draw(family, asked, *arguments, **named)

    monkeypatch.setattr(artist, "draw_asked", noted)
    yield prompts


def request(references: Path, folder: Path, **changes: object) -> EvaluationRequest:
    usual = {"count": COUNT, "seeds": SEEDS, "steps": 2, "base": "pocket", "trigger": "vkq robot"}
    given = usual | {"class_words": "robot", "images": references, "folder": folder} | changes
    return EvaluationRequest(**given)  # type: ignore[arg-type]


def test_a_second_file_costs_half_and_the_same_file_nothing(files, references, drawn, tmp_path) -> None:
    made, folder = evaluate(files["a"], request(references, tmp_path / "a"))
    first = len(drawn)
    without_captions = EACH - (COUNT - 1) * len(
        SEEDS
    )  # of a file none are known, so the trigger is the caption
    assert first == 2 * without_captions
    told = json.loads((folder / "evaluation.json").read_text("utf-8"))
    assert evaluation_of(told) == evaluation_of(made.evaluation.to_json())
    assert (folder / "evaluation.html").is_file() and (folder / "evaluation.png").is_file()
    evaluate(files["other"], request(references, tmp_path / "other"))
    assert len(drawn) == first + without_captions
    again, _ = evaluate(files["a"], request(references, tmp_path / "again"))
    assert len(drawn) == first + without_captions
    assert [one.interval for one in again.evaluation.measures] == [
        o.interval for o in made.evaluation.measures
    ]
    evaluate(files["a"], request(references, tmp_path / "half", strength=0.5))
    assert len(drawn) == first + 2 * without_captions


def test_after_a_kill_only_what_is_missing_is_drawn_and_the_figures_are_the_same(
    files, references, drawn, tmp_path, monkeypatch
) -> None:
    whole, _ = evaluate(files["b"], request(references, tmp_path / "whole"))
    total = len(drawn)
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "second"))
    drawn.clear()
    noted, stop_after = artist.draw_asked, 10

    def killed(*arguments, **named):
        if len(drawn) >= stop_after:
            raise KeyboardInterrupt
        return noted(*arguments, **named)

    monkeypatch.setattr(artist, "draw_asked", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(files["b"], request(references, tmp_path / "killed"))
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(artist, "draw_asked", noted)
    resumed, _ = evaluate(files["b"], request(references, tmp_path / "killed"))
    assert len(drawn) == total
    pairs = zip(resumed.evaluation.measures, whole.evaluation.measures, strict=True)
    assert all(one.per_question == other.per_question for one, other in pairs)


def test_a_damaged_image_is_drawn_again(files, references, drawn, tmp_path) -> None:
    evaluate(files["a"], request(references, tmp_path / "a"))
    first = sorted((tmp_path / "cache" / "drawn").glob("*.png"))[0]
    first.write_bytes(first.read_bytes()[:-20])
    drawn.clear()
    evaluate(files["a"], request(references, tmp_path / "a"))
    assert len(drawn) == len(SEEDS)  # those of its prompt, which are drawn together


def test_at_strength_0_it_is_the_base_and_has_no_effect(files, references, drawn, tmp_path) -> None:
    made, _ = evaluate(files["a"], request(references, tmp_path / "a", strength=0.0, steps=8))
    found = {one.name: one.interval for one in made.evaluation.measures}
    assert (found["change"].low, found["change"].high) == (0, 0) and found["drift"].value == 0
    gained = {"fidelity", "leakage", "burn"} & found.keys()
    assert {"fidelity", "burn"} <= gained and {found[name].value for name in gained} == {0}
    assert [one.word for one in made.evaluation.verdicts if one.decided] == ["no effect"]


def test_a_run_is_asked_by_its_own_captions_and_checkpoints(tiny_base, images, drawn, tmp_path) -> None:
    text = recipe_text(images, str(tiny_base))
    (tmp_path / "a.toml").write_text(text, "utf-8")
    train(tmp_path / "a.toml", tmp_path / "run")
    asked = EvaluationRequest(count=2, seeds=SEEDS, steps=2, encoder="pocket", checkpoint=2)
    made, folder = evaluate(tmp_path / "run", asked)
    found = made.evaluation
    assert folder == tmp_path / "run" / "evaluation" and found.variant == Variant(2, 1.0)
    captions = {path.read_text("utf-8").strip() for path in images.glob("*.txt")}
    assert {one.prompt for one in found.questions if one.group == "like_training"} <= captions
    buckets = {(one.bucket.width, one.bucket.height) for one in manifest_of(Run(tmp_path / "run")).used}
    sizes = {one.size for one in found.questions if one.group == "like_training"}
    assert sizes <= buckets and any(wide != high for wide, high in sizes)
    for one in made.tuned:
        assert one.image().size == (found.questions[one.question].size or (64, 64))
    assert found.facts["training_images"] > 0 and "training images" in " ".join(found.notes)
    assert not any(str(tmp_path) in json.dumps(one) for one in (found.facts, found.notes))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strength", "99"], "--strength is 99"),
        (["--strength", "nan"], "--strength is nan"),
        (["--count", "0"], "--count is 0"),
        (["--steps", "100000"], "--steps is 100000"),
        (["--guidance", "1000"], "--guidance is 1000"),
        (["--size", "50"], "must be a multiple of 8 from 8 to"),
        (["--encoder", "clop"], "did you mean 'clip'"),
        (["--images", "nowhere"], "--images is nowhere"),
        (["--seeds", "1"], "has 1 seeds"),
        (["--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(words, message, files, drawn, capsys) -> None:
    code, _, told = run(["evaluate", str(files["a"]), "--base", "pocket", *words], capsys)
    assert code == 2 and message in told and "Traceback" not in told and not drawn


def test_several_have_folders_of_their_own_and_one_that_lacks_is_said_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "a" / "fox.safetensors", tmp_path / "b" / "fox.safetensors", tmp_path / "my.v2"]
    for one in places:
        one.mkdir(parents=True)
    found = folders_for([*places, places[0]], Path("out"))
    assert list(found.items()) == [
        (places[0], Path("out/fox")),
        (places[1], Path("out/fox_2")),
        (places[2], Path("out/my.v2")),
    ]
    assert folders_for(places[:1], Path("out")) == {places[0]: Path("out")}
    assert folders_for(places, None) == dict.fromkeys(places)
    monkeypatch.chdir(places[2])
    assert folders_for([Path(), places[0]], Path("out"))[Path()] == Path("out/my.v2")
    with pytest.raises(StudioError, match=r"there is no .*none"):
        folders_for([places[0], tmp_path / "none"], None)


def test_the_public_function_gives_the_evaluation(files, references, drawn, tmp_path) -> None:
    options = request(references, tmp_path / "a")
    found = lora_studio.evaluate(files["a"], options=options)
    assert found.measure("drift").interval.value > 0 and found.name == files["a"].name
    with pytest.raises(StudioError, match=r"there is no .*none|none"):
        lora_studio.evaluate(tmp_path / "none")
