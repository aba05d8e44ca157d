"""What one sees who is not signed in: a page without a script that asks for the token."""

from __future__ import annotations

from lora_studio.pages import document, parts_of, text_of

_PACKAGE = "lora_studio.web"


def sign_in_page(fault: str = "") -> str:
    """`fault`: why there is still something to do, in a sentence."""
    parts = parts_of(_PACKAGE)
    return document("Sign in", parts.fill("sign_in", fault=text_of(fault)), parts, kind="page")


def bounce_page() -> str:
    """Loads its own address again: a browser sends the cookie with what the page itself asks for."""
    parts = parts_of(_PACKAGE)
    return document("Opening", parts.fill("bounce"), parts, kind="page")
