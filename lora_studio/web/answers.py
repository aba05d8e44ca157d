"""What every answer of the page carries, and how much a request may bring."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "same-origin",  # with less, browsers say Origin: null for a form
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def content_policy(nonce: str, host: str) -> str:
    """Scripts are the page's own alone: none in a caption or a file's name runs, however it got there.

    Vue compiles its templates in the browser, which needs 'unsafe-eval'.
    """
    return "; ".join(
        (
            "default-src 'self'",
            f"script-src 'self' 'nonce-{nonce}' 'unsafe-eval'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self'",
            f"connect-src 'self' ws://{host}",
            "frame-src 'self'",
            "worker-src 'self' blob:",
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'self'",
        )
    )


STATIC_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'self'; base-uri 'none'"
)
"""Of pages without scripts: whatever stands in them, nothing of it runs."""
FILE_POLICY = STATIC_POLICY.replace("form-action 'self'", "form-action 'none'") + "; sandbox"
"""Of reports and other files: not even of this page's origin."""


class PageAnswer:
    """Sends on what the application answers, with the headers; a page's own scripts get the nonce.

    NiceGUI escapes every `<` of texts in its pages, so each `<script` in them is its own.
    """

    def __init__(self, send: Send, host: str) -> None:
        self._send, self._host = send, host
        self._nonce = secrets.token_urlsafe(16)
        self._start: Message | None = None
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            found = {key.lower(): value for key, value in message["headers"]}
            is_page = b"x-nicegui-content" in found and b"content-encoding" not in found
            message["headers"] = _with_headers(message["headers"], found, self._nonce, self._host)
            if is_page:
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))
            if not message.get("more_body"):
                await self._send_page()
            return
        await self._send(message)

    async def _send_page(self) -> None:
        assert self._start is not None
        body = b"".join(self._parts).replace(b"<script", f'<script nonce="{self._nonce}"'.encode())
        kept = [(key, value) for key, value in self._start["headers"] if key.lower() != b"content-length"]
        self._start["headers"] = [*kept, (b"content-length", str(len(body)).encode())]
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})


def _with_headers(
    headers: list[tuple[bytes, bytes]], found: dict[bytes, bytes], nonce: str, host: str
) -> list[tuple[bytes, bytes]]:
    """An own policy of an answer stays."""
    given = {**HEADERS, "content-security-policy": content_policy(nonce, host)}
    added = ((key.encode(), value.encode()) for key, value in given.items() if key.encode() not in found)
    return [*headers, *added]


class TooLarge(Exception):
    """A request has more bytes than are taken."""


class MeteredRequest:
    """Raises TooLarge when a request goes on beyond what it is allowed, whatever length it gave."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._left = receive, most
        self.too_large = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.too_large = True
            raise TooLarge
        return message
