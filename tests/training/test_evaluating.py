"""A run that is asked what it learned: the same weights, a checkpoint that is chosen, and strengths."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.errors import CheckpointError, RecipeError, StudioError
from lora_studio.evaluate.artist import Brush
from lora_studio.evaluate.result import Evaluation, Interval, Measured, Variant, evaluation_of
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run, step_of
from lora_studio.runs.reading import read_sealed
from lora_studio.tensor_file.header import read_header
from lora_studio.tools.choose import ChoiceRequest, choose_of_run
from lora_studio.training.evaluating.artist import TrainedArtist
from lora_studio.training.evaluating.asked import RunMeasures, encoder_named, seeds_of
from lora_studio.training.events import Event, Note
from lora_studio.training.finish import Finished
from lora_studio.training.finish.export import (
    ExportRequest,
    checkpoint_of,
    export_run,
    finished_recipe,
    revive,
)
from lora_studio.training.planning import plan
from lora_studio.training.session import train

SMALL = (
    *("evaluate.encoder=pocket", "evaluate.checkpoint_prompts=2", "evaluate.prompts=2", "evaluate.seeds=2"),
    "samples.prompts=[]",
)
LEARNED = "adapters.safetensors"


def trained(
    recipe: Recipe, folder: Path, heard: list[Event] | None = None, *, resume: bool = False
) -> Finished:
    found = train(recipe, folder, resume=resume, on_event=(heard if heard is not None else []).append)
    assert isinstance(found, Finished)
    return found


def steps_of(folder: Path) -> list[int]:
    return [step_of(path) for path in Run(folder).checkpoints()]


def checkpoint(folder: Path, step: int) -> dict[str, bytes]:
    path = folder / "checkpoints" / f"step_{step:06}"
    return {one.name: one.read_bytes() for one in path.iterdir()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Finished:
    """Eight steps without any evaluation, of which every second is kept."""
    recipe = load_recipe(recipe_file, changes=(*SMALL, "training.steps=8", "training.keep_checkpoints=9"))
    return trained(recipe, tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Finished:
    """The same run, measured every second step and at its end."""
    asked = ("training.steps=8", "training.keep_checkpoints=1", "evaluate.every=2", "evaluate.at_end=true")
    recipe = load_recipe(recipe_file, changes=(*SMALL, *asked))
    return trained(recipe, tmp_path_factory.mktemp("measured") / "run")


def test_what_is_learned_is_the_same_bytes_with_and_without_being_measured(
    plain: Finished, measured: Finished
) -> None:
    assert plain.lora_file is not None and measured.lora_file is not None
    assert plain.lora_file.read_bytes() == measured.lora_file.read_bytes()
    for step in (2, 4, 6, 8):
        assert checkpoint(plain.folder, step) == checkpoint(measured.folder, step)
    assert not (plain.folder / "choice.jsonl").exists() and not (plain.folder / "evaluation").exists()


def test_every_measured_checkpoint_is_kept_and_best_json_says_which_is_best_and_why(
    measured: Finished,
) -> None:
    assert steps_of(measured.folder) == [2, 4, 6, 8]
    rows = Run(measured.folder).measurements("choice.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    best = read_sealed(measured.folder / "best.json")
    assert best["step"] in (2, 4, 6, 8) and best["why"].startswith(f"step {best['step']}: fidelity")
    assert best["encoder"] == "pocket" and len(best["seeds"]) == 2 and len(best["questions"]) >= 4
    assert measured.summary["checkpoint"] == {"step": 8, "why": "the last one"}  # it was not to be taken


def test_the_evaluation_of_the_result_lies_beside_it(measured: Finished) -> None:
    found = evaluation_of(json.loads((measured.folder / "evaluation" / "evaluation.json").read_text("utf-8")))
    assert found.variant == Variant(8) and found.name == "tiny" and found.measures
    assert found.facts["encoder"] == "pocket" and len(found.seeds) == 2
    state = measured.folder / "checkpoints" / "step_000008" / "state.json"
    assert found.facts["learned_sha256"] == hashlib.sha256(state.read_bytes()).hexdigest()


def test_a_resumed_run_measures_the_same_and_ends_with_the_same_file(
    tmp_path: Path, measured: Finished, recipe_file: Path
) -> None:
    assert measured.lora_file is not None
    folder = tmp_path / "run"
    shutil.copytree(measured.folder, folder)
    for step in (6, 8):
        shutil.rmtree(folder / "checkpoints" / f"step_{step:06}")
    (folder / "tiny.safetensors").unlink()
    found = trained(load_recipe(folder / "recipe.toml"), folder, resume=True)
    assert found.lora_file is not None
    assert found.lora_file.read_bytes() == measured.lora_file.read_bytes()
    names = ("choice.jsonl", "best.json")
    assert [(folder / one).read_bytes() for one in names] == [
        (measured.folder / one).read_bytes() for one in names
    ]


FIDELITY = {2: 0.1, 4: 0.5, 6: 0.3, 8: 0.9}
DRIFT = {2: 0.1, 4: 0.2, 6: 0.3, 8: 1.7}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Variant]:
    """Made-up ones, by the step and falling with the distance of the strength from 0.8; who was asked for."""
    asked = list[Variant]()

    def measure(self: RunMeasures, variant: Variant) -> Evaluation:
        asked.append(variant)
        self.artist.load(variant.step)
        assert self.artist.state.counters.step == variant.step
        low = FIDELITY[variant.step or 0] - (abs(variant.strength - 0.8) if variant.strength != 1 else 0.2)
        drift = DRIFT[variant.step or 0] * variant.strength
        return Evaluation(
            name="tiny",
            variant=variant,
            facts={},
            questions=(),
            seeds=(1, 2),
            measures=(
                Measured("fidelity", Interval(low + 0.1, low, low + 0.2, 4), {}),
                Measured("drift", Interval(drift, drift, drift, 4), dict.fromkeys(range(4), drift)),
                Measured("leakage", Interval(0.0, 0.0, 0.0, 4), {}),
            ),
            verdicts=(),
        )

    monkeypatch.setattr(RunMeasures, "measure", measure)
    return asked


def test_the_chosen_checkpoint_is_the_file_and_everything_says_so(
    tmp_path: Path, recipe_file: Path, plain: Finished, figures: list[Variant]
) -> None:
    changes = (*SMALL, "training.steps=8", "evaluate.every=2", "evaluate.choose=true")
    heard = list[Event]()
    found = trained(load_recipe(recipe_file, changes=changes), tmp_path / "run", heard)
    assert [one.step for one in figures] == [2, 4, 6, 8]
    assert read_sealed(found.folder / "best.json")["step"] == 4  # 8 is beyond the budget of drift
    assert found.summary["checkpoint"] == {"step": 4, "why": "by evaluation"}
    assert Run(found.folder).file_step() == 4
    shown = {which: checkpoint_of(Run(found.folder), which)[1] for which in (None, "best", "newest", 6)}
    assert shown == {None: 4, "best": 4, "newest": 8, 6: 6}  # by `evaluate`, `sample` and `export`
    assert found.summary["steps"] == 8
    assert any("made of step 4 of 8, by evaluation: step 4: fidelity" in str(one) for one in heard)
    assert found.lora_file is not None
    metadata = read_header(found.lora_file).metadata
    assert metadata["ss_steps"] == "4" and metadata["lora_studio.checkpoint"] == "step 4 of 8, by evaluation"
    # the tensors are those that an export of the same step of a run that was never measured has
    request = ExportRequest(("kohya",), 4, folder=tmp_path / "out")
    (exported,) = export_run(plain.folder, request)
    assert tensors(exported.made.paths[0]) == tensors(found.lora_file)
    (best,) = export_run(found.folder, ExportRequest(("kohya",), "best", folder=tmp_path / "best"))
    assert tensors(best.made.paths[0]) == tensors(found.lora_file)


def tensors(path: Path) -> bytes:
    """All behind the header."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.mark.parametrize(("wanted", "step"), [("last", 8), ("6", 6), ("best", 4)])
