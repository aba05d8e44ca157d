"""Asks a server that speaks OpenAI's chat protocol and can see: a local one, or a service."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit, urlunsplit

from lora_studio.data.captioners import CaptionResult, CaptionWriter, Settings, WriterOptions
from lora_studio.data.images.decode import data_url, load_image
from lora_studio.data.manifest import Record
from lora_studio.errors import CaptionError
from lora_studio.text import shown

KEY_VARIABLE = "LORA_STUDIO_API_KEY"
PROMPT = (
    "Describe this image in one sentence, as a caption for training an image model: what it shows, "
    "its colours, its surroundings and its light. Answer with the caption alone."
)
MAX_SIDE = 1024  # pixels; more costs tokens and is made smaller by most servers
MAX_TOKENS = 200
TIMEOUT_SECONDS = 300  # for a whole reply: a large model on a slow machine
BODY_SECONDS = 20  # from its first byte on; a server that has begun has its caption
MAX_REPLY_BYTES = 1_000_000
_PIECE = 65_536  # bytes read at a time
T = TypeVar("T")
_PATH = "/chat/completions"
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_ABOUT_THE_IMAGE = frozenset({400, 413, 415, 422})


class Endpoint(CaptionWriter):
    """Several images at a time, each in a request of its own; the key comes from the environment only."""

    name = "endpoint"
    uses = ("url", "model", "prompt", "max_tokens")
    batch_size = 4

    def __init__(self, options: WriterOptions) -> None:
        super().__init__(options)
        if not options.url:
            address = (
                "the address of a server that speaks OpenAI's protocol, such as http://localhost:8080/v1"
            )
            raise CaptionError(f"the captioner endpoint needs --url, {address}.")
        self.server = Server(options.url, os.environ.get(KEY_VARIABLE, ""), key_variable=KEY_VARIABLE)

    @property
    def settings(self) -> Settings:
        """Never the key."""
        prompt, max_tokens = self.options.prompt or PROMPT, self.options.max_tokens or MAX_TOKENS
        named = {"url": self.server.url, "model": self.options.model, "prompt": prompt}
        return {**named, "max_tokens": max_tokens}

    def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
        """A caption for each. Raises CaptionError if the server is not there or does not let us in."""
        with ThreadPoolExecutor(max_workers=len(records) or 1) as pool:
            return list(pool.map(self._ask, records))

    def _ask(self, record: Record) -> CaptionResult:
        image, settings = load_image(record.path), self.settings
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        seen = {"type": "image_url", "image_url": {"url": data_url(image, quality=90)}}
        message = {"role": "user", "content": [{"type": "text", "text": settings["prompt"]}, seen]}
        limits = {"max_tokens": settings["max_tokens"], "temperature": 0}
        model = {"model": settings["model"]} if settings["model"] else {}
        try:
            return _read(self.server.post({"messages": [message], **limits, **model}))
        except Refused as reason:
            return CaptionResult(fault=str(reason))


def _read(data: bytes) -> CaptionResult:
    """The caption in a server's reply. Raises CaptionError if it is of another protocol."""
    try:
        choice = json.loads(data)["choices"][0]
        text = choice["message"]["content"] or ""
        if isinstance(text, list):  # some servers reply in parts, as they are asked
            text = " ".join(part["text"] for part in text if part.get("type") == "text")
        if not isinstance(text, str):
            raise TypeError
        reason = choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        how = f'as OpenAI\'s chat protocol says ("{shown(data[:80].decode("utf-8", "replace"))}")'
        raise CaptionError(f"the server does not reply {how}; look at --url.") from None
    if reason == "length":
        return CaptionResult(fault="the reply was cut at its longest; give more --max-tokens")
    return CaptionResult(text)


