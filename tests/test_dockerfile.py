"""The Dockerfile agrees with the repository. It is read, not built: the tests need no docker engine."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) in order; comments are left out and continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def _all(instructions, name):
    return [arguments for instruction, arguments in instructions if instruction == name]


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_base_is_a_cuda_runtime(instructions):
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-runtime-ubuntu\d\d\.\d\d", _all(instructions, "FROM")[0])


def test_every_pip_install_uses_the_pins(instructions):
    installs = [
        part for run in _all(instructions, "RUN") for part in run.split("&&") if "pip install" in part
    ]
    assert len(installs) == 2
    assert all("-c constraints.txt" in install for install in installs)


def test_it_runs_as_a_user_that_it_makes_and_that_owns_the_volume(instructions):
    (user,) = _all(instructions, "USER")
    assert user not in {"root", "0"}
    assert any(re.search(rf"useradd .*\b{user}\b", run) for run in _all(instructions, "RUN"))
    assert any(re.search(rf"chown {user}:{user} .*\bruns\b", run) for run in _all(instructions, "RUN"))
    assert _all(instructions, "VOLUME") == ['["/app/runs"]']
    names = [name for name, _ in instructions]
    assert names.index("USER") < names.index("ENTRYPOINT")


def test_it_starts_the_command_that_the_project_installs(instructions):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert _all(instructions, "ENTRYPOINT") == [f'["{next(iter(scripts))}"]']


def test_what_it_copies_exists_and_is_in_the_build_context(instructions):
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for copy in _all(instructions, "COPY") for source in copy.split()[:-1]}
    assert copied == allowed
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_torch_is_the_same_version_everywhere(instructions):
    pinned = f"torch=={_pins()['torch']}"
    makefile = re.search(r"^TORCH \?= (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert f"TORCH={pinned}" in _all(instructions, "ARG")
    assert makefile and makefile[1] == pinned


def test_every_direct_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.match(r"[\w-]+", requirement)[0].replace("_", "-") for requirement in direct}
    assert names - {name.lower().replace("_", "-") for name in _pins()} == set()
