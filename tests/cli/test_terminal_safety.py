"""Nothing from elsewhere steers the terminal: escapes are planted in every outside text, for every verb."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from console import run
from lora_files import write_random_lora
from tiny import image_folder, recipe_text

from lora_studio import cli
from lora_studio.console import Bars, Screen
from lora_studio.console.terminal import LastingStream, TerminalStream, use_terminal_streams
from lora_studio.text import cut, harmless, harmless_json

EVIL = "\x1b]0;p\x07\x9b8m\x1b[8m\u202e\u2066\u061c\u2028\x85\x0b\x0c\r\x7f\u200b\U000e0041z"
"""A title, a bell, concealed letters in both spellings, turned and broken lines, what is not seen."""
WORDS = "".join(one for one in EVIL if unicodedata.category(one) not in ("Cc", "Zl", "Zp"))
"""What a recipe takes for words: it refuses control characters itself."""
RAW = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0041]"
)
needs_any_name = pytest.mark.skipif(os.name == "nt", reason="Windows has no names with control characters")


class World(NamedTuple):
    """Paths whose names, and whose content wherever it is text, are evil."""

    root: Path
    images: Path
    recipe: Path
    bad_recipe: Path
    base: Path
    lora: Path
    other: Path
    odd_lora: Path
    run: Path
    url: str


@contextmanager
def chat_server(answer: str) -> Iterator[str]:
    """A captioner's endpoint that answers everything with these words."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """The server's own log is not what is tested."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def toml(text: str) -> str:
    return '"' + "".join(f"\\U{ord(letter):08x}" for letter in text) + '"'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[World]:
    root = tmp_path_factory.mktemp("evil") / f"r{EVIL}"
    images = image_folder(root / f"i{EVIL}")
    for kind in ("png", "txt"):
        (images / f"00.{kind}").rename(images / f"0{EVIL}.{kind}")
    (images / f"0{EVIL}.txt").write_text(f"zwx style, {EVIL} {{a|b}} <lora:{EVIL}:1>", "utf-8")
    (images / f"9{EVIL}.png").write_text(f"<html>{EVIL}", "utf-8")
    (images / f"9{EVIL}.doc").write_text(EVIL, "utf-8")
    shutil.copytree(tiny_base, base := root / f"b{EVIL}")
    prompt = toml(f"zwx style, {WORDS}")
    text = recipe_text(Path("IMAGES"), "BASE", steps=1)
    text = text.replace('"IMAGES"', toml(str(images))).replace('"BASE"', toml(str(base)))
    text = text.replace('trigger = "zwx style"', f'trigger = "zwx style"\nclass_words = {toml(WORDS)}')
    recipe, bad_recipe = root / f"{EVIL}.toml", root / f"bad{EVIL}.toml"
    previews = f"[samples]\nprompts = [{prompt}]\nsteps = 1\n"
    drawn = f"[data.regularization_images]\nprompt = {toml(f'a photo, {WORDS}')}\ncount = 1\nsteps = 1\n"
    recipe.write_text(text + previews + drawn, "utf-8")
    text = text.replace(toml(WORDS), toml(EVIL))
    bad_recipe.write_text(f"{text}[samples]\n{prompt} = 1\n[{prompt}]\nrank = 2\n", "utf-8")
    named = ("ss_output_name", "modelspec.title", "sshs_model_hash", "ss_sd_model_name", EVIL)
    facts = {name: EVIL for name in named} | {"modelspec.trigger_phrase": EVIL}
    facts["ss_tag_frequency"] = json.dumps({EVIL: {EVIL: 3}})
    lora, other = (
        write_random_lora(root / f"{number}{EVIL}.safetensors", metadata=facts, seed=number)
        for number in range(2)
    )
    odd = {f"lora_unet_{EVIL}_to_k": (24, 40), "lora_unet_mid_block_attentions_0_proj_in": (32, 24, 1, 1)}
    odd_lora = write_random_lora(root / f"odd{EVIL}.safetensors", metadata=facts, shapes=odd)
    with chat_server(f"a {EVIL} ball") as url:
        yield World(root, images, recipe, bad_recipe, base, lora, other, odd_lora, root / f"run{EVIL}", url)


