"""Run folders with one thing wrong in one file, from a seed, and what every reader makes of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from io import StringIO
from pathlib import Path

from tiny import image_folder, least_base, recipe_text
from trying import tried

from lora_studio.errors import Interrupted, StudioError
from lora_studio.metadata.provenance import check_provenance
from lora_studio.metadata.sidecars import sidecars_of, write_sidecars
from lora_studio.recipe.load import load_recipe
from lora_studio.tools.inspect import inspect_folder
from lora_studio.tools.push import uploads_of
from lora_studio.tools.sample import SampleRequest, sample
from lora_studio.training.events import Event
from lora_studio.training.finish.export import ExportRequest, export_run
from lora_studio.training.session import train
from lora_studio.verify import verify

STOP, STEPS = 3, 4
RECIPE = """
ema = 0.9
[validation]
count = 1
every = 2
[samples]
prompts = ["a red ball, zwx style"]
steps = 1
every = 2
[export]
sidecars = true
dtype = "float32"
"""
FOREIGN = ("notes.txt", "previews/mine.png", "checkpoints/mine.txt", "checkpoints/step_000002/mine.bin")
"""What a user may have put into a run's folder."""
GONE_BY = (
    "metrics.jsonl",
    "validation.jsonl",
    "validation.json",
    "validation.png",
)  # what was measured, and decides no weight
REWRITTEN = ("inputs.json", "lock.json", "doctor.json")  # with the same, and the folder's new place
OF_CLOCK = ("summary.json", "lock.json", "doctor.json", "loss.png")  # or drawn from measurements
JUNK = (b"", b"[]", b"{}", b"null", b"17", b'"x"', b"[" * 100_000, b'{"a":' * 50_000, b"\x89PNG\r\n\x1a\n")
JUNK += (
    b"\0" * 4096,
    b"1" * 5000,
    b'{"step": 1e999}',
    b"\xff\xfe{\0}\0",
    b"version https://git-lfs",
    b"PK\3\4",
)
VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**400,
    0.5,
    1e308,
    float("nan"),
    "",
    "x",
    "\x1b[2J",
    [],
    {},
    [[]],
)
HUGE = 6 * 10**9  # bytes, of which none is on the disk


def damage(path: Path, kind: str, draw: random.Random, other: Path) -> None:
    """One thing wrong with a file; `other`: the same file of another run."""
    content = path.read_bytes()
    if kind in CHANGES:
        changed = CHANGES[kind](content, draw)
        path.write_bytes(changed if changed != content else b"\xff" + content)
        return
    copied = path.with_name(f"{path.stem} (copy){path.suffix}")
    if kind == "doubled":
        shutil.copy(path, copied)
        return
    if kind == "of another run":
        shutil.copy(other, path)
        return
    path.rename(aside := path.with_name(f"{path.name}.aside"))
    if kind == "renamed":
        return
    aside.unlink()
    if kind == "a folder":
        path.mkdir()
        (path / "inside.txt").write_text("mine", "utf-8")
    elif kind == "a link in a loop":
        path.symlink_to(path.name)
    elif kind == "a link to nothing":
        path.symlink_to("nowhere")
    elif kind == "a link to zeros":
        path.symlink_to("/dev/zero")
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as one, _inside(path.parent):
            one.bind(path.name)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(HUGE)
    else:
        assert kind == "missing"


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """A socket's path may have a hundred letters."""
    before = Path.cwd()
    os.chdir(folder)
    yield
    os.chdir(before)


def _flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _with(what: bytes) -> Callable[[bytes, random.Random], bytes]:
    def changed(content: bytes, draw: random.Random) -> bytes:
        place = draw.randrange(len(content) + 1)
        return content[:place] + what + content[place:]

    return changed


def _lines(content: bytes, draw: random.Random) -> bytes:
    lines = content.split(b"\n")
    place = draw.randrange(len(lines))
    return b"\n".join(
        draw.choice(([*lines[:place], *lines[place + 1 :]], [*lines[: place + 1], *lines[place:]]))
    )


