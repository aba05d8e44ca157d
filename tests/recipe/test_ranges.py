"""Numbers have ranges, texts and tables a size: what has neither is refused at once, in a sentence."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt

from lora_studio.errors import RecipeError
from lora_studio.recipe import Recipe
from lora_studio.recipe.data import DataConfig
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.section import Section
from lora_studio.training.prepare.checks import name_faults

GOOD = 'name = "a"\n[base]\nmodel = "pocket"\n[data]\nimages = "images"\n'


def numbers(section: type[Section] = Recipe) -> Iterator[tuple[type[Section], str]]:
    """Every option that is a number, with its table."""
    for option, field in section.model_fields.items():
        kinds: set[Any] = {field.annotation, *get_args(field.annotation)}
        if kinds & {int, float} and not kinds & {bool, str, ...}:
            yield section, option
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from numbers(kind)


NUMBERS = list(numbers())


def refusal(folder: Path, *changes: str, text: str = GOOD) -> str:
    """What is said of a recipe, which takes no time and is no longer than a screen."""
    path, began = folder / "recipe.toml", time.monotonic()
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, changes=changes)
    assert time.monotonic() - began < 5
    assert all(len(line) < 1700 for line in str(caught.value).splitlines())
    return str(caught.value)


def test_every_number_has_a_range() -> None:
    assert len(NUMBERS) > 60
    for section, option in NUMBERS:
        bounds = [type(one) for one in section.model_fields[option].metadata]
        assert {Ge, Gt} & {*bounds} and {Le, Lt} & {*bounds}, option


def faults_of(section: type[Section], option: str, value: object) -> list[str]:
    try:
        section.model_validate({option: value})
    except ValueError as error:
        return [str(one["type"]) for one in error.errors() if one["loc"][:1] == (option,)]  # type: ignore[attr-defined]
    return []


HUGE = (math.inf, -math.inf, math.nan, 1e308, 10**26, 10**5000, 1e-320, -1e-320)


@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
def test_no_number_takes_what_no_machine_can_use(value: float) -> None:
    assert [option for section, option in NUMBERS if not faults_of(section, option, value)] == []


@pytest.mark.parametrize(
    "text", ["inf", "nan", "-inf", "1e308", "1e-320", str(10**30), "9" * 5000, "0x" + "f" * 9000]
)
def test_the_optimizers_own_options_are_held_to_that_too(tmp_path: Path, text: str) -> None:
    assert "optimizer_options" in refusal(tmp_path, f"training.optimizer_options.eps={text}")
    assert "optimizer_options" in refusal(tmp_path, f"training.optimizer_options.betas=[0.9, {text}]")


def test_a_value_of_two_types_is_one_fault(tmp_path: Path) -> None:
    said = refusal(tmp_path, "training.warmup_steps=inf")
    assert said.endswith("has 1 fault(s):\n  training.warmup_steps is inf: input should be a finite number.")


def test_numbers_that_are_too_many_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD, "utf-8")
    most = load_recipe(path, changes=("training.steps=1000000", "training.gradient_accumulation=10"))
    assert not name_faults(most)
    more = load_recipe(path, changes=("training.steps=1000000", "training.gradient_accumulation=11"))
    (fault,) = name_faults(more)
    assert "1,000,000 steps and 11,000,000 micro-batches" in fault and "lower training.steps" in fault


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a]\nx = " + "[" * 20_000 + "]" * 20_000, "within each other, more than 8 deep"),
        ("[a]\nx = " + "{ a = " * 5000 + "1" + "}" * 5000, "more than 8 deep"),
        (".".join("a" * 100_000) + " = 1", "more than 8 deep"),
        ("[" + ".".join(["'a'"] * 20_000) + "]", "more than 8 deep"),
        ("x = { " + ' . '.join(['"a"'] * 20_000) + " = 1 }", "more than 8 deep"),
        ("x = [[[[[[[[[1]]]]]]]]]", "more than 8 deep"),
        (f"[training]\nsteps = {'9' * 5000}", "number of thousands of digits"),
        (f"[training]\nsteps = 0x{'f' * 9000}", "training.steps is a number of thousands of digits"),
        (f'class_words = "{"x" * 600_000}"', "it has 600000 letters; 20000 are enough"),
        (f'class_words = "{"x" * 1_000_000}"', "more than 1,000,000 bytes, as no recipe has"),
        ("".join(f"k{number} = 1\n" for number in range(30_000)), "30000 fault(s)"),
        ("x" * 400_000 + " = 1", "unknown key data.xxx"),
        (f"[[tokens]]\ntoken = '{'x' * 15_000}'\nstart = 'a'", "must be a word of at most 64"),
        ("[samples]\nprompts = [" + '"a", ' * 5000 + "]", "has 5000 entries; at most 1000"),
        (r'background = "a\u0000b"', r"background is 'a\x00b'"),
    ],
    ids=range(15),
)  # fmt: skip
def test_what_would_take_long_or_much_is_refused_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, text=GOOD + text + "\n")


def test_a_device_that_never_ends_is_no_recipe() -> None:
    if Path("/dev/zero").exists():
        with pytest.raises(RecipeError, match="is no file but a pipe or a device"):
            load_recipe(Path("/dev/zero"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_nothing_waits_for_a_pipe_that_no_one_writes_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(RecipeError, match="is no file but a pipe or a device"):
        load_recipe(tmp_path / "a.toml")


def test_true_is_no_number() -> None:
    """Python's 1: a rank or a learning rate that no one meant."""
    assert [option for section, option in NUMBERS if not faults_of(section, option, True)] == ["flip"]
    assert faults_of(DataConfig, "extra_resolutions", [True])


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[31mb", "a\x9bb", "a\u2028b", "a\r"], ids=ascii)
@pytest.mark.parametrize("option", ["data.trigger", "data.class_words", "data.instance_prompt"])
def test_words_of_captions_are_one_line(tmp_path: Path, option: str, text: str) -> None:
    assert "line break or a control character" in refusal(tmp_path, f"{option}={json.dumps(text)}")


LINES = '"""\na dog,\r\n    on\ta hill\n"""'  # TOML's own way to write a long text


def test_a_prompt_may_be_written_in_lines(tmp_path: Path) -> None:
    """It is white space to the tokenizer; other control characters are no words."""
    text = f"{GOOD}[samples]\nprompts = [{LINES}, 'a  b']\nnegative_prompt = {LINES}\n"
    (tmp_path / "recipe.toml").write_text(text, "utf-8", newline="")
    samples = load_recipe(tmp_path / "recipe.toml").samples
    assert samples.prompts == ("a dog, on a hill", "a  b")
    assert samples.negative_prompt == "a dog, on a hill"
    for change in ('samples.prompts=["a\\u001b[31m"]', 'samples.negative_prompt="a\\u009b"'):
        assert "control character" in refusal(tmp_path, change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.steps=2\n[x]\ny = 3", "--set training.steps is given more than a value; repeat --set"),
        ("training.steps=" + "[" * 20_000, "more than 8 deep"),
        (".".join("a" * 20_000) + "=1", "is not key=value"),
        ("data.images=" + "x" * 300, "no system has so long a path"),
        ("data.images=" + "x/" * 3000, "no system has so long a path"),
        ("data.trigger=" + "x" * 30_000, "it has 30000 letters"),
        ("data.trigger=a\udcff", "it holds what is no text"),
        ("data.images=a\udcff", "it holds what is no text"),
        ('data.images="C:\\Users\\me"', "write paths with / or in 'single quotes'"),
    ],
)
def test_a_change_is_one_value_of_sensible_size(tmp_path: Path, change: str, words: str) -> None:
    assert words in refusal(tmp_path, change)


