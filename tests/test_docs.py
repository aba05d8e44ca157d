"""README, CONTRIBUTING and docs/ are true: commands run, links resolve, recipes load, Python runs.

A block fenced as `sh` is run line by line, each page in a folder of its own that holds what its commands
are about; one fenced as `console` is for a GPU, the hub or hours, so only its verbs and options are checked.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click
import pytest
import torch
import typer
from original_layout import random_original
from safetensors.torch import save_file
from tiny import recipe_text
from typer.core import TyperGroup
from typer.testing import CliRunner

import lora_studio
from lora_studio import cli
from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.layer import AdapterKind
from lora_studio.data.captioners import CAPTION_WRITERS
from lora_studio.export import EXPORTERS
from lora_studio.families.loading import load_base
from lora_studio.quantization import QUANTIZERS
from lora_studio.recipe import Recipe, options
from lora_studio.recipe.adapter import NO_ADAPTER
from lora_studio.recipe.load import load_recipe, names_elsewhere, recipe_from
from lora_studio.recipe.presets import preset_names
from lora_studio.recipe.renamed import RENAMED
from lora_studio.tools import METHODS
from lora_studio.training.finish import Finished
from lora_studio.training.optimizers import OPTIMIZERS
from lora_studio.training.prepare.checks import name_faults
from lora_studio.training.prepare.dataset import read_dataset
from lora_studio.training.session import train

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
BY_HAND = {name: text for name, text in PAGES.items() if "/reference/" not in name}
OPTIONS_OF_PYTHON = (  # which `help` tells of
    *("DoctorOptions", "EvaluationRequest", "SampleRequest", "Wording", "WriterOptions"),
)
LONG = {  # verb -> pages whose own test leaves it out: it takes seconds, and runs for another page or is slow
    "env": {"docs/getting-started.md", "docs/memory.md"},
    "train": {"docs/getting-started.md", "docs/train.md"},
    "plan": {"docs/getting-started.md", "docs/train.md", "README.md"},
}


class Block(NamedTuple):
    """A fenced block."""

    page: str
    language: str
    text: str


def blocks(*languages: str) -> list[Block]:
    """Of all pages that are written by hand."""
    found = [
        Block(page, language, text)
        for page, whole in BY_HAND.items()
        for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", whole, re.DOTALL | re.MULTILINE)
    ]
    return [block for block in found if block.language in languages]


def commands(block: Block) -> list[list[str]]:
    """The words of each command."""
    text = block.text.replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


# ---- commands


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' commands are about: images, a base in a file, a finished run, two LoRA files."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "sample_images", folder / "sample_images")
    (folder / "recipes").mkdir()
    small = (ROOT / "recipes" / "pocket_style.toml").read_text("utf-8")
    (folder / "recipes" / "pocket_style.toml").write_text(made_small(small), "utf-8")
    for name in ("my_images", "new_images"):
        (folder / name).mkdir()
    for path in sorted((ROOT / "sample_images" / "style_woodcut").iterdir())[:12]:
        if path.suffix == ".txt":
            caption = path.read_text("utf-8").replace("woodcut print in ink on paper", "zwx style")
            (folder / "my_images" / path.name).write_text(caption, "utf-8")
        else:
            shutil.copy(path, folder / "my_images")
            shutil.copy(path, folder / "new_images")
    parts = random_original("sdxl", vae_levels=5)[1]
    save_file({name: tensor.half() for name, tensor in parts.items()}, folder / "model.safetensors")
    (folder / "my_style.toml").write_text(MY_STYLE, "utf-8")
    (folder / "my_subject.toml").write_text(MY_SUBJECT, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert invoked("train my_style.toml") == 0
        (folder / "my_loras").mkdir()
        shutil.copy(folder / "runs/my_style/my_style.safetensors", folder / "style.safetensors")
        shutil.copy(folder / "style.safetensors", folder / "my_loras")
        assert invoked("export runs/my_style --checkpoint 2 --to kohya --out other") == 0
        shutil.move(folder / "other" / "my_style.safetensors", folder / "robot.safetensors")
    return folder


MY_STYLE = """
name = "my_style"
base.model = "pocket"
machine.device = "cpu"
export.dtype = "float32"
[data]
images = "my_images"
trigger = "zwx style"
resolution = 64
[training]
steps = 4
batch_size = 2
learning_rate = 1e-3
warmup_steps = 0
checkpoint_every = 2
"""
MY_SUBJECT = """
name = "my_subject"
base.model = "pocket"
machine.device = "cpu"
[data]
images = "sample_images/subject_bolt"
trigger = "vkq robot"
class_words = "robot"
resolution = 64
[data.regularization_images]
count = 2
steps = 1
"""


def made_small(recipe: str) -> str:
    """A recipe's text with numbers that a miniature trains with in seconds; its changes need all digits."""
    for key, value in {"resolution": "64", "batch_size": "2", "prompts": '["a fox"]'}.items():
        recipe = re.sub(rf"^{key} = (\[.*?^\]|[^\[\n]*)$", f"{key} = {value}", recipe, flags=re.M | re.S)
    recipe = re.sub(r"^(steps|warmup_steps|checkpoint_every|every) = .*$", "", recipe, flags=re.M)
    recipe = re.sub(r"^\[(training|samples)\].*$", r"[\1]\nsteps = 2", recipe, flags=re.M)
    return f'export.dtype = "float32"\n{recipe}'


