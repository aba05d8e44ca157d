"""Recipes: every fault at once, in words that help."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_studio.errors import RecipeError
from lora_studio.recipe import Recipe, changes
from lora_studio.recipe.data import SourceConfig
from lora_studio.recipe.load import changed, load_recipe

RULES = (("*", "false"), ("*attn2*", "true"))
GOOD = 'name = "a"\n[base]\nmodel = "pocket"\n[data]\nimages = "images"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_relative_image_folder_is_taken_from_the_recipes_own_folder(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, GOOD)).data.images == tmp_path / "images"


@pytest.mark.parametrize("key", ["images", "masks", "exclude"])
def test_an_empty_path_is_refused_and_means_no_folder_one_happens_to_be_in(tmp_path: Path, key: str) -> None:
    """Users' pain 15: an empty setting let a trainer search its working folder."""
    text = GOOD.replace('images = "images"', "") + f'{key} = " "\n'
    with pytest.raises(RecipeError, match=rf"data\.{key} is ' ': name a folder or a file"):
        load_recipe(written(tmp_path, text))


def test_an_unknown_key_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"training\.lerning_rate; did you mean 'learning_rate'\?"):
        load_recipe(written(tmp_path, GOOD + "[training]\nlerning_rate = 1e-4\n"))


def test_an_unknown_table_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'training'"):
        load_recipe(written(tmp_path, GOOD + "[trainin]\nsteps = 3\n"))


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    text = GOOD + "[adapter]\nrank = 0\n[training]\nsteps = -1\nfoo = 1\n"
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, text))
    message = str(caught.value)
    assert "3 fault(s)" in message
    assert all(part in message for part in ("adapter.rank is 0", "training.steps is -1", "training.foo"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[training]\ntext_encoder_learning_rate = 1e-4\n",
            "training.text_encoder_learning_rate; .*text_encoder = true",
        ),
        (
            '[adapter]\nkind = "none"\n[[tokens]]\ntoken = "vkq"\nstart = "dog"\n'
            "[training]\nlearning_rate = 1e-3\n",
            "training.learning_rate; .*tokens.* has its own",
        ),
    ],
)
def test_a_learning_rate_that_nothing_is_trained_with_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(RecipeError, match=f"nothing is trained with {words}"):
        load_recipe(written(tmp_path, GOOD + text))


def test_layers_can_be_frozen_and_some_of_them_trained_again(tmp_path: Path) -> None:
    rules = (f'[[adapter.layers]]\npattern = "{name}"\ntrain = {train}\n' for name, train in RULES)
    recipe = load_recipe(written(tmp_path, GOOD + "".join(rules)))
    assert [one.train for one in recipe.adapter.layers] == [False, True]


def test_a_missing_required_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data is missing"):
        load_recipe(written(tmp_path, 'name = "a"\n[base]\nmodel = "pocket"\n'))


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ("training.steps=7", lambda r: r.training.steps == 7),
        ("adapter.text_encoder=true", lambda r: r.adapter.text_encoder is True),
        ("data.flip=true", lambda r: r.data.flip == 0.5),
        ("data.flip=false", lambda r: r.data.flip == 0.0),
        ("data.flip=0.25", lambda r: r.data.flip == 0.25),
        ("data.extra_resolutions=[768, 1024]", lambda r: r.data.all_resolutions == (512, 768, 1024)),
        ("data.trigger=two words", lambda r: r.data.trigger == "two words"),
        ('data.trigger="quoted"', lambda r: r.data.trigger == "quoted"),
    ],
)
def test_set_changes_one_value(tmp_path: Path, change: str, read) -> None:  # type: ignore[no-untyped-def]
    assert read(load_recipe(written(tmp_path, GOOD), changes=(change,)))


@pytest.mark.parametrize("change", ["training.steps", "=3", "name.deeper=1"])
def test_a_change_that_is_not_key_value_is_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(written(tmp_path, GOOD), changes=(change,))


def test_a_missing_recipe_and_broken_toml_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no recipe at"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(written(tmp_path, "name = "))


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 65])
def test_a_name_that_could_not_be_a_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="name is"):
        load_recipe(written(tmp_path, GOOD.replace('"a"', f'"{name}"')))


def test_differences_name_the_option_and_both_values(tmp_path: Path) -> None:
    old = load_recipe(written(tmp_path, GOOD))
    new = load_recipe(tmp_path / "recipe.toml", changes=("training.steps=7",))
    assert [str(one) for one in changes(old, new)] == ["training.steps: 1000 -> 7"]
    assert changes(old, old) == []