def test_the_recipe_says_which_checkpoint_the_file_is_made_of(
    tmp_path: Path, recipe_file: Path, figures: list[Variant], wanted: str, step: int
) -> None:
    kept = ("training.steps=8", "training.keep_checkpoints=1", "training.checkpoint_every=8")
    changes = (*SMALL, *kept, "evaluate.every=2", f"export.checkpoint={wanted}")
    found = trained(load_recipe(recipe_file, changes=changes), tmp_path / "run")
    assert found.summary["checkpoint"]["step"] == step


def test_a_step_can_be_exported_that_is_no_checkpoint_otherwise(tmp_path: Path, recipe_file: Path) -> None:
    changes = (*SMALL, "training.steps=5", "training.checkpoint_every=5", "training.keep_checkpoints=1")
    recipe = load_recipe(recipe_file, changes=(*changes, "export.checkpoint=3"))
    found = trained(recipe, tmp_path / "run")
    assert found.summary["checkpoint"] == {"step": 3, "why": "as the recipe says"}
    assert steps_of(found.folder) == [3, 5]
    with pytest.raises(RecipeError, match=r"export\.checkpoint is 9, but the run has 5 steps"):
        load_recipe(recipe_file, changes=(*changes, "export.checkpoint=9"))


def test_patience_ends_a_run_early_and_a_resume_of_it_does_not_go_on(
    tmp_path: Path, recipe_file: Path, figures: list[Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = (*SMALL, "training.steps=8", "evaluate.every=2", "evaluate.choose=true", "evaluate.patience=1")
    heard = list[Event]()
    found = trained(load_recipe(recipe_file, changes=changes), tmp_path / "run", heard)
    assert [one.step for one in figures] == [2, 4, 6]  # 6 is no better than 4
    assert found.summary["steps"] == 6 and found.summary["checkpoint"]["step"] == 4
    assert any(isinstance(one, Note) and "it is enough" in one.text for one in heard)
    again = trained(load_recipe(found.folder / "recipe.toml"), found.folder, resume=True)
    assert again.summary["steps"] == 6 and len(figures) == 3


def test_checkpoints_that_others_were_asked_of_are_measured_anew_when_a_run_goes_on(
    tmp_path: Path, recipe_file: Path, plain: Finished, figures: list[Variant]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(plain.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "step_000008")
    changes = (*SMALL, "training.steps=8", "evaluate.every=2", "training.keep_checkpoints=9")
    recipe = load_recipe(recipe_file, changes=changes)
    found = trained(recipe, folder, resume=True)
    assert [one.step for one in figures] == [2, 4, 6, 8]
    assert plain.lora_file is not None and found.lora_file is not None
    assert found.lora_file.read_bytes() == plain.lora_file.read_bytes()  # what was loaded was put back


def test_strengths_are_measured_on_what_the_file_is_made_of_and_go_into_it(
    tmp_path: Path, recipe_file: Path, figures: list[Variant]
) -> None:
    strengths = "evaluate.strengths=[0.4, 0.6, 0.8, 1.2]"
    changes = (*SMALL, "training.steps=4", strengths, "export.sidecars=true")
    found = trained(load_recipe(recipe_file, changes=changes), tmp_path / "run")
    assert [(one.step, one.strength) for one in figures] == [(4, 0.4), (4, 0.6), (4, 0.8), (4, 1.2)]
    told = read_sealed(found.folder / "strengths.json")
    assert told["recommended"] == 0.8 and told["usable"] == [0.4, 1.2]
    assert found.summary["strength"] == {"recommended": 0.8, "usable": [0.4, 1.2]}
    assert found.lora_file is not None
    metadata = read_header(found.lora_file).metadata
    assert metadata["lora_studio.strength"] == "0.8"
    assert (
        metadata["modelspec.usage_hint"] == "strength 0.8, usable from 0.4 to 1.2; trigger words: zwx style"
    )
    sidecar = json.loads((found.folder / "tiny.json").read_text("utf-8"))
    assert sidecar["preferred weight"] == 0.8 and "usable from 0.4 to 1.2" in sidecar["notes"]
    own = load_recipe(recipe_file, changes=(*changes, "export.strength=0.5"))
    named = trained(own, tmp_path / "own")
    assert named.lora_file is not None
    assert read_header(named.lora_file).metadata["lora_studio.strength"] == "0.5"


def test_a_strength_changes_what_is_drawn_and_leaves_the_weights_as_they_were(
    measured: Finished, recipe_file: Path
) -> None:
    run = Run(measured.folder)
    recipe = finished_recipe(run)
    found, state = revive(run, recipe)
    artist = TrainedArtist(found, state, Brush(found.family, recipe.samples, 64, "base"))
    before = {name: one.detach().clone() for name, one in found.family.parts["unet"].named_parameters()}
    asked = [("a red ball, zwx style", 1)]
    drawn = {
        variant: artist.draw(asked, variant)[0].tobytes()
        for variant in (None, Variant(8), Variant(8, 0.5), Variant(2), Variant(8, 1.0))
    }
    assert len(set(drawn.values())) == 4  # of five: the last is the second again
    assert artist.draw(asked, None)[0].tobytes() == drawn[None]
    assert artist.learned(Variant(2)) != artist.learned(Variant(8)) == artist.learned(Variant(8, 0.5))
    artist.load(8)
    state_of = {
        name: one for name, one in found.family.parts["unet"].named_parameters() if "lora" not in name
    }
    assert all((one == before[name]).all() for name, one in state_of.items() if name in before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("evaluate.choose=true",), "evaluate.every is 0"),
        (("evaluate.patience=2",), "evaluate.every is 0"),
        (("evaluate.seeds=1",), "evaluate.seeds"),
        (("evaluate.strengths=[0.5, -1]",), "evaluate.strengths"),
        (("evaluate.evry=5",), "every"),
    ],
)
def test_what_cannot_be_meant_is_refused(recipe_file: Path, changes: tuple[str, ...], words: str) -> None:
    with pytest.raises(RecipeError, match=words.replace(".", r"\.")):
        load_recipe(recipe_file, changes=changes)


def test_too_few_reference_images_are_said_before_the_first_step(tmp_path: Path, recipe_file: Path) -> None:
    (tmp_path / "images").mkdir()
    changes = (*SMALL, "evaluate.at_end=true", f"evaluate.images={tmp_path / 'images'}")
    with pytest.raises(StudioError, match=r"evaluate\.images is .*give 2 or more"):
        train(load_recipe(recipe_file, changes=changes), tmp_path / "run")
    unknown = load_recipe(recipe_file, changes=(*SMALL, "evaluate.at_end=true", "evaluate.encoder=clipp"))
    with pytest.raises(RecipeError, match="clip"):
        train(unknown, tmp_path / "run")


def test_a_choice_that_was_edited_is_not_gone_by(tmp_path: Path, measured: Finished) -> None:
    folder = tmp_path / "run"
    shutil.copytree(measured.folder, folder)
    path = folder / "best.json"
    path.write_text(path.read_text("utf-8").replace('"step": ', '"step": 1', 1), "utf-8")
    with pytest.raises(CheckpointError, match=r"best\.json is not as the run wrote it"):
        export_run(folder, ExportRequest(("kohya",), "best", folder=tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ("evaluate.drift=0.15", 2),
        ("evaluate.drift=0.25", 4),
        ("evaluate.drift=2", 8),
        ("evaluate.leakage=0", 4),
    ],
)
def test_budgets_decide_what_is_chosen(
    tmp_path: Path, recipe_file: Path, figures: list[Variant], change: str, step: int
) -> None:
    changes = (*SMALL, "training.steps=8", "evaluate.every=2", "evaluate.choose=true", change)
    found = trained(load_recipe(recipe_file, changes=changes), tmp_path / "run")
    assert found.summary["checkpoint"]["step"] == step


def test_what_is_asked_is_as_the_recipe_says(
    tmp_path: Path, recipe_file: Path, plain: Finished, images: Path
) -> None:
    """Each option of what is asked changes it, and by that the hash that tells others' figures."""
    run = Run(plain.folder)
    usual = run_measures(run, recipe_file)
    found = {usual.hashed}
    options = ("checkpoint_prompts=3", "seeds=3", "first_seed=7", f"images={images}", "encoder=pocket")
    for option in options:
        other = run_measures(run, recipe_file, f"evaluate.{option}")
        found.add(other.hashed)
    assert len(found) == len(options)  # of one more: the encoder is the same
    few, many = (len(usual.questions(count)) for count in (1, 2))
    assert 4 <= few < many and seeds_of(usual.recipe) == (1000, 1001)
    assert encoder_named("auto", "pocket") == ("pocket", "") and encoder_named("auto", "a/b")[0] == "clip"
    assert encoder_named("clip:some/folder", "pocket") == ("clip", "some/folder")


def run_measures(run: Run, recipe_file: Path, *changes: str) -> RunMeasures:
    recipe = load_recipe(recipe_file, changes=(*SMALL, "evaluate.every=2", *changes))
    found, state = revive(run, recipe)
    brush = Brush.like_previews(found.family, recipe.samples, recipe.data.resolution, "base")
    return RunMeasures(TrainedArtist(found, state, brush))


def test_the_plan_tells_time_and_disk_of_what_is_asked(recipe_file: Path) -> None:
    plain = plan(load_recipe(recipe_file, changes=(*SMALL, "training.steps=8")))
    asked = ("evaluate.every=2", "evaluate.at_end=true", "evaluate.strengths=[0.5, 1.0]")
    found = plan(load_recipe(recipe_file, changes=(*SMALL, "training.steps=8", *asked)))
    assert plain.timing.drawings == plain.disk.drawn == plain.memory.previews == 0
    questions, times = 8, 1 + 4 + 2 + 1  # the base's, four checkpoints, two strengths, and the end
    assert found.timing.drawings == questions * times and found.timing.drawing > 0
    assert found.disk.drawn > 0 and found.memory.previews > 0
    assert found.disk.num_checkpoints == 4 and "evaluation" in str(found.training.rows)


def test_the_verb_chooses_among_the_checkpoints_of_a_finished_run(
    tmp_path: Path, plain: Finished, figures: list[Variant]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(plain.folder, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    asked = {"encoder": "pocket", "checkpoint_prompts": 2, "seeds": 2}
    found = choose_of_run(folder, ChoiceRequest(asked))
    assert found.choice.taken.variant == Variant(4) and found.strengths is None
    assert [one.step for one in figures] == [2, 4, 6, 8]
    assert read_sealed(folder / "best.json")["why"] == found.choice.why
    assert all(path.read_bytes() == content for path, content in before.items())
    strengths = choose_of_run(folder, ChoiceRequest(asked | {"strengths": (0.8, 1.0)}, grid=True))
    assert [one.strength for one in figures[4:]] == [0.8, 1.0]  # the checkpoints were measured before
    assert strengths.strengths is not None and strengths.strengths.recommended == 0.8
    shown = [Path(one).relative_to(folder).as_posix() for one in strengths.files]
    assert shown == ["best.json", "grid/strengths.png", "grid/checkpoints.png"]
    for name in shown[1:]:
        with Image.open(folder / name) as sheet:
            assert sheet.width > sheet.height / 3
    other = choose_of_run(folder, ChoiceRequest(asked | {"drift": 0.15}))
    assert other.choice.taken.variant == Variant(2) and len(figures) == 6  # another budget, the same figures


def test_the_verb_says_what_it_cannot_choose_from(tmp_path: Path, plain: Finished) -> None:
    folder = tmp_path / "run"
    shutil.copytree(plain.folder, folder)
    with pytest.raises(RecipeError, match="evaluate"):
        choose_of_run(folder, ChoiceRequest({"drift": -1}))
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        choose_of_run(folder, ChoiceRequest({}))


def test_a_resume_past_the_step_that_is_wanted_says_so_before_it_trains(
    tmp_path: Path, measured: Finished, recipe_file: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(measured.folder, folder)
    shutil.rmtree(folder / "checkpoints" / "step_000008")
    recipe = load_recipe(folder / "recipe.toml", changes=("export.checkpoint=3",))
    with pytest.raises(CheckpointError, match="there is no checkpoint of step 3"):
        train(recipe, folder, resume=True)