def invoked(line: str | list[str]) -> int:
    """A command's exit code, in this process; a user's mistake is 2, as on the command line."""
    words = shlex.split(line) if isinstance(line, str) else line
    codes = []

    def run() -> None:
        result = CliRunner().invoke(cli.app, words, catch_exceptions=True)
        codes.append(result.exit_code)
        print(result.output)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception

    return cli.guarded(run) or codes[0]


def make_room(words: list[str]) -> None:
    """Take away what an earlier command has made and this one would refuse to write over."""
    if words[0] == "init" and "--name" in words:
        name = words[words.index("--name") + 1]
        Path(f"{name}.toml").unlink(missing_ok=True)
    elif words[0] == "train":
        shutil.rmtree(Path("runs") / Path(words[1]).stem, ignore_errors=True)


PAGES_WITH_COMMANDS = sorted({block.page for block in blocks("sh")})


def run_page(page: str, folder: Path, *, everything: bool) -> None:
    ran = 0
    for words in (words for block in blocks("sh") if block.page == page for words in commands(block)):
        assert words[0] == "lora-studio", f"{page}: fence {words[0]!r} as console"
        verb = words[1]
        of_a_long_one = any(word.startswith("runs/") and not Path(word).exists() for word in words)
        if not everything and (page in LONG.get(verb, ()) or of_a_long_one):
            continue
        make_room(words[1:])
        before = set(folder.glob("*.toml"))
        assert invoked(words[1:]) == 0, f"{page}: {shlex.join(words)}"
        ran += 1
        if verb == "init":
            for path in set(folder.glob("*.toml")) - before:
                load_recipe(path)
                path.write_text(made_small(path.read_text("utf-8")), "utf-8")
    assert ran


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS)
def test_every_command_of_a_page_runs(page, world, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(world, tmp_path / "here"))
    run_page(page, tmp_path / "here", everything=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS)
def test_every_command_of_a_page_runs_the_long_ones_too(page, world, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(world, tmp_path / "here"))
    run_page(page, tmp_path / "here", everything=True)


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    """Page and words of every command line, run or not, in blocks and in running text."""
    for block in blocks("sh", "console", "powershell"):
        for words in commands(block):
            for start in ("lora-studio", "lora_studio"):  # or python -m lora_studio
                if start in words:
                    yield block.page, words[words.index(start) + 1 :]
    for page, text in BY_HAND.items():
        for code in re.findall(r"`lora-studio ([^`]+)`", text):
            yield page, shlex.split(code)


