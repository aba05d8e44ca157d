"""The endpoint captioner against a real server on this machine."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from PIL import Image

from lora_studio.data.captioners import WriterOptions
from lora_studio.data.captioners.endpoint import KEY_VARIABLE, Endpoint, Server
from lora_studio.data.captioners.write import write_captions
from lora_studio.data.captions import LEDGER
from lora_studio.data.scan import scan
from lora_studio.errors import CaptionError

Reply = tuple[int, dict[str, str], bytes]


class Peer:
    """A server that replies what `reply` says, and remembers what it was sent."""

    def __init__(self) -> None:
        self.requests: list[dict[str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.reply: Callable[[Image.Image], Reply] = lambda image: said(colour(image))
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                peer.requests.append(body)
                peer.headers.append(dict(self.headers))
                peer.paths.append(self.path)
                status, headers, answer = peer.reply(image_in(body))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


def image_in(body: dict[str, list[dict[str, list[dict[str, dict[str, str]]]]]]) -> Image.Image:
    url = body["messages"][0]["content"][1]["image_url"]["url"]
    return Image.open(BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))


def colour(image: Image.Image) -> str:
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return ("red", "green", "blue")[pixel.index(max(pixel))]


def said(text: object, finish: str = "stop") -> Reply:
    values = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    return 200, {}, json.dumps(values).encode()


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Server, "waits_seconds", (0.01, 0.01))
    peer = Peer()
    thread = threading.Thread(target=peer.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield peer
    peer.server.shutdown()
    thread.join()
    peer.server.server_close()


def test_every_image_gets_its_own_answer(folder, paint, peer):
    for number, name in enumerate(("red", "blue", "green", "red", "blue")):
        paint(f"{number}.png", 40 + number, 30, {"green": "lime"}.get(name, name))
    writer = Endpoint(WriterOptions(url=peer.url, model="seer", prompt="What?", max_tokens=50, batch_size=3))
    outcome = write_captions(scan(folder), writer, folder=folder)
    captions = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    assert outcome.written == 5 and captions == ["red\n", "blue\n", "green\n", "red\n", "blue\n"]
    assert set(peer.paths) == {"/v1/chat/completions"}
    request = peer.requests[0]
    assert (request["model"], request["max_tokens"]) == ("seer", 50)
    assert request["messages"][0]["content"][0] == {"type": "text", "text": "What?"}


def test_the_key_is_sent_and_stands_nowhere_else(folder, paint, peer, monkeypatch):
    paint("a.png")
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    write_captions(scan(folder), Endpoint(WriterOptions(url=peer.url)), folder=folder)
    assert peer.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in (folder / LEDGER).read_text() + json.dumps(peer.requests)


def test_what_is_sent_is_small_and_says_nothing_of_camera_or_place(folder, peer):
    exif = Image.Exif()
    exif[0x010E] = "at my home"
    Image.new("RGB", (3000, 1500), "red").save(folder / "a.jpg", exif=exif, comment=b"at my home")
    images = []
    peer.reply = lambda image: images.append(image) or said("a wall")
    Endpoint(WriterOptions(url=peer.url)).describe(scan(folder).used)
    (image,) = images
    assert image.size == (1024, 512) and not image.getexif() and "comment" not in image.info


def test_an_answer_in_parts_is_one_caption(folder, paint, peer):
    paint("a.png")
    peer.reply = lambda image: said([{"type": "text", "text": "a red"}, {"type": "text", "text": "wall"}])
    assert Endpoint(WriterOptions(url=peer.url)).describe(scan(folder).used)[0].text == "a red wall"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (said("a red wal", finish="length"), "--max-tokens"),
        ((400, {}, b'{"error": "not a nice\n image"}'), "refused it \\(400: .*not a nice image"),
    ],
)
def test_one_image_that_is_refused_does_not_stop_the_others(folder, paint, peer, reply, words):
    paint("a.png", colour="red")
    paint("b.png", colour="blue")
    peer.reply = lambda image: reply if colour(image) == "red" else said("a sea")
    outcome = write_captions(scan(folder), Endpoint(WriterOptions(url=peer.url)), folder=folder)
    assert outcome.written == 1 and (folder / "b.txt").read_text() == "a sea\n"
    ((name, reason),) = outcome.faults
    import re

    assert name == "a.png" and re.search(words, reason)


def test_a_busy_server_is_asked_again(folder, paint, peer):
    paint("a.png")
    replies = [(503, {}, b"loading"), (429, {}, b""), said("a wall")]
    peer.reply = lambda image: replies.pop(0)
    assert Endpoint(WriterOptions(url=peer.url)).describe(scan(folder).used)[0].text == "a wall"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((401, {}, b"bad key sk-secret"), rf"replies 401: bad key \*\*\*; .*{KEY_VARIABLE}"),
        ((404, {}, b"no such model"), "replies 404: no such model"),
        ((503, {}, b""), "replies 503; captions written so far are kept"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "give the final address"),
        ((200, {}, b"<html>"), "OpenAI's chat protocol"),
        ((200, {}, b'{"choices": []}'), "OpenAI's chat protocol"),
        ((200, {}, b"x" * 1_000_001), "more than 1 MB"),
        ((200, {}, b"[" * 900_000), "OpenAI's chat protocol"),
        (said({"a": "b"}), "OpenAI's chat protocol"),
        (said([{"type": "text", "text": 5}]), "OpenAI's chat protocol"),
        ((200, {}, b"\x1b[31m\x9b \xe2\x80\xae"), r"\\x1b\[31m.*\\u202e"),
        ((404, {}, b"no \x1b]0;p\x07 \xc2\x9b model"), r"replies 404: no \\x1b\]0;p\\x07 \\x9b model"),
        ((200, {"Transfer-Encoding": "chunked", "Content-Length": ""}, b"-5\r\nabc"), "OpenAI's|be reached"),
        ((200, {"Transfer-Encoding": "chunked", "Content-Length": ""}, b"x\r\nabc"), "be reached"),
    ],
    ids=[
        *("key", "model", "busy for good", "redirect", "a web page", "no choices", "too much", "deep"),
        *("an object", "a number", "escapes", "escapes in a fault", "chunk of -5", "chunk of x"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_sentence(folder, paint, peer, monkeypatch, reply, words):
    paint("a.png")
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    peer.reply = lambda image: reply
    with pytest.raises(CaptionError, match=words) as caught:
        Endpoint(WriterOptions(url=peer.url)).describe(scan(folder).used)
    assert "sk-secret" not in str(caught.value)


def test_what_steers_a_terminal_is_not_written(folder, paint, peer):
    paint("a.png")
    peer.reply = lambda image: said("\x1b]0;p\x07 a\0 b \u202e \ud800c\x1b[2J\n")
    result = write_captions(scan(folder), Endpoint(WriterOptions(url=peer.url)), folder=folder)
    assert result.written == 1 and (folder / "a.txt").read_bytes() == b"a b c\n"


@pytest.mark.parametrize("drips", ["body", "head", "error"])
def test_a_reply_that_never_ends_is_given_up(folder, paint, monkeypatch, drips):
    paint("a.png")
    monkeypatch.setattr(Server, "seconds", 1.5)
    monkeypatch.setattr(Server, "body_seconds", 0.5)
    done, asked = threading.Event(), []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            asked.append(connection.recv(65_536))
            status = b"400 Bad" if drips == "error" else b"200 OK"
            head = b"HTTP/1.1 " + status + b"\r\n" + (b"" if drips == "head" else b"\r\n")
            with connection, suppress(OSError):
                connection.sendall(head)
                while not done.wait(0.05):
                    connection.sendall(b"X: y\r\n" if drips == "head" else b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        with pytest.raises(CaptionError, match=r"has not replied in 1\.5 s, or was not done 0\.5 s after it"):
            Endpoint(WriterOptions(url=f"http://127.0.0.1:{server.getsockname()[1]}")).describe(
                scan(folder).used
            )
        assert time.monotonic() - began < 4 and len(asked) == 1
        done.set()
        thread.join()


def test_a_server_that_is_not_there_is_one_sentence(folder, paint, peer):
    paint("a.png")
    peer.server.server_close()
    with pytest.raises(CaptionError, match="cannot be reached"):
        Endpoint(WriterOptions(url=peer.url)).describe(scan(folder).used)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "needs --url"),
        ("localhost:8080", "no address"),
        ("file:///etc/passwd", "no address"),
        ("http://host:99999/v1", "no address"),
        ("http://a b/v1", "no address"),
        ("https://me:secret@host/v1", "leave them out"),
        ("https://host/v1?key=secret", "leave them out"),
        ("http://example.com/v1", "unencrypted"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url, words, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    with pytest.raises(CaptionError, match=words) as caught:
        Endpoint(WriterOptions(url=url))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "used"),
    [
        ("http://localhost:8080", "http://localhost:8080/v1/chat/completions"),
        ("https://host/v1/", "https://host/v1/chat/completions"),
        ("http://192.168.1.5/v1/chat/completions", "http://192.168.1.5/v1/chat/completions"),
    ],
)
def test_an_address_is_completed(url, used, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    assert Endpoint(WriterOptions(url=url)).settings["url"] == used