Calls = Callable[[World], list[list[object]]]
CALLS: dict[str, Calls] = {  # verb -> calls that work, and calls that are refused; `train` is the first
    "train": lambda w: [
        ["train", w.recipe, "-o", w.run],
        ["train", w.bad_recipe],
        ["train", w.root / "none"],
    ],
    "init": lambda w: [
        ["init", "sd15_style", "--images", w.images, "--trigger", f"zwx {WORDS}", "-o", w.root / "new.toml"],
        ["init", EVIL],
    ],
    "start": lambda w: [
        [
            "start",
            w.images,
            "--base",
            w.base,
            "--name",
            "evil",
            "--trigger",
            WORDS,
            "-o",
            w.root / "start.toml",
        ],
        ["start", w.images, "--base", w.base, "--trigger", EVIL, "-o", w.root / "other.toml"],
        ["start", w.root / "none"],
        ["start", w.images, "--learn", EVIL],
    ],
    "doctor": lambda w: [
        ["doctor", w.images],
        ["doctor", w.recipe],
        ["doctor", w.bad_recipe],
        ["doctor", EVIL],
    ],
    "plan": lambda w: [["plan", w.recipe], ["plan", w.bad_recipe], ["plan", w.recipe, "--for", EVIL]],
    "demo": lambda w: [["demo", "--set", f"training.{EVIL}=1"], ["demo", "-o", w.run, "--resume", EVIL]],
    "caption": lambda w: [
        ["caption", w.images, "--with", "endpoint", "--url", w.url, "--dry-run", "--overwrite"],
        ["caption", w.images, "--with", "template", "--trigger", EVIL, "--dry-run", "--overwrite"],
        ["caption", w.images, "--with", EVIL],
    ],
    "captions": lambda w: [
        ["captions", w.images, "--trigger", EVIL],
        ["captions", w.images, "--find", "zwx"],
        ["captions", w.images, "--find", "zwx", "--replace", EVIL],
        ["captions", w.root / EVIL],
    ],
    "buckets": lambda w: [["buckets", w.images], ["buckets", w.recipe], ["buckets", w.root / EVIL]],
    "regularization-images": lambda w: [
        ["regularization-images", w.recipe],
        ["regularization-images", w.bad_recipe],
    ],
    "class-images": lambda w: [["class-images", w.bad_recipe]],
    "cache": lambda w: [["cache"], ["cache", EVIL]],
    "cache prune": lambda w: [
        ["cache", "prune", "--older-than", EVIL],
        ["cache", "prune", "--max-size", "1GB"],
    ],
    "verify": lambda w: [
        ["verify", w.lora],
        ["verify", w.odd_lora, "--base", w.base],
        ["verify", w.lora, "--provenance", w.images],
        ["verify", w.recipe],
    ],
    "export": lambda w: [["export", w.run, "--to", "diffusers"], ["export", w.run, "--to", EVIL]],
    "sample": lambda w: [
        ["sample", w.run, "--prompt", EVIL, "--steps", 1, "-o", w.root / f"drawn{EVIL}"],
        ["sample", w.odd_lora, "--base", w.base, "--prompt", "a"],
        ["sample", w.root / EVIL],
    ],
    "metadata": lambda w: [["metadata", w.lora], ["metadata", w.lora, "--set", f"{EVIL}=1"]],
    "sidecars": lambda w: [["sidecars", w.run, "--force"], ["sidecars", w.lora]],
    "push": lambda w: [["push", w.lora, EVIL, "--dry-run"], ["push", w.run, "me/it"]],
    "inspect": lambda w: [
        ["inspect", w.lora],
        ["inspect", w.odd_lora],
        ["inspect", w.root],
        ["inspect", w.recipe],
    ],
    "convert": lambda w: [["convert", w.lora, "--to", "diffusers"], ["convert", w.other, "--to", EVIL]],
    "combine": lambda w: [
        ["combine", w.lora, w.other, "-o", w.root / "c.safetensors"],
        ["combine", w.lora, w.odd_lora, "-o", w.root / "d.safetensors"],
    ],
    "compare": lambda w: [["compare", w.lora, w.other], ["compare", f"{w.lora}:{EVIL}", w.other]],
    "resize": lambda w: [
        ["resize", w.lora, "--rank", 2, "-o", w.root / "s.safetensors"],
        ["resize", w.root / EVIL, "--rank", 1, "-o", w.root / "t.safetensors"],
    ],
    "extract": lambda w: [["extract", w.base, w.base, "--rank", 1, "-o", w.root / "x.safetensors"]],
    "merge-into": lambda w: [
        ["merge-into", w.base, w.other, "-o", w.root / "m"],
        ["merge-into", w.base, w.odd_lora, "-o", w.root / "m"],
    ],
    "env": lambda w: [["env", "--device", EVIL]],
    "schema": lambda w: [["schema"], ["schema", EVIL]],
    "evaluate": lambda w: [
        [*("evaluate", w.run, "--encoder", "pocket", "--count", 1, "--seeds", "1,2", "--steps", 1)],
        ["evaluate", w.root / EVIL],
        ["evaluate", w.run, "--require", f"{EVIL}>=1"],
    ],
    "assess": lambda w: [["assess", w.bad_recipe], ["assess", w.recipe, "--base", EVIL]],
    "choose": lambda w: [["choose", w.root / EVIL], ["choose", w.run, "--strengths", EVIL]],
    "runs": lambda w: [["runs", EVIL]],
    "runs compare": lambda w: [["runs", "compare", w.root / EVIL], ["runs", "compare", w.run, w.run]],
    "web": lambda w: [["web", "--folder", w.root / EVIL], ["web", "--host", EVIL, "--token", EVIL]],
    "sweep": lambda w: [
        ["sweep", w.recipe, "--vary", f"adapter.rank=4,{EVIL}"],
        ["sweep", w.recipe, "--vary", f"{EVIL}=1,2"],
        ["sweep", w.bad_recipe],
    ],
    "queue": lambda w: [["queue", EVIL]],
    "queue add": lambda w: [_queued(w, "add"), ["queue", "add", w.bad_recipe], ["queue", "add", EVIL]],
    "queue work": lambda w: [["queue", "work", "--devices", EVIL]],
    **{
        f"queue {verb}": lambda w, verb=verb: [
            _queued(w, verb),
            ["queue", verb, *([] if verb == "list" else [1])],
        ]
        for verb in ("list", "show", "stop", "resume", "remove")
    },
}


