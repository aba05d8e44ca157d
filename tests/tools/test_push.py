"""Uploads to a stand-in for the hub: what was listed is sent, privately, and the token is not told."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from console import run
from PIL import Image

from lora_studio.lora_file.write import write_lora
from lora_studio.metadata.sidecars import tuned_image

TOKEN = "hf_" + "s" * 34
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # the library's own


class Hub(ThreadingHTTPServer):
    """Repositories as the hub's protocol has them: made, committed to, and large files put beside."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.private: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.refuse = 0  # the status of every answer, if any

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def answer(self, values: object, status: int = 200) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        repo = self.path.removeprefix("/api/models/").split("/revision")[0]
        if repo in self.server.private and not self.server.refuse:
            self.answer({"id": repo, "private": self.server.private[repo], "siblings": []})
        else:
            self.answer({"error": "not there"}, self.server.refuse or 404)

    def do_PUT(self) -> None:
        content = self.body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_POST(self) -> None:
        hub, content = self.server, self.body()
        hub.tokens.add(self.headers.get("Authorization", ""))
        if hub.refuse:
            self.answer({"error": f"refused {self.headers.get('Authorization')}"}, hub.refuse)
        elif self.path == "/api/repos/create":
            wanted = json.loads(content)
            repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            private = wanted.get("private", wanted.get("visibility") == "private")
            there = repo in hub.private
            hub.private.setdefault(repo, bool(private))
            self.answer({"url": f"{hub.address}/{repo}"}, 409 if there else 200)
        elif self.path.endswith("/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [one["path"] for one in json.loads(content)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            files = [
                {"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()
            ]
            self.answer({"files": files})
        elif self.path.endswith("/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{hub.address}/put/{one['oid']}"}}}
                for one in json.loads(content)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        else:
            self.commit(content)

    def commit(self, content: bytes) -> None:
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.large[value["oid"]]
        self.answer(
            {
                "commitUrl": f"{self.server.address}/me/a/commit/{'ab' * 20}",
                "commitOid": "ab" * 20,
                "success": True,
            }
        )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks the older protocol
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """A finished run's folder, with what must stay at home in it."""
    folder = tmp_path / "run"
    (folder / "previews").mkdir(parents=True)
    said = {"modelspec.title": "Wood", "modelspec.trigger_phrase": "zwx style"}
    write_lora(folder / "wood.safetensors", {"a": torch.ones(999)}, dtype="float16", describe=lambda _: said)
    (folder / "summary.json").write_text(json.dumps({"file": "wood.safetensors", "embeddings": {}}), "utf-8")
    recipe = 'name = "wood"\nbase.model = "pocket"\ndata.images = "/secret"\npreview.prompts = ["a fox"]\n'
    (folder / "recipe.toml").write_text(recipe, "utf-8")
    (folder / "manifest.jsonl").write_text('{"caption": "secret"}\n', "utf-8")
    Image.new("RGB", (8, 8), "red").save(folder / tuned_image(0))
    return folder


def test_a_run_goes_up_privately_with_card_and_images(
    hub: Hub, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, err = run(["push", str(finished_run), "me/wood"], capsys)
    assert code == 0, err
    assert set(hub.files) == {"wood.safetensors", "README.md", "previews/tuned_00.png"}
    assert hub.files["wood.safetensors"] == (finished_run / "wood.safetensors").read_bytes()
    assert b"# Wood" in hub.files["README.md"] and b'instance_prompt: "zwx style"' in hub.files["README.md"]
    assert hub.private == {"me/wood": True} and hub.tokens == {f"Bearer {TOKEN}"}
    listed = printed.index("for you alone to see")
    assert all(listed < printed.index(f"  {name}  (") < printed.index("done") for name in hub.files)
    assert TOKEN not in printed + err and not any(b"secret" in one for one in hub.files.values())


def test_a_file_goes_up_publicly_only_if_asked(
    hub: Hub, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished_run / "wood.safetensors"
    (finished_run / "wood.json").write_text("{}", "utf-8")
    code, printed, _ = run(["push", str(path), "me/open", "--public", "--json"], capsys)
    assert code == 0 and json.loads(printed)["address"].endswith("/me/open")
    assert hub.private == {"me/open": False} and set(hub.files) == {path.name, "README.md", "wood.json"}
    hub.files.clear()
    code, _, err = run(["push", str(path), "me/open"], capsys)
    assert code == 2 and "is there and public" in err.replace("\n", " ") and not hub.files


def test_what_the_user_wrote_into_the_card_goes_up(
    hub: Hub, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished_run / "README.md").write_text("my own words", "utf-8")
    assert run(["push", str(finished_run), "me/wood"], capsys)[0] == 0
    assert hub.files["README.md"] == b"my own words"


def test_a_dry_run_needs_no_token_and_sends_nothing(
    hub: Hub, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    code, printed, _ = run(["push", str(finished_run), "me/wood", "--dry-run"], capsys)
    assert code == 0 and "would go" in printed and "wood.safetensors" in printed and not hub.tokens
    code, _, err = run(["push", str(finished_run), "me/wood"], capsys)
    assert code == 2 and "HF_TOKEN is empty" in err.replace("\n", " ") and not hub.tokens


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "does not know the token"), (403, "has no right to write"), (400, "refuses me/wood")],
)
def test_what_the_hub_refuses_is_one_sentence_without_the_token(
    status: int, words: str, hub: Hub, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuse = status
    code, printed, err = run(["push", str(finished_run), "me/wood"], capsys)
    assert code == 2 and words in err.replace("\n", " ") and err.startswith("error: ")
    assert TOKEN not in printed + err and "Traceback" not in err


def test_no_network_no_name_and_no_run_are_one_sentence(
    hub: Hub, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    code, _, err = run(["push", str(finished_run), "a b/c"], capsys)
    assert code == 2 and "no name of a repository" in err.replace("\n", " ")
    assert run(["push", str(finished_run.parent), "me/wood"], capsys)[0] == 2
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    code, _, err = run(["push", str(finished_run), "me/wood"], capsys)
    assert code == 2 and "cannot be reached" in err.replace("\n", " ") and TOKEN not in err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = run(["push", str(finished_run), "me/wood"], capsys)
    assert code == 2 and "HF_HUB_OFFLINE is set" in err.replace("\n", " ")
