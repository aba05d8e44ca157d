"""What the command line says of itself: groups, a first run, values, completion, the reference page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from console import run
from lora_files import write_random_lora
from tiny import image_folder, recipe_text
from typer.testing import CliRunner
from write_reference import cli_page

from lora_studio import cli

ROOT = Path(__file__).parent.parent.parent
VERBS = [verb.__name__.replace("_", "-") for verbs in cli.GROUPS.values() for verb in verbs]


def help_of(*words: str) -> str:
    shown = CliRunner().invoke(cli.app, [*words, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.output)


def test_help_lists_every_verb_under_its_group() -> None:
    panels = {}
    for line in help_of().splitlines():
        if match := re.match(r"╭─ ([\w ]+?) ─", line):
            panels[match[1]] = inside = []
        elif match := re.match(r"│ ([a-z][a-z-]*)  ", line):
            inside.append(match[1])
    assert panels["Start here"] == ["start", "web", "init", "doctor", "assess", "plan", "train", "demo"]
    assert panels["Dataset"] == ["caption", "captions", "buckets", "regularization-images", "cache"]
    results = ["evaluate", "choose", "sample", "verify", "export", "metadata", "sidecars", "push"]
    assert panels["Results"] == results
    assert panels["Many runs"] == ["sweep", "queue", "runs"]
    assert {"inspect", "convert", "combine", "merge-into"} <= set(panels["LoRA files"])
    assert panels["Machine"] == ["env", "schema"]
    assert set(panels) == {"Options", *cli.GROUPS} and "class-images" not in help_of()


def test_without_a_verb_the_five_commands_of_a_first_run_are_shown(capsys) -> None:
    code, out, _ = run([], capsys)
    shown = re.findall(r"^  lora-studio (\w+) .*", out, re.MULTILINE)
    assert code == 0 and shown == ["start", "doctor", "plan", "train", "demo"]
    assert len(out.splitlines()) < 12 and max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("verb", ["", *VERBS, "cache prune"])
def test_help_names_values_for_people(verb: str) -> None:
    assert not re.search(r"<(bool|str|int|float|path|list)\b", help_of(*verb.split()))


def test_options_of_one_name_are_explained_alike() -> None:
    help_texts = {verb: help_of(verb) for verb in VERBS}
    for option in ("--json", "--force", "--resume", "--recursive"):
        told = {
            re.search(rf"{option} +(.*?) *│", text)[1] for text in help_texts.values() if f"{option} " in text
        }
        assert len(told) == 1, told


def test_shell_completion_can_be_installed_and_completes_verbs() -> None:
    assert "--install-completion" in help_of() and "--show-completion" in help_of()
    asked = {"_LORA_STUDIO_COMPLETE": "complete_bash", "COMP_WORDS": "lora-studio do", "COMP_CWORD": "1"}
    shown = CliRunner().invoke(cli.app, [], env=asked, prog_name="lora-studio")
    assert shown.output.split() == ["doctor"]


def test_the_old_name_of_regularization_images_works_with_a_notice(tmp_path: Path, capsys) -> None:
    (tmp_path / "recipe.toml").write_text(recipe_text(tmp_path, "pocket"), "utf-8")
    code, _, err = run(["class-images", str(tmp_path / "recipe.toml")], capsys)
    assert "note: class-images is now regularization-images; the old name works in this version" in err
    assert code == 2 and "data.regularization_images.count is 0" in err


def test_the_reference_page_is_fresh() -> None:
    page = ROOT / "docs" / "reference" / "cli.md"
    assert page.read_text("utf-8") == cli_page(), f"python docs/write_reference.py cli > {page}"


def test_the_reference_page_names_every_verb_option_and_default() -> None:
    page = cli_page()
    for verb in [*VERBS, "cache", "cache prune"]:
        section = page.split(f"\n### {verb}\n")[1].split("\n### ")[0]
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", help_of(*verb.split())))
        assert all(f"{option}" in section for option in options - {"--help"}), verb
    assert "| `--dtype DTYPE` | float16 |" in page and "class-images" not in page


HEADER_ONLY = """
import sys
from lora_studio import cli
try:
    cli.guarded(lambda: cli.app(sys.argv[1:]))
except SystemExit as exit_:
    assert exit_.code in (0, None), exit_.code
print("loaded:", sorted({"torch", "diffusers", "transformers", "peft", "matplotlib"} & set(sys.modules)))
"""


def loaded_by(*words: str | Path) -> str:
    """The heavy libraries that a command imports, as the last line that it prints."""
    asked = subprocess.run(
        [sys.executable, "-c", HEADER_ONLY, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stdout + asked.stderr
    return asked.stdout.splitlines()[-1]


@pytest.mark.parametrize("words", [(), ("--help",), ("train", "--help"), ("init", "--list")])
def test_help_imports_no_heavy_library(words: tuple[str, ...]) -> None:
    assert loaded_by(*words) == "loaded: []"


@pytest.mark.parametrize("verb", ["inspect", "metadata", "verify"])
def test_a_file_is_looked_at_without_torch(verb: str, tmp_path: Path) -> None:
    write_random_lora(tmp_path / "a.safetensors", seed=0)
    assert loaded_by(verb, tmp_path / "a.safetensors") == "loaded: []"


def test_the_doctor_examines_a_folder_without_torch(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", count=3)
    assert loaded_by("doctor", tmp_path / "images", "--resolution", "64") == "loaded: []"