def _queued(w: World, name: str) -> list[object]:
    return ["queue", "add", w.recipe, "-o", w.root / f"{name}{EVIL}"]


REFUSED = ("demo", "class-images", "cache prune", "extract", "merge-into", "env")
REFUSED += ("assess", "choose", "runs", "runs compare", "queue", "queue work", "web", "sweep")
"""Verbs whose first call ends with a sentence, too."""


def verbs() -> list[str]:
    """All that can be typed, also what no help lists."""
    found = []
    for name, command in typer.main.get_command(cli.app).commands.items():
        found += [name, *(f"{name} {inner}" for inner in getattr(command, "commands", ()))]
    return found


def test_every_verb_has_its_calls_here() -> None:
    assert sorted(CALLS) == sorted(verbs())


@needs_any_name
@pytest.mark.parametrize("verb", CALLS)
def test_nothing_from_elsewhere_steers_the_terminal(
    verb: str, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(world.root / "cache"))
    monkeypatch.setenv("LORA_STUDIO_HOME", str(world.root / "home"))
    monkeypatch.chdir(world.root)
    if not world.run.exists() and verb in ("export", "sample", "sidecars", "push", "evaluate", "choose"):
        run(["train", str(world.recipe), "-o", str(world.run)], capsys)
    spelled = 0
    for number, call in enumerate(CALLS[verb](world)):
        code, out, err = run([str(word) for word in call], capsys)
        said = f"{out}\n{err}"
        assert number or verb in REFUSED or code < 2, said
        assert (found := RAW.search(said)) is None, (call, said[found.start() - 80 : found.end() + 40])
        assert "Traceback" not in said, said
        spelled += "x1b" in said
    assert spelled, "nothing that was planted came into sight"