def test_every_option_is_documented_or_speaks_for_itself() -> None:
    plain = {"steps", "batch_size", "optimizer", "weight_decay", "max_grad_norm", "seed", "kind", "guidance"}
    plain |= {"prompts", "negative_prompt", "text_encoder_learning_rate", "warmup_steps"}
    for section in Recipe.model_fields.values():
        fields = getattr(section.annotation, "model_fields", {})
        undocumented = {name for name, field in fields.items() if not field.description} - plain
        assert not undocumented


SOURCES = """name = "a"
[base]
model = "pocket"
[data]
trigger = "zwx style"
[[data.sources]]
images = "style"
repeats = 2
[[data.sources]]
images = "faces"
role = "prior"
masks = "masks"
"""


def test_several_sources_are_read_with_paths_from_the_recipes_own_folder(tmp_path: Path) -> None:
    style, faces = load_recipe(written(tmp_path, SOURCES)).data.all_sources
    assert (style.images, style.repeats, style.role) == (tmp_path / "style", 2, "instance")
    assert (faces.images, faces.masks, faces.role) == (tmp_path / "faces", tmp_path / "masks", "prior")


def test_a_folder_alone_is_one_source(tmp_path: Path) -> None:
    (source,) = load_recipe(written(tmp_path, GOOD + 'masks = "m"\n')).data.all_sources
    assert (source.images, source.masks) == (tmp_path / "images", tmp_path / "m")
    assert (source.role, source.weight) == ("instance", 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            SOURCES.replace("repeats", "repaets"),
            r"data\.sources\[0\]\.repaets; did you mean 'repeats'",
        ),
        (SOURCES.replace('"prior"', '"priors"'), r"data\.sources\[1\]\.role is 'priors'.*'validation'"),
        (GOOD.replace('images = "images"', '[data.sources]\nimages = "x"'), r"write \[\[data\.sources\]\]"),
        (SOURCES + "weight = 0", r"data\.sources\[1\]\.weight is 0"),
        (SOURCES.replace("trigger =", 'images = "x"\ntrigger ='), "both there; keep one of them"),
        (SOURCES.replace("trigger =", 'masks = "x"\ntrigger ='), "set masks in a table of data.sources"),
        (
            SOURCES.replace("repeats = 2", 'role = "validation"'),
            "nothing to train on; give one of them",
        ),
        (GOOD.replace('images = "images"', ""), r"data\.images is missing; set it to a folder"),
        (GOOD + 'background = "whit"', r"data\.background is 'whit'"),
        (GOOD + "flip = 2", r"data\.flip is 2: .*less than or equal to 1"),
        (GOOD + "max_upscale = 0.5", r"data\.max_upscale is 0\.5: .*greater than or equal to 1"),
        (GOOD + 'crop = "center"', r"data\.crop is 'center': .*'centre'"),
        (GOOD + "extra_resolutions = [8]", r"data\.extra_resolutions\[0\] is 8"),
    ],
)
def test_what_cannot_be_meant_in_data_is_refused_with_advice(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(written(tmp_path, text))


def test_a_recipe_of_several_sources_survives_being_written(tmp_path: Path) -> None:
    import tomli_w

    recipe = load_recipe(written(tmp_path, SOURCES))
    again = written(tmp_path, tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    assert load_recipe(again) == recipe and changes(load_recipe(again), recipe) == []


def test_every_option_of_a_source_is_documented() -> None:
    assert all(field.description for field in SourceConfig.model_fields.values())


def test_values_can_be_set_from_python_by_key_and_by_section(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        'name = "r"\n[base]\nmodel = "pocket"\n[data]\nimages = "i"\n[training]\nepochs = 3\n', "utf-8"
    )
    given = {"training": {"steps": 7, "learning_rate": 1e-3}, "data.images": tmp_path / "other", "name": "s"}
    recipe = load_recipe(str(path), set=given)
    assert (recipe.name, recipe.training.steps, recipe.training.epochs) == ("s", 7, None)
    assert recipe.training.learning_rate == 1e-3 and recipe.data.images == tmp_path / "other"
    assert changed(load_recipe(path), given) == recipe and changed(recipe, {}) == recipe
    with pytest.raises(RecipeError, match=r"unknown key training.stepz; did you mean 'steps'"):
        changed(recipe, {"training.stepz": 1})
