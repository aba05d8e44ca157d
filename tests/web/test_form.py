"""The form of a recipe: every option is in it, and nothing is lost between it and the TOML beside it."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from fuzzing_recipes import OPTIONS, put, valid
from pydantic import ValidationError

from lora_studio.errors import RecipeError
from lora_studio.recipe import Recipe, fields
from lora_studio.recipe.load import PRESET_FOLDER, load_recipe, recipe_from
from lora_studio.recipe.schema import recipe_schema
from lora_studio.web.forms import form_fields, form_tables, search
from lora_studio.web.forms.draft import RecipeDraft
from lora_studio.web.forms.entries import Entry, entries_of, value_at, value_of, values_of
from lora_studio.web.forms.toml_text import rewritten

RECIPES = sorted(PRESET_FOLDER.glob("*.toml"))
names = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def draft_of(entries: Mapping[str, Entry], folder: Path) -> RecipeDraft:
    """A draft without a text of its own, from filled-in fields."""
    draft = RecipeDraft("", folder)
    for option, entry in entries.items():
        if entry is not None:
            draft.set(option, entry)
    return draft


def options_of(schema: dict, prefix: str = "") -> set[str]:
    """Every option in a JSON schema, of tables in lists too; read from the schema alone."""
    found = set()
    for key, option in schema["properties"].items():
        items = option.get("items", {})
        if "$ref" in option:
            found |= options_of(recipe_schema()["$defs"][option["$ref"].split("/")[-1]], f"{prefix}{key}.")
        elif isinstance(items, dict) and "$ref" in items:
            found.add(prefix + key)
            found |= options_of(recipe_schema()["$defs"][items["$ref"].split("/")[-1]], f"{prefix}{key}[].")
        else:
            found.add(prefix + key)
    return found


def test_every_option_of_the_schema_is_in_the_form():
    shown = set(form_fields()) | {one.option for field in form_fields().values() for one in field.columns}
    assert shown == options_of(recipe_schema())
    assert [option for option, _, _ in fields()] == [*form_fields()] or {*form_fields()} == {*OPTIONS}


def test_every_field_has_help_and_a_kind_that_takes_its_default():
    for field in form_fields().values():
        assert field.help, field.option
        assert field.default is not None or not field.limits or field.allowed
        entries = entries_of({}) | {field.option: None}
        assert values_of(entries) == {}


def test_options_of_text_are_paths_where_the_recipe_has_paths():
    paths = {
        option for option, section, name in fields() if "Path" in str(section.model_fields[name].annotation)
    }
    shown = {option for option, field in form_fields().items() if field.kind == "path"}
    assert paths <= shown and shown - paths == {"base.model", "base.vae"}


def test_ranges_and_choices_are_those_of_the_recipe():
    rank, steps, kind = (
        form_fields()[name] for name in ("adapter.rank", "training.warmup_steps", "adapter.kind")
    )
    assert rank.allowed == "at least 1, at most 4096" and steps.allowed == "at least 0, at most 1e+06"
    assert "dora" in kind.choices and form_fields()["machine.compile"].choices == ("auto", "true", "false")


def shown(draft: RecipeDraft) -> dict[str, object]:
    """What all fields of the form mean."""
    return {option: value_of(field, draft.shown(option)) for option, field in form_fields().items()}


@names
def test_a_shipped_recipe_stays_what_it_is_letter_by_letter(path):
    text = path.read_text("utf-8")
    draft = RecipeDraft(text, path.parent)
    assert draft.faults == [] and draft.text == text
    again = draft_of(draft.entries, path.parent)
    assert shown(again) == shown(draft) and again.recipe() == load_recipe(path)
    assert RecipeDraft(again.text, path.parent).entries == again.entries
    assert entries_of(tomllib.loads(rewritten("", values_of(draft.entries)))) == draft.entries
    for option, entry in draft.entries.items():
        if entry is not None and value_at(draft.values, option) != form_fields()[option].default:
            draft.set(option, entry)
    assert draft.text == text


@names
def test_an_option_set_and_reset_leaves_the_text_as_it_was(path):
    text, draw = path.read_text("utf-8"), random.Random(path.stem)
    for option in draw.sample([*form_fields()], 25):
        draft = RecipeDraft(text, path.parent)
        if draft.entry(option) is None and form_fields()[option].kind not in ("tables", "list"):
            draft.set(option, "7")
            assert draft.text != text and all(line in draft.text.split("\n") for line in text.split("\n")), (
                option
            )
            draft.reset(option)
            assert draft.text == text, option


def test_random_valid_recipes_go_through_form_and_text_unchanged(tmp_path):
    draw, base, done = random.Random(5), tomllib.loads(RECIPES[0].read_text("utf-8")), 0
    for _ in range(40):
        values = {key: dict(one) if isinstance(one, dict) else one for key, one in base.items()}
        for _ in range(draw.randint(1, 6)):
            option = draw.choice([*OPTIONS])
            put(values, option, valid(option, draw))
        try:
            recipe = Recipe.model_validate(values, context={"folder": tmp_path})
        except ValidationError:
            continue
        done += 1
        draft = draft_of(entries_of(values), tmp_path)
        assert recipe_from(tomllib.loads(draft.text), folder=tmp_path) == recipe
        assert entries_of(tomllib.loads(draft.text)) == draft.entries
        assert entries_of(tomllib.loads(rewritten("", values_of(entries_of(values))))) == entries_of(values)
        assert draft_of(draft.entries, tmp_path).text == draft.text
    assert done >= 10


TABLES = """
name = "many"   # its name
base = { model = "pocket", loras = [{ file = "a.safetensors", strength = 0.5 }] }