class Refused(Exception):
    """The server replies, but not about this image; the message is the reason."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key and the image to a place that the user did not name."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


class Server:
    """A chat endpoint. Raises CaptionError for an address that cannot be used."""

    waits_seconds: tuple[float, ...] = (2, 8, 30)  # before another try when the server is busy
    seconds: float = TIMEOUT_SECONDS
    body_seconds: float = BODY_SECONDS

    def __init__(self, url: str, key: str, *, key_variable: str) -> None:
        self.key, self.key_variable = key, key_variable
        parts = _checked(url)
        if key and parts.scheme == "http" and not _is_near(parts.hostname or ""):
            advice = "use https, or unset the variable if the server needs no key"
            raise CaptionError(f"{key_variable} would go unencrypted to {parts.hostname}; {advice}.")
        path = parts.path.rstrip("/") or "/v1"
        path = path if path.endswith(_PATH) else path + _PATH
        self.url = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        self._opener = urllib.request.build_opener(_NoRedirect)

    def post(self, values: dict[str, object]) -> bytes:
        """The body of the reply; tries again while the server is busy.

        Raises Refused if it will not look at this image, CaptionError if it cannot be reached or used.
        """
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, json.dumps(values).encode(), headers, method="POST")
        for wait in (*self.waits_seconds, None):
            try:
                code, body = within(self.seconds, lambda: self._open(request))
            except TimeoutError:
                limit = f"in {self.seconds:g} s, or was not done {self.body_seconds:g} s after it began"
                raise CaptionError(f"{self.url} has not replied {limit}; look at the server.") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                if wait is None or isinstance(reason, ConnectionRefusedError):
                    what = f"{self.url} cannot be reached ({shown(str(reason), limit=200)})"
                    raise CaptionError(f"{what}; look at --url.") from None
            else:
                if code < 300:
                    return body
                if code not in _BUSY or wait is None:
                    raise self._fault(code, body)
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _open(self, request: urllib.request.Request) -> tuple[int, bytes]:
        """Status and body of the reply. Raises what the connection does, TimeoutError for a slow body."""
        try:
            response = self._opener.open(request, timeout=self.seconds)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            body, deadline = response.read1(_PIECE), time.monotonic() + self.body_seconds
            while piece := response.read1(_PIECE):
                body += piece
                if len(body) > MAX_REPLY_BYTES:
                    size = f"more than {MAX_REPLY_BYTES // 1_000_000} MB"
                    raise CaptionError(f"the server replies with {size}; look at --url.")
                if time.monotonic() > deadline:
                    raise TimeoutError
            return response.status, body

    def _fault(self, code: int, body: bytes) -> Exception:
        said = " ".join(body.decode("utf-8", "replace").split())
        if self.key:  # some servers repeat the key that they do not like
            said = said.replace(self.key, "***")
        reply = f"{code}: {shown(said[:200])}" if said else str(code)
        if code in _ABOUT_THE_IMAGE:
            return Refused(f"the server refused it ({reply})")
        if code in (401, 403):
            advice = f"the key is read from the environment variable {self.key_variable}"
        elif 300 <= code < 400:
            advice = "it sends us elsewhere; give the final address with --url"
        else:
            advice = "captions written so far are kept; the same command goes on"
        return CaptionError(f"{self.url} replies {reply}; {advice}.")


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns. Raises TimeoutError after so long, and leaves it to itself: a limit for a read
    starts anew with every byte."""
    ready: SimpleQueue[Future[T]] = SimpleQueue()

    def run() -> None:
        done = Future[T]()
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)
        ready.put(done)

    Thread(target=run, daemon=True).start()  # a daemon does not keep the program from ending
    try:
        return ready.get(timeout=seconds).result()
    except Empty:
        raise TimeoutError from None


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise CaptionError(f"--url {url!r} is no address of a server, such as http://localhost:8080/v1.")
    if parts.username or parts.password or parts.query:
        raise CaptionError("--url holds a name, password or query, which would be recorded; leave them out.")
    return parts


def _is_near(host: str) -> bool:
    """Whether the host is this machine or one of the local network, by its address."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith(".local")
