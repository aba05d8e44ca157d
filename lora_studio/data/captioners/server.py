"""One JSON request to a server, with a key that goes nowhere else."""

from __future__ import annotations

import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.request
from email.message import Message
from typing import IO
from urllib.parse import SplitResult, urlsplit, urlunsplit

from lora_studio.errors import CaptionError

TIMEOUT_SECONDS = 300  # a large model on a slow machine
MAX_ANSWER_BYTES = 1_000_000
_PATH = "/chat/completions"
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_ABOUT_THE_IMAGE = frozenset({400, 413, 415, 422})


class Refused(Exception):
    """The server answers, but not about this image; the message is the reason."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key and the image to a place that the user did not name."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> None:
        return None


class Server:
    """A chat endpoint. Raises CaptionError for an address that cannot be used."""

    waits_seconds: tuple[float, ...] = (2, 8, 30)  # before another try when the server is busy

    def __init__(self, url: str, key: str, *, key_variable: str) -> None:
        self.key, self.key_variable = key, key_variable
        parts = _checked(url)
        if key and parts.scheme == "http" and not _is_near(parts.hostname or ""):
            raise CaptionError(
                f"{key_variable} would go unencrypted to {parts.hostname}; use https, or unset the variable "
                "if the server needs no key."
            )
        path = parts.path.rstrip("/") or "/v1"
        path = path if path.endswith(_PATH) else path + _PATH
        self.url = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        self._opener = urllib.request.build_opener(_NoRedirect)

    def post(self, values: dict[str, object]) -> bytes:
        """The body of the answer; tries again while the server is busy.

        Raises Refused if it will not look at this image, CaptionError if it cannot be reached or used.
        """
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, json.dumps(values).encode(), headers, method="POST")
        for wait in (*self.waits_seconds, None):
            try:
                with self._opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                    return _limited(response.read(MAX_ANSWER_BYTES + 1))
            except urllib.error.HTTPError as error:
                with error:
                    if error.code not in _BUSY or wait is None:
                        raise self._fault(error.code, error.read(2000)) from None
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                if wait is None or isinstance(reason, ConnectionRefusedError):
                    raise CaptionError(f"{self.url} cannot be reached ({reason}); look at --url.") from None
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _fault(self, code: int, body: bytes) -> Exception:
        said = " ".join(body.decode("utf-8", "replace").split())
        if self.key:  # some servers repeat the key that they do not like
            said = said.replace(self.key, "***")
        answer = f"{code}: {said[:200]}" if said else str(code)
        if code in _ABOUT_THE_IMAGE:
            return Refused(f"the server refused it ({answer})")
        if code in (401, 403):
            advice = f"the key is read from the environment variable {self.key_variable}"
        elif 300 <= code < 400:
            advice = "it sends us elsewhere; give the final address with --url"
        else:
            advice = "captions written so far are kept; the same command goes on"
        return CaptionError(f"{self.url} answers {answer}; {advice}.")


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


def _limited(body: bytes) -> bytes:
    if len(body) > MAX_ANSWER_BYTES:
        raise CaptionError(
            f"the server answers with more than {MAX_ANSWER_BYTES // 1_000_000} MB; look at --url."
        )
    return body
