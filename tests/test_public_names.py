"""The few names of the package itself: what an engineer finds, types and may rely on."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from lora_files import write_random_lora
from tiny import recipe_text

import lora_studio
from lora_studio.quiet import LIBRARIES, quietly

ROOT = Path(lora_studio.__file__).parent.parent
HEAVY = {"torch", "diffusers", "transformers", "peft", "numpy", "PIL", "pydantic"}
FUNCTIONS = [name for name in lora_studio.__all__ if name[0].islower()]


def test_importing_the_package_and_looking_at_it_imports_nothing_heavy() -> None:
    look = f"dir(lora_studio); [help(getattr(lora_studio, name)) for name in {FUNCTIONS!r}]"
    script = f"import sys, lora_studio; {look}; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_every_public_name_is_there_and_is_seen() -> None:
    assert all(getattr(lora_studio, name) for name in lora_studio.__all__)
    assert set(lora_studio.__all__) < set(dir(lora_studio))
    assert set(FUNCTIONS) >= {"doctor", "caption", "verify", "compare", "export", "plan", "train"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_says_what_it_does_and_what_it_raises(name: str) -> None:
    function = getattr(lora_studio, name)
    assert len(inspect.getdoc(function) or "") > 80
    assert all(one.annotation is not one.empty for one in inspect.signature(function).parameters.values())


def test_functions_stay_functions_when_the_rooms_of_their_names_are_imported() -> None:
    import lora_studio.export.kohya
    import lora_studio.verify.uis

    assert lora_studio.verify.__module__ == lora_studio.export.__module__ == "lora_studio.api"


def test_another_name_is_an_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = lora_studio.trian


def test_what_is_missing_is_one_sentence_whatever_the_kind_of_path(tmp_path: Path) -> None:
    none = tmp_path / "none"
    calls = [lora_studio.doctor, lora_studio.caption, lora_studio.verify, lora_studio.train, lora_studio.plan]
    calls += [lora_studio.sample, lora_studio.evaluate]
    calls.append(lambda path: lora_studio.export(path, "kohya"))
    calls.append(lambda path: lora_studio.compare(path, path))
    for call in calls:
        for path in (none, str(none)):
            with pytest.raises(lora_studio.StudioError, match=r"there is no .*none"):
                call(path)


def test_captions_are_written_from_python_as_by_the_verb(tmp_path: Path, images: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "red_ball.png")
    options = lora_studio.WriterOptions(wording=lora_studio.Wording(suffix=", in {trigger}"))
    heard: list[str] = []
    result = lora_studio.caption(
        str(tmp_path), trigger="zwx", options=options, on_image=lambda one: heard.append(one.after)
    )
    assert (result.written, heard) == (1, ["red ball, in zwx"])
    assert (tmp_path / "red_ball.txt").read_text() == "red ball, in zwx\n"


def test_a_run_from_python_with_paths_as_text(tmp_path: Path, images: Path, tiny_base: Path, capsys) -> None:
    (tmp_path / "tiny.toml").write_text(recipe_text(images, str(tiny_base)), "utf-8")
    place, heard = str(tmp_path / "run"), []
    result = lora_studio.train(
        str(tmp_path / "tiny.toml"), place, set={"training": {"steps": 1}}, on_event=heard.append
    )
    assert result.folder == tmp_path / "run" and result.report.ok and result.summary["steps"] == 1
    assert [one.step for one in heard if type(one).__name__ == "StepDone"] == [1]
    (made,) = lora_studio.export(place, "diffusers", checkpoint=1, out=str(tmp_path / "out"))
    assert made.report.ok and made.made.paths[0].parent == tmp_path / "out"
    options = lora_studio.SampleRequest(steps=1, side=32)
    drawn = lora_studio.sample(str(result.lora_file), "a fox", strengths=[0.5], seeds=[1, 2], options=options)
    assert [one.strength for one in drawn.images] == [None, None, 0.5, 0.5] and Path(drawn.sheet).is_file()
    assert capsys.readouterr() == ("", "")


def test_strengths_count_when_files_are_compared(tmp_path: Path) -> None:
    one, other = (write_random_lora(tmp_path / f"{number}.safetensors", seed=number) for number in range(2))
    assert lora_studio.compare(one, str(other)).verdict == "combine"
    found = lora_studio.compare(one, other, strengths=(4.0, 1.0))
    assert found.verdict == "one dominates" and found.norms[0] > 3 * found.norms[1]


def test_libraries_are_quiet_inside_and_as_loud_as_before_outside() -> None:
    import diffusers  # noqa: F401

    before = {name: logging.getLogger(name).level for name in LIBRARIES}
    levels = quietly(lambda: logging.getLogger("diffusers").getEffectiveLevel())
    assert levels() == logging.ERROR
    assert {name: logging.getLogger(name).level for name in LIBRARIES} == before