def _value(content: bytes, draw: random.Random) -> bytes:
    """Another value, or one value less, in one of the file's JSON tables; TOML and others get a line more."""
    lines = [content] if content.startswith(b"{\n") else content.split(b"\n")
    place = draw.randrange(len(lines))
    try:
        values = json.loads(lines[place])
        key = draw.choice([*values])
    except (ValueError, TypeError, IndexError):
        return _with(b"\nsteps = [[[" + b"9" * 20)(content, draw)
    if draw.random() < 0.2:
        del values[key]
    elif isinstance(values[key], int | float) and draw.random() < 0.5:
        values[key] += draw.choice((1, -1))
    else:
        values[key] = draw.choice(VALUES)
    lines[place] = json.dumps(values).encode()
    return b"\n".join(lines)


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut short": lambda content, draw: content[: draw.randrange(len(content) or 1)],
    "emptied": lambda content, draw: b"",
    "flipped bits": _flipped,
    "a byte more": _with(b"\xff"),
    "a control sequence": _with(b"\x1b[2J\x1b]0;mine\x07"),
    "a line more or less": _lines,
    "another value": _value,
    "twice itself": lambda content, draw: content * 2,
    "something else": lambda content, draw: draw.choice(JUNK),
    "random bytes": lambda content, draw: draw.randbytes(draw.choice((1, 100, 5000))),
}
KINDS = [*CHANGES, "doubled", "of another run", "renamed", "missing", "a folder", "a link in a loop"]
KINDS += ["a link to nothing", "a link to zeros", "a pipe", "a socket", "huge"]
WEIGHTS = [3 if kind in CHANGES else 1 for kind in KINDS]


@dataclass
class Runs:
    """A run that ended, one that was stopped, the same two with another seed, and the stopped one resumed."""

    home: Path
    names: dict[str, list[str]] = field(default_factory=dict)

    def make(self) -> Runs:
        """Train them."""
        image_folder(self.home / "images", count=3)
        base = least_base(self.home / "base")
        text = recipe_text(self.home / "images", str(base), steps=STEPS, extra=RECIPE)
        recipe = self.home / "tiny.toml"
        recipe.write_text(text.replace("resolution = 64", "resolution = 32"), "utf-8")
        for other in (False, True):
            loaded = load_recipe(recipe, changes=("training.seed=7",) if other else ())
            ended, stopped = (self.home / f"{name}{' of another' * other}" for name in ("ended", "stopped"))
            train(loaded, ended)
            export_run(ended, ExportRequest(("kohya",)))
            with suppress(Interrupted):
                train(loaded, stopped, on_event=_stop)
        for name in ("ended", "stopped"):
            paths = sorted((self.home / name).rglob("*"))
            self.names[name] = [str(one.relative_to(self.home / name)) for one in paths if one.is_file()]
            for one in FOREIGN:
                (self.home / name / one).write_text("mine", "utf-8")
        shutil.copytree(self.home / "stopped", self.home / "resumed")
        train(self.home / "resumed", resume=True)
        return self


def _stop(event: Event) -> None:
    if type(event).__name__ == "StepDone" and event.step == STOP:  # type: ignore[attr-defined]
        signal.raise_signal(signal.SIGINT)


def tree(folder: Path) -> dict[str, str]:
    """Every file's digest; of what is no file its kind."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        elif not path.is_file() or path.stat().st_size == HUGE:
            found[name] = f"{path.stat().st_mode}, {path.stat().st_size}"
        else:
            found[name] = sha256(path.read_bytes()).hexdigest()
    return found


def lines_of(path: Path) -> object:
    """What a file says without the clock and the folder's place."""
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    if path.name in ("inputs.json", "state.json") and path.is_file():
        values = json.loads(path.read_text("utf-8"))
        values.get("sha256", {}) and values.pop("sha256")
        return {key: value for key, value in values.items() if key not in ("run.folder", "validation")}
    return path.read_bytes() if path.is_file() else None


