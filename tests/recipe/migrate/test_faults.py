"""What is wrong with another trainer's files is one sentence; paths of other machines; whose file it is."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from console import run
from migrations import EXAMPLES, NAMES

from lora_studio.errors import RecipeError
from lora_studio.recipe.migrate import MigrationInputs, migrate
from lora_studio.recipe.migrate.folders import Places, is_hub_id, last_name, steps_of, views_in
from lora_studio.recipe.migrate.reading import TrainingCommand, command_in, read_settings

SD = 'pretrained_model_name_or_path = "pocket"\nnetwork_module = "networks.lora"\n'


def fault(path: Path, text: str, images: Path | None = None, **inputs: str) -> str:
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        migrate([path], MigrationInputs(images=images, **inputs), folder=path.parent)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "a.json",
            '{"pretrained_model_name_or_path": "x", "learning_rate": 1}',
            "may be of kohya_ss or simpletuner",
        ),
        ("a.json", '{"colour": 1}', "is of no trainer that is known here"),
        ("a.json", '{"a": ', "is not valid JSON"),
        ("a.toml", "a = [", "is not valid TOML"),
        ("a.toml", "", "is empty"),
        ("a.toml", '[base]\nmodel = "pocket"\n[data]\nimages = "i"\n', "is a recipe already"),
        ("a.toml", SD + 'network_dim = "many"', "network_dim in a.toml is 'many'; it must be a number"),
        ("a.toml", SD + "network_dim = 4.5", "network_dim in a.toml is 4.5; it must be a whole number"),
        ("a.toml", SD + 'network_args = ["conv_dim"]', "network_args has 'conv_dim', which is not key=value"),
        (
            "a.toml",
            SD + 'shuffle_caption = "perhaps"',
            "shuffle_caption is 'perhaps'; it must be true or false",
        ),
        ("a.toml", SD + "learning_rate = 5.0", "training.learning_rate is 5.0"),
        ("a.toml", SD + 'dataset_config = "gone.toml"', "names the dataset configuration gone.toml"),
        ("a.toml", 'network_module = "networks.lora"', "the settings name no base model; give --base"),
        ("a.sh", "accelerate launch train_db.py --x 1", "calls train_db.py, which is not known here"),
        ("a.sh", "python train_network.py --a 'b", "cannot be read (No closing quotation)"),
        ("a.sh", "train_network.py --a 1\ntrain_network.py --a 2", "has 2 training commands"),
        ("a.sh", "echo hello there", "is neither TOML, JSON, YAML nor a script"),
        ("a.yaml", "job: x\nconfig: {process: [{type: a}, {type: b}]}", "has 2 processes; keep one"),
        (
            "a.yaml",
            "job: x\nconfig: {process: [{type: extract}]}",
            "trains nothing: its process is 'extract'",
        ),
        ("a.json", '[{"path": "x"}]', "says what is trained on, not how"),
    ],
)
def test_a_fault_is_one_sentence(name: str, text: str, said: str, tmp_path: Path, images: Path) -> None:
    message = fault(tmp_path / name, text, images)
    assert said in message
    assert "\n" not in message or "fault(s)" in message


JUNK = (
    None,
    True,
    0,
    -1,
    1e9,
    "",
    "x",
    "nan",
    [],
    [1],
    ["a"],
    {},
    {"a": 1},
    "a\nb\x1b[31m",
    10**30,
    [[1]],
    "0,0",
)
TRAINERS = {"sd": "sd-scripts", "kohya": "kohya_ss", "ai": "ai-toolkit"}


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from places_in(inner, (*path, key))


@pytest.mark.parametrize("name", [one for one in NAMES if not one.endswith((".sh", ".bat"))])
def test_whatever_stands_there_becomes_a_recipe_or_a_sentence(
    name: str, tmp_path: Path, images: Path
) -> None:
    whole = read_settings(EXAMPLES / name)
    kind = name.split("_")[0]
    draw = random.Random(name)
    for _ in range(20):
        settings = copy.deepcopy(whole)
        *way, last = draw.choice(list(places_in(settings)))
        table: Any = settings
        for key in way:
            table = table[key]
        table[last] = copy.deepcopy(draw.choice(JUNK))
        path = tmp_path / "a.json"
        path.write_text(json.dumps(settings))
        inputs = MigrationInputs(images=images, base="pocket", trainer=TRAINERS.get(kind, kind))
        with suppress(RecipeError):
            assert "\x1b" not in migrate([path], inputs, folder=tmp_path).text


def test_folders_that_are_nowhere_are_asked_for(tmp_path: Path) -> None:
    said = fault(tmp_path / "a.toml", SD + 'train_data_dir = "gone"')
    assert said == "there is no gone on this machine; give --images the folder of your images."
    wanted = "there is no folder nowhere; give --images a folder of images."
    assert fault(tmp_path / "a.toml", SD, Path("nowhere")) == wanted


def test_yaml_neither_runs_nor_grows(tmp_path: Path, images: Path) -> None:
    attack = "job: x\nconfig: !!python/object/apply:os.system ['touch made']\n"
    assert "is neither TOML, JSON, YAML" in fault(tmp_path / "a.yaml", attack, images)
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert "more than 50,000 values" in fault(tmp_path / "a.yaml", "\n".join(lines), images)
    assert "deep" in fault(tmp_path / "a.json", "[" * 40 + "]" * 40, images)
    assert "deep" in fault(tmp_path / "a.json", "[" * 100_000 + "]" * 100_000, images)
    assert not (tmp_path / "made").exists()


def test_which_trainer_it_is_can_be_said(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"pretrained_model_name_or_path": "pocket", "learning_rate": 1e-4}')
    made = migrate([path], MigrationInputs(images=images, trainer="simpletuner"), folder=tmp_path)
    assert made.trainer == "simpletuner"
    assert "it must be one of sd-scripts" in fault(path, path.read_text(), images, trainer="kohya")


def test_a_command_is_read_as_its_shell_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS_HERE", "/m")
    text = "# train_network.py --not this\nexport RANK=8\nA='two words'\n"
    text += "accelerate launch --num_processes 2 ./train_network.py --network_dim=$RANK \\\n"
    text += '  --output_name "$A" --vae ${MODELS_HERE}/v --x $NOT_SET --flag --network_args a=1 b=-2\n'
    found = command_in(text, "x")
    assert isinstance(found, TrainingCommand)
    assert (found.script, found.launcher, found.unset) == (
        "train_network.py",
        {"num_processes": "2"},
        ("NOT_SET",),
    )
    assert found.arguments == {
        "network_dim": "8",
        "output_name": "two words",
        "vae": "/m/v",
        "x": "$NOT_SET",
        "flag": True,
        "network_args": ["a=1", "b=-2"],
    }


def test_windows_paths_keep_their_backslashes() -> None:
    command = read_settings(EXAMPLES / "sd_scripts_flux.bat")
    assert isinstance(command, TrainingCommand)
    assert command.arguments["ae"] == r"E:\models\flux\ae.safetensors"
    command = read_settings(EXAMPLES / "diffusers_dreambooth_flux.sh")  # PowerShell, by its line ends
    assert isinstance(command, TrainingCommand) and command.arguments["instance_data_dir"] == r"C:\data\dog"


def test_paths_are_found_beside_the_settings_at_home_and_by_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "train" / "img"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TRAIN_HERE", str(tmp_path / "train"))
    places = Places(tmp_path, tmp_path)
    for said in (
        "train/img",
        r".\train\img",
        "~/train/img",
        "$TRAIN_HERE/img",
        "%TRAIN_HERE%/img",
        str(folder),
    ):
        assert places.find(said) == folder.resolve(), said
    assert places.find(r"C:\train\img") is None and places.find("") is None
    assert places.written(folder) == "train/img"
    assert [is_hub_id(one) for one in ("a/b", "a/b.safetensors", "./a", r"C:\a", "a/b/c")] == [True] + [
        False
    ] * 4
    assert last_name("C:\\a\\b\\") == "b" and last_name("/a/b/") == "b"


def test_folders_in_kohyas_layout_are_counted_with_their_repeats(tmp_path: Path) -> None:
    for name, count in (("10_dog", 3), ("2_cat", 2), ("other", 5)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.jpg").touch()
    (tmp_path / "a.png").touch()
    assert views_in(tmp_path) == 10 * 3 + 2 * 2 + 1
    assert views_in(tmp_path, recursive=True) == 3 + 2 + 5 + 1
    assert [steps_of(7, 2, 1), steps_of(7, 2, 3), steps_of(0, 2, 1)] == [4, 2, 0]


def test_the_verb_writes_recipe_and_schema_and_prints_the_table(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(EXAMPLES / "diffusers_dreambooth.sh"), tmp_path / "mine.toml"
    asked = ["init", "--from", source, "--images", str(images), "--trigger", "sks dog", "-o", str(out)]
    code, printed, _ = run(asked, capsys)
    assert code == 0
    assert "taken over with another meaning" in printed and "lora-studio train" in printed
    assert out.read_text("utf-8").startswith("#:schema ./lora-studio.schema.json\n# Taken over from")
    assert (tmp_path / "lora-studio.schema.json").is_file()
    assert 'trigger = "sks dog"' in out.read_text("utf-8")
    code, _, said = run(asked, capsys)
    assert code == 2 and "is there already" in said
    code, _, said = run(["init", "sd15_style", *asked[1:]], capsys)
    assert code == 2 and "takes a preset or --from, not both" in said


def test_a_file_of_the_schemas_name_that_is_anothers_stays(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = tmp_path / "lora-studio.schema.json", tmp_path / "r.toml"
    other.write_text("mine")
    source = str(EXAMPLES / "diffusers_dreambooth.sh")
    assert run(["init", "--from", source, "--images", str(images), "-o", str(out)], capsys)[0] == 0
    assert other.read_text() == "mine"
    assert "#:schema" not in out.read_text("utf-8")