@pytest.mark.parametrize(
    "name", [".", "..", "a.", "CON", "con.v2", "aux", "LPT1", "summary", "checkpoints", "Loss"]
)
def test_a_name_that_no_file_can_have_or_that_the_run_needs_is_refused(tmp_path: Path, name: str) -> None:
    assert f"name is {name!r}, which" in refusal(tmp_path, f'name="{name}"')
    token = f'tokens=[{{token="{name.lower()}", start="a"}}]'
    assert "tokens.token is" in refusal(tmp_path, token)


def test_names_that_only_look_like_those_are_taken(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(GOOD, "utf-8")
    for name in ("console", "com", "com10", "my.con", "summary2", ".hidden"):
        assert load_recipe(tmp_path / "recipe.toml", changes=(f'name="{name}"',)).name == name


WRITE_PATHS = "write paths with / or in 'single quotes'"


@pytest.mark.parametrize(
    "path", [r"C:\Users\me", r"C:\new", r"pics\temp", r"C:\models\x", r"D:\a\b", r"a\beta"]
)
@pytest.mark.parametrize("line", ['images = "{}"', 'masks = "{}"'])
def test_a_path_with_backslashes_in_double_quotes_is_told(tmp_path: Path, line: str, path: str) -> None:
    """Some of them are escapes that TOML knows: a tab or a line break in the path."""
    assert WRITE_PATHS in refusal(tmp_path, text=GOOD.replace('images = "images"', line.format(path)))
    model = GOOD.replace('"pocket"', f'"{path}"')
    assert WRITE_PATHS in refusal(tmp_path, text=model)


def test_a_path_that_is_there_may_hold_whatever_its_system_allows(tmp_path: Path) -> None:
    odd = tmp_path / "a\tb"
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("not on this system")
    (tmp_path / "recipe.toml").write_text(GOOD.replace('"images"', r'"a\tb"'), "utf-8")
    assert load_recipe(tmp_path / "recipe.toml").data.images == odd


OTHERS = {
    "config.json": ('{"network_dim": 8}', "is JSON, as other trainers' settings are"),
    "one_trainer.toml": ('\n{\n"a": 1}', "is JSON"),
    "ai_toolkit.yaml": ("job: extension\nconfig:\n  name: x\n", "is YAML"),
    "ai_toolkit.toml": ("---\njob: extension\n", "is YAML"),
    "other.toml": ("job: extension\n", "is YAML"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_trainers_settings_are_called_by_their_name(tmp_path: Path, name: str) -> None:
    text, words = OTHERS[name]
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / name)
    assert words in str(caught.value) and "docs/migrate.md" in str(caught.value)


def test_a_folder_and_a_text_of_windows_are_told_from_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="is a folder, not a recipe; for a folder of images: lora-studio start"
    ):
        load_recipe(tmp_path)
    (tmp_path / "a.toml").write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(RecipeError, match="UTF-16, as PowerShell's > writes; save it as UTF-8"):
        load_recipe(tmp_path / "a.toml")