class Trial:
    """One fault, and every reader that is tried on it."""

    def __init__(self, runs: Runs, folder: Path, number: int, *, whole: bool) -> None:
        self.runs, self.folder, self.whole = runs, folder, whole
        draw = random.Random(number)
        self.which = draw.choice(("ended", "stopped", "stopped"))
        name, kind = draw.choice(runs.names[self.which]), draw.choices(KINDS, WEIGHTS)[0]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(runs.home / self.which, folder)
        damage(folder / name, kind, draw, runs.home / f"{self.which} of another" / name)
        self.name, self.label, self.draw = name, f"{number}: {name} is {kind}", draw

    def run(self, counts: dict[str, int], crashes: list[str]) -> None:
        """With every reader: those first that leave the folder as it is."""
        for name, reader in (ENDED if self.which == "ended" else STOPPED).items():
            if name in SLOW and not self.whole:
                continue
            before, said = tree(self.folder), StringIO()
            with (
                tried(f"{self.label}, {name}", counts, crashes, is_said=_is_said),
                limited(SECONDS),
                redirect_stdout(said),
                redirect_stderr(said),
            ):
                reader(self)
                counts["used"] += 1
            after = tree(self.folder)
            whole = {(Path(one).name, digest) for one, digest in after.items()}  # a folder may be set aside
            gone = [
                one for one in before if self.is_foreign(one) and (Path(one).name, before[one]) not in whole
            ]
            if name not in WRITES and after != before:
                gone += [one for one in {*before, *after} if before.get(one) != after.get(one)]
            crashes += [f"{self.label}, {name}: {one} is other or gone" for one in gone]

    def is_foreign(self, name: str) -> bool:
        return name in FOREIGN or "(copy)" in name or ".aside" in name or "inside.txt" in name

    @property
    def lora(self) -> Path:
        return self.folder / "tiny.safetensors"

    def anew(self) -> None:
        """Train over it."""
        train(load_recipe(self.runs.home / "tiny.toml"), self.folder)
        raise AssertionError("trained over a run")

    def resume(self) -> None:
        """To the same bytes; what else is not as it would be has to be said."""
        notes: list[str] = []
        before = tree(self.folder)
        try:
            train(self.folder, resume=True, on_event=lambda event: notes.append(getattr(event, "text", "")))
        except StudioError:
            after = tree(self.folder)
            changed = [one for one in before if before[one] != after.get(one) and one not in REWRITTEN]
            if changed:
                raise AssertionError(f"refused, but {changed} changed") from None
            raise
        whole, said = self.runs.home / "resumed", "\n".join(notes)
        for path in sorted(whole.rglob("*")):
            name = str(path.relative_to(whole))
            former = self.runs.home / "stopped" / name
            if not path.is_file() or path.name in OF_CLOCK or self.is_foreign(name):
                continue
            if name == "metrics.jsonl" and self.name == name:
                continue  # a log, by which nothing goes; how many of its steps are lost is said
            if former.is_file() and lines_of(former) == lines_of(path) and name not in GONE_BY:
                continue  # it is not touched
            is_said = name in GONE_BY and f"{path.stem}.jsonl" in said
            if not is_said and lines_of(path) != lines_of(self.folder / name):
                raise AssertionError(f"{name} is another, and all that was said is: {said}")

    def export(self) -> None:
        export_run(self.folder, ExportRequest(("kohya",), folder=self.folder.with_name("out"), force=True))

    def export_again(self) -> None:
        export_run(self.folder, ExportRequest(("kohya",), checkpoint="best", force=True))

    def sample(self) -> None:
        sample(self.folder, SampleRequest(steps=1, folder=self.folder.with_name("samples")))


def _is_said(text: str) -> bool:
    return len(text) < 3000 and "\x1b" not in text


ENDED: dict[str, Callable[[Trial], object]] = {
    "inspect": lambda trial: [json.dumps(one.to_json()) for one in inspect_folder(trial.folder)],
    "verify": lambda trial: json.dumps(verify(trial.lora).to_json()),
    "provenance": lambda trial: check_provenance(
        trial.runs.home / "ended" / "tiny.safetensors", [trial.folder]
    ),
    "uploads": lambda trial: [one.num_bytes for one in uploads_of(trial.folder)],
    "cards": lambda trial: sidecars_of(trial.folder),
    "train": Trial.anew,
    "sample": Trial.sample,
    "sidecars": lambda trial: write_sidecars(trial.folder, overwrite=True),
    "export": Trial.export_again,
}
STOPPED: dict[str, Callable[[Trial], object]] = {
    "train": Trial.anew,
    "export": Trial.export,
    "resume": Trial.resume,
}
SLOW = ("sample", "export", "resume")
WRITES = ("sidecars", "export", "resume")
SECONDS = 60  # of one reader


class Hangs(Exception):
    """A reader that does not end."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise Hangs(f"more than {seconds} seconds")

    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(home: Path, numbers: range, *, every: int = 1) -> tuple[dict[str, int], list[str]]:
    """How many readings were used and refused, and what went wrong; every so many faults all readers."""
    runs, counts, crashes = Runs(home).make(), {"used": 0, "refused": 0}, list[str]()
    for number in numbers:
        whole = (number - numbers.start) % every == 0
        Trial(runs, home / "folder", number, whole=whole).run(counts, crashes)
    return counts, crashes