def command_of(words: list[str]) -> click.Command:
    """The verb, or the verb of a group. Raises KeyError for one that is not there."""
    command: click.Command = typer.main.get_command(cli.app)
    for word in words:
        if not isinstance(command, TyperGroup) or word.startswith("-"):
            break
        found = command.get_command(click.Context(command), word)
        if found is None:
            raise KeyError(word)
        command = found
    return command


SHOWN = list(shown_commands())


@pytest.mark.parametrize(
    ("page", "words"), SHOWN, ids=[f"{page}: {shlex.join(words)}" for page, words in SHOWN]
)
def test_every_shown_verb_and_option_exists(page, words):
    known = {option for parameter in command_of(words).params for option in parameter.opts} | {"--help"}
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= known, page


def test_every_option_in_running_text_exists():
    app = typer.main.get_command(cli.app)
    context = click.Context(app)
    verbs = [app, *(app.get_command(context, name) for name in app.list_commands(context))]
    verbs += [below for group in verbs[1:] for below in getattr(group, "commands", {}).values()]
    known = {option for verb in verbs for parameter in verb.params for option in parameter.opts}
    elsewhere = {"--help", "--check", "--machine_rank", "--node-rank", "--no-deps", "--gpus"}  # others'
    for page, text in BY_HAND.items():
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`([^`]+)`", prose):
            scripts = [(ROOT / name).read_text("utf-8") for name in re.findall(r"python (\S+\.py)", code)]
            own = {option for script in scripts for option in re.findall(r'"(--[a-z][\w-]*)"', script)}
            shown = set(re.findall(r"(?<!\S)--[a-z][\w-]*", code))
            assert shown <= (own if scripts else known | elsewhere), f"{page}: {code}"


def test_every_shown_make_target_exists():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    shown = [words for block in blocks("console") for words in commands(block) if words[0] == "make"]
    targets = {words[1] for words in shown if len(words) > 1}
    assert {"demo", "test", "lint"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


# ---- links


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
    return plain.strip().replace(" ", "-")


def anchors(text: str) -> set[str]:
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", plain, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_anchor_resolves(page):
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", PAGES[page]):
        target = "".join(target)
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), f"{page} links to {target}"


def test_every_page_is_in_the_readmes_index():
    linked = set(re.findall(r"\]\((docs/[^)#]+)\)", PAGES["README.md"]))
    assert linked == {page for page in PAGES if page.startswith("docs/")}


def test_the_readme_and_contributing_are_short():
    assert PAGES["README.md"].count("\n") <= 150 and PAGES["CONTRIBUTING.md"].count("\n") <= 50


# ---- recipes and Python


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = merged(below[key], above[key])
    return both


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: block.page)
def test_every_recipe_snippet_loads(block, tmp_path):
    values = tomllib.loads(block.text)
    data = {} if "sources" in values.get("data", {}) else {"images": "my_images"}
    least = {"name": "snippet", "base": {"model": "pocket"}, "data": data}
    recipe = recipe_from(merged(least, values), folder=tmp_path)
    assert isinstance(recipe, Recipe)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("pocket_*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_load_and_their_data_is_complete(path):
    recipe = load_recipe(path)
    assert name_faults(recipe) == []
    manifest = read_dataset(recipe, load_base(recipe.base.model).stride)
    assert len(manifest.used) >= 8 and not manifest.excluded
    assert all(recipe.data.trigger in record.caption for record in manifest.used)
    assert recipe.name == path.stem
    assert len(path.read_text("utf-8").splitlines()) <= 45


KEYS = {option for option, _ in options()}
TABLES = set(Recipe.model_fields)


@pytest.mark.parametrize("page", sorted(BY_HAND.keys() - {"docs/migrate.md"}))
def test_every_key_of_a_recipe_that_is_named_exists(page):
    known = KEYS | {key.rpartition(".")[0] for key in KEYS}
    rows = {
        f"{name}.{key}" for name in ("tokens", "adapter.layers", "data.sources") for key in _row_keys(name)
    }
    for code in re.findall(r"`(\w+(?:\.\w+)+)(?: = [^`]*)?`", BY_HAND[page]):
        if code.split(".")[0] in TABLES and not re.search(r"\.(py|toml|jsonl?|png|md|safetensors)$", code):
            assert code in known | rows, f"{page}: {code}"


def rows_of(page: str) -> Iterator[list[str]]:
    """The cells of every row of a page's tables."""
    for line in PAGES[page].splitlines():
        if line.startswith("| ") and not line.startswith("|--"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_other_trainers_keys_are_translated_as_the_recipe_translates_them():
    told = 0
    for left, right, *_ in rows_of("docs/migrate.md"):
        for key in re.findall(r"`([a-z_]+)`", left):
            if here := names_elsewhere().get(key):
                told += 1
                assert here.rpartition(".")[2] in right, f"{key} is {here}, not {right}"
    assert told > 20


def test_renamed_options_are_all_listed():
    for old, new in RENAMED.items():
        row = [row for row in rows_of("docs/migrate.md") if old.rpartition(".")[2] in row[0]]
        assert any(new.rpartition(".")[2] in one[1] for one in row), old


def _row_keys(table: str) -> set[str]:
    """The keys of a table that may stand there several times."""
    model: Any = Recipe
    for name in table.split("."):
        annotation = model.model_fields[name].annotation
        model = annotation if isinstance(annotation, type) else annotation.__args__[0]
    return set(model.model_fields)


@pytest.mark.parametrize("page", BY_HAND)
def test_every_table_of_a_recipe_that_is_named_exists(page):
    """`[data]` and `[[tokens]]` in running text."""
    for code in re.findall(r"`\[{1,2}([a-z_.]+)\]{1,2}`", BY_HAND[page] if "migrate" not in page else ""):
        assert code.split(".")[0] in TABLES, f"{page}: [{code}]"


@pytest.fixture
def new_kind(monkeypatch: pytest.MonkeyPatch) -> AdapterKind:
    """The adapter kind of the developers' page, in the table as "sum"."""
    (block,) = (b for b in blocks("python") if b.page == "docs/developer/adding-an-adapter.md")
    module = ModuleType("new_adapter_kind")
    exec(compile(block.text, block.page, "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(ADAPTERS.entries, "sum", f"{module.__name__}:SUM")
    return ADAPTERS["sum"]


def test_the_snippet_of_a_new_adapter_is_one(new_kind):
    shape, draw = torch.Size([5, 4, 3, 3]), torch.Generator().manual_seed(0)
    tensors = new_kind.start(shape, 2, lambda name: draw, weight=None)
    assert not new_kind.change(tensors, 1.0).any()
    tensors = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in tensors.items()}
    factors = new_kind.factors(tensors, 0.5)
    assert factors and torch.allclose(
        factors.up @ factors.down, new_kind.change(tensors, 0.5).flatten(1), atol=1e-6
    )


def test_the_snippet_of_a_new_adapter_trains_and_its_file_is_verified(new_kind, tiny_base, images, tmp_path):
    text = recipe_text(images, str(tiny_base), extra='[export]\ndtype = "float32"')
    (tmp_path / "tiny.toml").write_text(text, "utf-8")
    recipe = load_recipe(tmp_path / "tiny.toml", changes=("adapter.kind=sum", "training.learning_rate=1e-2"))
    result = train(recipe, tmp_path / "run")
    assert isinstance(result, Finished) and result.report is not None and result.report.ok


def test_the_readmes_python_runs(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(shutil.copytree(world, tmp_path / "here"))
    (block,) = (b for b in blocks("python") if b.page == "README.md")
    exec(compile(block.text, block.page, "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert int(said[0]) > 1_000_000 and said[-1].endswith("runs/pocket_style/pocket_style.safetensors True")


@pytest.mark.slow  # half a minute; in small: tests/test_public_names.py
def test_the_page_about_python_runs_and_nothing_foreign_is_printed(world, tmp_path):
    """In a process of its own, where the libraries are as loud as they are by themselves."""
    folder = shutil.copytree(world, tmp_path / "here")
    (block,) = (b for b in blocks("python") if b.page == "docs/python.md")
    loud = {key: value for key, value in os.environ.items() if not key.endswith("_VERBOSITY")}
    call = [sys.executable, "-c", block.text]
    ran = subprocess.run(
        call, cwd=folder, env={**loud, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    said = ran.stdout.splitlines()
    assert "6 captions; images without one: []" in said and "[]" in said
    assert any(line.startswith("runs/two_steps/my_style.safetensors True ") for line in said)
    assert said[-3].startswith("diffusers (") and said[-3].endswith("True") and said[-1] == "compete"
    assert (folder / said[-2]).is_file()


TYPES = """
from typing import assert_type
assert_type(report, lora_studio.DoctorReport)
assert_type(recipe, lora_studio.Recipe)
assert_type(lora_studio.plan(recipe), lora_studio.RunPlan)
assert_type(result, lora_studio.Finished)
assert_type(written, lora_studio.CaptioningResult)
assert_type(made, lora_studio.Exported)
assert_type(lora_studio.verify("x").ok, bool)
assert_type(lora_studio.sample("x").sheet, str)
assert_type(lora_studio.compare("x", "y").cosine, float)
"""


@pytest.mark.slow  # half a minute
def test_the_page_about_python_is_typed(tmp_path):
    """As a stranger's mypy sees the installed package: without our settings, and silent about its inside."""
    (block,) = (b for b in blocks("python") if b.page == "docs/python.md")
    (tmp_path / "page.py").write_text(f"{block.text}{TYPES}", "utf-8")
    call = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "page.py"]
    here = {**os.environ, "MYPYPATH": str(ROOT)}
    ran = subprocess.run(call, cwd=tmp_path, env=here, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "Success: no issues found in 1 source file\n"), ran.stderr


def test_the_page_about_python_names_every_public_name() -> None:
    known = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]*`", PAGES["docs/python.md"]))))
    assert {*lora_studio.__all__} - known == {*OPTIONS_OF_PYTHON, "__version__"}


# ---- what is listed is all there is


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/getting-started.md", preset_names()),
        ("docs/export-and-verify.md", EXPORTERS.names()),
        ("docs/adapters.md", [*ADAPTERS.names(), NO_ADAPTER]),
        ("docs/captions.md", CAPTION_WRITERS.names()),
        ("docs/objective-and-optimizer.md", OPTIMIZERS.names()),
        ("docs/lora-tools.md", METHODS.names()),
        ("docs/memory.md", [name for name in QUANTIZERS.names() if name != "none"]),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_a_page_names_every_entry_of_its_table(page, names):
    assert names and [name for name in names if f"`{name}`" not in PAGES[page]] == []


def test_getting_started_names_everything_that_lies_in_a_run_folder(world):
    page = PAGES["docs/getting-started.md"]
    names = {path.name.replace("my_style", "<name>") for path in (world / "runs" / "my_style").iterdir()}
    assert len(names) > 8 and [name for name in names if f"`{name}" not in page] == []


WAY = re.findall(r"^\| (\d+) \| `([^`]+)` \|", PAGES["docs/developer/architecture.md"], re.MULTILINE)


def test_the_way_from_command_to_file_is_at_most_24_files_that_exist():
    assert [int(number) for number, _ in WAY] == list(range(1, len(WAY) + 1)) and 10 <= len(WAY) <= 24
    assert [path for _, path in WAY if not (ROOT / "lora_studio" / path).is_file()] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.startswith("docs/developer/")] + ["CONTRIBUTING.md"]
)
def test_every_file_that_a_developers_page_names_exists(page):
    for code in re.findall(r"`([\w/.]+(?:\.py|/))`", PAGES[page]):
        places = (ROOT, ROOT / "lora_studio", ROOT / "lora_studio/training", ROOT / "lora_studio/data")
        rooms = (
            *places,
            *(
                ROOT / "lora_studio" / room
                for room in ("families", "families/layer_names", "verify", "lora_file")
            ),
        )
        assert any((place / code).exists() for place in rooms), f"{page}: {code}"