[data]
images = 'C:\\a'     # single quotes
captioner = \"\"\"
sidecar\"\"\"

[[tokens]]
token = "vkq" # one
start = "robot"

# of the second
[[tokens]]
token = "zwx"
start = "fox"

[training.optimizer_options]
betas = [
  0.9,  # first
  0.99,
]
"""


@pytest.mark.parametrize(
    "change, kept",
    [
        ({"tokens": [{"token": "zwx", "start": "fox"}]}, ["# of the second"]),
        ({"tokens": [{"token": "vkq", "start": "dog"}, {"token": "zwx", "start": "fox"}]}, ["# one", "# of"]),
        ({"tokens": []}, ["# its name", "# single quotes", "# first"]),
        ({"data": {"images": "b", "captioner": "sidecar", "flip": 0.5}}, ["# single quotes", "# first"]),
        ({"base": {"model": "pocket"}}, ["# its name", "# one"]),
        ({"training": {"optimizer_options": {"betas": [0.8, 0.9]}, "steps": 5}}, ["# of the second"]),
        ({"adapter": {"layers": [{"pattern": "*", "rank": 2}, {"pattern": 'a"\\', "rank": 3}]}}, ["# one"]),
    ],
)
def test_tables_in_every_spelling_are_changed_in_place(change, kept):
    values = tomllib.loads(TABLES) | change
    text = rewritten(TABLES, {key: one for key, one in values.items() if one != []})
    assert tomllib.loads(text) == {key: one for key, one in values.items() if one != []}
    assert [one for one in kept if one not in text] == []


def test_text_that_cannot_be_changed_in_place_is_written_anew_with_its_head():
    text = '# mine\ntraining.steps = 5\ntraining."seed" = 2\n'
    values = {"name": "a", "training": {"steps": 6, "seed": 2, "batch_size": 1}}
    changed = rewritten(text, values)
    assert tomllib.loads(changed) == values and changed.startswith("# mine\n")


def test_only_what_differs_from_the_default_is_written():
    draft = draft_of({"name": "a", "base.model": "pocket", "data.images": "x"}, Path())
    draft.set("training.steps", "1000")
    draft.set("objective.snr_gamma", "5")
    draft.set("data.flip", "0.0")
    assert "training" not in draft.text and "objective" not in draft.text and "flip" not in draft.text
    draft.set("training.steps", "999")
    assert draft.changed == {"name", "base.model", "data.images", "training.steps"}
    assert (draft.entry("adapter.rank"), draft.shown("adapter.rank")) == (None, "16")


ASKED = {
    "training.steps": "many",
    "adapter.rank": "0",
    "tokens": [{"token": "A B", "start": "x"}],
    "name": "a/b",
    "evaluate.choose": "true",
    "objective.loss_delta": "2",
    "data.background": "<script>",
    "training.optimizer_options": "betas = [",
}


def test_each_fault_stands_at_its_field_in_the_command_lines_words():
    draft = RecipeDraft((PRESET_FOLDER / "pocket_style.toml").read_text("utf-8"), PRESET_FOLDER)
    for option, entry in ASKED.items():
        draft.set(option, entry)
    found = {fault.option: fault for fault in draft.faults}
    assert found.keys() == ASKED.keys()
    assert (found["tokens"].row, found["tokens"].column) == (0, "token")
    with pytest.raises(RecipeError) as error:
        recipe_from(draft.values, folder=PRESET_FOLDER)
    said = str(error.value)
    assert all(fault.sentence in said for fault in found.values())
    assert said.count("\n") == len(ASKED)


@pytest.mark.parametrize("asked, option", [("", "name"), ("name = 'a'\n[base]\nmodel='x'", "data.images")])
def test_what_is_missing_is_said_at_the_field_that_lacks_it(asked, option):
    assert option in {fault.option for fault in RecipeDraft(asked, Path()).faults}


def test_an_unknown_key_and_text_that_is_no_toml_are_said_above_the_form(tmp_path):
    draft = RecipeDraft("name = 'a'\nsteps = 5\n", tmp_path)
    assert any(fault.option == "" and "training.steps" in fault.sentence for fault in draft.faults)
    draft.set_text("name = 'a'\nsteps = [")
    (fault,) = draft.faults
    assert fault.option == "" and "not valid TOML" in fault.sentence
    with pytest.raises(RecipeError, match="Mend the text first"):
        draft.set("name", "b")
    assert draft.text == "name = 'a'\nsteps = ["


@pytest.mark.parametrize(
    "text", ["[" * 9000, "a." * 500 + "b = 1", "a = " + "9" * 9000, "\0", "a = '\ud800'"]
)
def test_hostile_text_ends_in_a_sentence(text, tmp_path):
    draft = RecipeDraft(text, tmp_path)
    assert draft.faults and all(fault.sentence for fault in draft.faults)


def test_old_names_of_options_are_shown_under_the_new_ones(tmp_path):
    draft = RecipeDraft("[preview]\nevery = 5\n", tmp_path)
    assert draft.entry("samples.every") == "5"
    draft.set("samples.seed", "7")
    assert tomllib.loads(draft.text) == {"samples": {"every": 5, "seed": 7}}


def test_search_finds_options_by_words_help_and_other_trainers_names():
    assert search("learning rate")[0].option == "training.learning_rate"
    assert search("network_dim")[0].option == "adapter.rank"
    assert "data.flip" in {one.option for one in search("mirrored")}
    assert search("no option is called so") == []
    assert len(search("")) == len(form_fields())


def test_every_table_is_in_the_form():
    assert {table.name for table in form_tables()} >= {"", "training", "data.regularization_images"}