@needs_any_name
@pytest.mark.parametrize(
    "words", [["doctor"], ["captions", "--trigger", EVIL], ["inspect"], ["metadata"], ["buckets"]]
)
def test_json_spells_it_so_that_it_is_read_back(
    words: list[str], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    target = world.images if words[0] in ("doctor", "captions", "buckets") else world.lora
    _, out, _ = run([words[0], str(target), *words[1:], "--json"], capsys)
    assert not RAW.search(out) and "\\u001b" in out and EVIL in "\n".join(leaves(json.loads(out)))


def leaves(data: object) -> Iterator[str]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from (key, *leaves(value))
    elif isinstance(data, list):
        for value in data:
            yield from leaves(value)
    else:
        yield str(data)


# ---- the edge itself


class Terminal(io.StringIO):
    """A terminal that remembers."""

    def isatty(self) -> bool:
        return True


OWN = re.compile(r"\x1b\[(\?25[hl]|\d*[A-G]|[012]?K|[\d;]*m)")  # a bar's movements, and colours
CONCEALED = re.compile(r"\x1b\[[\d;]*\b8m")  # which nothing of ours is


def test_on_a_terminal_only_our_own_colours_and_bars_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, TerminalStream(LastingStream(terminal)))
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Screen(width=100)
    with Bars(screen) as bars:
        bars.show(EVIL, 1, 2, EVIL)
        screen.say(EVIL, "red")
        screen.say_json({EVIL: EVIL})
        screen.print_rows([(EVIL, EVIL)], heading=EVIL)
        print(EVIL)
        print(f"a library: {EVIL}", file=sys.stderr, flush=True)
        bars.show(EVIL, 2, 2, EVIL)
    print(EVIL, file=sys.stderr)
    said = terminal.getvalue()
    assert "\x1b[31m" in said and said.count("\\x1b]0;p") > 8 and not CONCEALED.search(said)
    assert not RAW.search(OWN.sub("", said).replace("\r", "")), OWN.sub("", said)


def test_no_module_writes_past_the_screen() -> None:
    """`print`, `input` with words, and the streams themselves.

    The pocket base's own builder is no verb; `watching` tells the page's server, through a pipe, in ASCII.
    """
    root = Path(cli.__file__).parents[1]
    found = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if name.startswith("pocket/") or name in ("console/terminal.py", "web/dataset/watching.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if call == "print" or (call == "input" and node.args) or re.match(r"sys\.std(out|err)\.w", call):
                found.append(f"{name}:{node.lineno}")
    assert found == []


def test_a_traceback_and_a_warning_are_harmless(tmp_path: Path) -> None:
    script = (
        "import sys, warnings; from lora_studio.console.terminal import use_terminal_streams;"
        f"use_terminal_streams(); warnings.warn({EVIL!r}); raise ValueError({EVIL!r})"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8").stderr
    assert "ValueError: \\x1b]0;p\\x07\\x9b8m" in said and "UserWarning" in said and not RAW.search(said)


def test_a_line_at_the_margin_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().say("\nerror: forged\nerror: forged, too\n  and indented")
    assert capsys.readouterr().out == "\n  error: forged\n  error: forged, too\n  and indented\n"


def test_what_people_write_stays_as_it_is() -> None:
    text = "Ünï\u00a0cödé, 日本\u3000語, \u0645\u06cc\u200c\u062e, \u05d0\u05b8, 👩\u200d🎨, ﷽, a\tb\nc"
    assert harmless(text) == text and json.loads(harmless_json(text)) == text


def test_json_with_half_a_pair_is_still_json() -> None:
    assert json.loads(harmless_json({"a\udcff": EVIL})) == {"a\udcff": EVIL}


def test_of_a_long_value_the_message_keeps_beginning_and_advice() -> None:
    message = f"training.steps is {'9' * 10_000_000}; it must be at most 10.\nsecond line"
    first, second = cut(message).split("\n")
    assert first.startswith("training.steps is 999") and first.endswith("it must be at most 10.")
    assert len(first) < 2100 and "10,000,0" in first and second == "second line"


# ---- an output that breaks


def studio(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "lora_studio", *words]
    return subprocess.run(call, stderr=subprocess.PIPE, encoding="utf-8", **options)  # type: ignore[call-overload]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_disk_behind_the_output_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        ended = studio("cache", stdout=full)
    assert ended.returncode == 1
    fault = (
        "standard output cannot be written to (No space left on device), so what was to be printed is lost"
    )
    assert ended.stderr.strip() == f"error: {fault}."


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove the folder of a process")
def test_a_removed_working_folder_is_one_sentence(tmp_path: Path) -> None:
    (gone := tmp_path / "gone").mkdir()
    script = "import os, sys; from lora_studio import cli; os.rmdir(os.getcwd()); cli.main()"
    call = [sys.executable, "-c", script, "doctor", "images"]
    where = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    ended = subprocess.run(call, cwd=gone, env=where, capture_output=True, encoding="utf-8")
    assert ended.returncode == 2 and ended.stderr.startswith(
        "error: the folder in which this was started is not"
    )
    assert len(ended.stderr.splitlines()) == 1


def test_a_reader_that_leaves_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        use_terminal_streams()
        Screen().say("nobody reads this")
        assert sys.stdout.rich_proxied_file.fault == ""
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # so that closing it can write what it still holds
