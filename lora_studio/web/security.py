"""Who may ask: every page, every call of the API and every WebSocket passes this one door.

The address that the terminal shows holds a token that works once: it is exchanged for a cookie, and the
browser goes on to the same address without it. The API takes the other token, as `Authorization: Bearer`.
"""

from __future__ import annotations

import hmac
import json
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

from lora_studio.web.answers import (
    HEADERS,
    STATIC_POLICY,
    AsgiApp,
    Message,
    MeteredRequest,
    PageAnswer,
    Receive,
    Scope,
    Send,
    TooLarge,
)
from lora_studio.web.settings import BODY_BYTES, UPLOAD_BYTES, WebSettings
from lora_studio.web.sign_in import bounce_page, sign_in_page

SIGN_IN = "/sign-in"
_SAFE = ("GET", "HEAD", "OPTIONS")
_UPLOADS = ("/api/uploads/", "/_nicegui/client/")  # paths below which files are sent


@dataclass
class Keys:
    """The secrets of one start. Compared in constant time, and never shown by the page."""

    token: str = field(repr=False)
    launch: str | None = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def exchange(self, given: str) -> bool:
        """Whether this is the launch token, which is spent by that, or the other one."""
        if self.launch is not None and _equal(given, self.launch):
            self.launch = None
            return True
        return False

    def is_token(self, given: str) -> bool:
        return _equal(given, self.token)

    def is_cookie(self, given: str) -> bool:
        return _equal(given, self.cookie)


def _equal(given: str, kept: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), kept.encode())


class Guard:
    """The ASGI application, behind the checks."""

    def __init__(self, app: AsgiApp, settings: WebSettings, keys: Keys) -> None:
        self.app, self.settings, self.keys = app, settings, keys
        self.cookie_name = f"lora_studio_{settings.port}"  # browsers share cookies between ports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if fault := self._foreign(scope, headers):
            await _refuse(scope, send, 403, fault)
        elif not self._signed_in(scope, headers):
            await self._sign_in(scope, headers, receive, send)
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)
        elif await self._spend(scope, send):
            return
        else:
            await self._pass_on(scope, headers, receive, send)

    def _foreign(self, scope: Scope, headers: dict[str, str]) -> str:
        """Why a request is not of this page's own, in a sentence; "" if it is."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if sum(key.lower() == b"host" for key, _ in scope["headers"]) != 1 or not self.settings.is_own_host(
            host
        ):
            return "this page answers to its own address only; open the one that the terminal shows."
        if origin is not None:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or parts.netloc.lower() != host.lower():
                return "another page has asked for this, which is refused."
        has_token = "authorization" in headers
        unsafe = scope["type"] == "websocket" or scope["method"] not in _SAFE
        if unsafe and origin is None and not has_token:
            return "a request that changes something needs an Origin header, or the token."
        return ""

    def _signed_in(self, scope: Scope, headers: dict[str, str]) -> bool:
        if given := headers.get("authorization"):
            kind, _, token = given.partition(" ")
            is_api = scope["type"] == "http" and scope["path"].startswith("/api")
            return is_api and kind.lower() == "bearer" and self.keys.is_token(token.strip())
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        found = cookies.get(self.cookie_name)
        return found is not None and self.keys.is_cookie(found.value)

    async def _sign_in(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        """Exchange a token for the cookie, or say how to sign in."""
        if scope["type"] == "websocket":
            await _refuse(scope, send, 401, "")
            return
        path, method = scope["path"], scope["method"]
        if path == SIGN_IN and method == "POST":
            form = parse_qs((await _body(receive, 4096)).decode("utf-8", "replace"))
            if self.keys.is_token(form.get("token", [""])[0].strip()):
                await self._welcome(send, "/")
            else:
                await _answer(send, 401, sign_in_page("That is not the token of this start."))
            return
        if path.startswith("/api"):
            await _refuse(
                scope, send, 401, "the token is missing or wrong; send it as Authorization: Bearer."
            )
            return
        given = _tokens(scope)
        if method == "GET" and given and self.keys.exchange(given[0]):
            await self._welcome(send, _without_token(scope))
        elif method == "GET" and not given and headers.get("sec-fetch-site") == "cross-site":
            await _answer(
                send, 200, bounce_page()
            )  # a link elsewhere: now it comes from here, with the cookie
        else:
            fault = "This address was used already, or is of another start." if given else ""
            await _answer(send, 401, sign_in_page(fault))

    async def _welcome(self, send: Send, address: str) -> None:
        cookie = f"{self.cookie_name}={self.keys.cookie}; HttpOnly; SameSite=Strict; Path=/"
        headers = {"location": address, "set-cookie": cookie, "cache-control": "no-store"}
        await _answer(send, 303, "", headers)

    async def _spend(self, scope: Scope, send: Send) -> bool:
        """A token in the address of one who is signed in is spent, too, and taken out."""
        if scope["method"] == "GET" and not scope["path"].startswith("/api") and (given := _tokens(scope)):
            self.keys.exchange(given[0])
            await _answer(send, 303, "", {"location": _without_token(scope), "cache-control": "no-store"})
            return True
        return False

    async def _pass_on(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        most = UPLOAD_BYTES if scope["path"].startswith(_UPLOADS) else BODY_BYTES
        said = headers.get("content-length", "0")
        if not said.isdecimal() or int(said) > most:
            await _refuse(scope, send, 413, f"that has more than the {most:,} bytes that are taken here.")
            return
        taken = MeteredRequest(receive, most)
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            if begun or not taken.too_large:  # frameworks have answers of their own to a body that breaks off
                begun = True
                await send(message)

        with suppress(TooLarge):
            await self.app(scope, taken, PageAnswer(send_on, headers["host"]))
        if taken.too_large and not begun:
            await _refuse(scope, send, 413, f"that has more than the {most:,} bytes that are taken here.")


def _tokens(scope: Scope) -> list[str]:
    return parse_qs(scope["query_string"].decode("latin-1")).get("token", [])


def _without_token(scope: Scope) -> str:
    """The address again, relative and within this page: a path such as //elsewhere would lead away."""
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    query.pop("token", None)
    path = "/" + scope.get("raw_path", scope["path"].encode()).split(b"?")[0].decode("latin-1").lstrip("/\\")
    return f"{path}?{urlencode(query, doseq=True)}" if query else path


async def _body(receive: Receive, most: int) -> bytes:
    """The first `most` bytes of a request."""
    content = b""
    while len(content) < most:
        message = await receive()
        content += message.get("body", b"")
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            break
    return content[:most]


async def _refuse(scope: Scope, send: Send, status: int, fault: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    elif scope["path"].startswith("/api"):
        await _answer(send, status, json.dumps({"error": fault}), {"content-type": "application/json"})
    else:
        await _answer(send, status, f"error: {fault}\n", {"content-type": "text/plain; charset=utf-8"})


async def _answer(send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    body = text.encode("utf-8", "backslashreplace")
    given = {"content-type": "text/html; charset=utf-8", "content-security-policy": STATIC_POLICY}
    given |= {**HEADERS, "content-length": str(len(body)), **(headers or {})}
    encoded = [(key.encode(), value.encode("latin-1")) for key, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
