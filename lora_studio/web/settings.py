"""What a start of the page is given, and what all of its pages share."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.web.folders import AllowedFolders

PORT = 7861
LOOPBACK = "127.0.0.1"
SHORTEST_TOKEN = 16  # letters of one that a user makes up
UPLOAD_BYTES = 2**30  # of a LoRA file that is dropped
IMAGE_BYTES = 100 * 10**6  # of an image that is dropped
BODY_BYTES = 2**20  # of any other request
UPLOADS_AT_ONCE = 4
MOST_UPLOADS = 5000  # files that a folder of dropped files may hold


@dataclass(frozen=True)
class WebSettings:
    """Where the page listens, what it may use, and by what it knows its user."""

    folders: AllowedFolders
    port: int
    host: str = LOOPBACK
    token: str = field(default="", repr=False)

    @classmethod
    def checked(cls, folders: list[Path], *, host: str, port: int, token: str) -> WebSettings:
        """Raises StudioError for a host that others reach without a token, and one that can be guessed."""
        if host not in (LOOPBACK, "localhost", "::1") and not token:
            raise StudioError(
                f"--host is {host}, which other machines reach; give --token as well, of "
                f"{SHORTEST_TOKEN} letters or more, or set LORA_STUDIO_WEB_TOKEN."
            )
        if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
            raise StudioError(
                f"the token must have {SHORTEST_TOKEN} ASCII letters or more; "
                "python -c 'import secrets; print(secrets.token_urlsafe())' makes one."
            )
        allowed = AllowedFolders.of(folders or [Path.cwd()])
        return cls(allowed, port, host, token or secrets.token_urlsafe(32))

    @property
    def address(self) -> str:
        host = LOOPBACK if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def is_own_host(self, host: str) -> bool:
        """Whether a request's Host header, "name:port", is this page.

        A page elsewhere can have its own name point to this machine (DNS rebinding): so names are known ones,
        and other addresses are those in digits, and only where other machines may ask.
        """
        name, _, port = host.rpartition(":")
        name = name.strip("[]").lower()
        if port != str(self.port):
            return False
        if self.host in (LOOPBACK, "localhost", "::1"):
            return name in (LOOPBACK, "localhost", "::1")
        known = {self.host.lower(), socket.gethostname().lower(), "localhost"}
        return name in known or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
