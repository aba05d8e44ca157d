"""Pages of one HTML file that need no other file, no script and no network, all in the same colours.

Names, captions and reasons come from files that anybody may have made: every text passes through `text_of`.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from lora_studio.errors import StudioError
from lora_studio.files import write_atomically
from lora_studio.text import shown


class PageParts:
    """The parts of a package's page.html, each of which follows a line with its name, and its page.css."""

    def __init__(self, package: str) -> None:
        self._folder = files(package)
        content = self._folder.joinpath("page.html").read_text("utf-8")
        _, *parts = re.split(r"^<!-- (\w+) -->\n", content, flags=re.MULTILINE)
        named = zip(parts[::2], parts[1::2], strict=True)
        self._templates = {name: Template(part[:-1]) for name, part in named}

    def fill(self, part: str, **values: object) -> str:
        return self._templates[part].substitute(values)

    @property
    def style(self) -> str:
        return self._folder.joinpath("page.css").read_text("utf-8")


parts_of = cache(PageParts)


def document(title: str, body: str, parts: PageParts, *, kind: str) -> str:
    """A whole page; `kind` is what it is one of, as it stands behind its title and in its mark."""
    shell = parts_of(__name__)
    style = shell.style + parts.style
    return shell.fill("page", title=text_of(title), kind=kind, mark=_mark(kind), style=style, body=body)


def write_page(path: Path, content: str, *, kind: str) -> None:
    """Write a document; an older one is replaced. Raises StudioError if another file is in its place."""
    if path.exists() and not path.is_dir() and not _is_page(path, kind):
        raise StudioError(f"{path} is there already, and no page of the {kind}; choose another name.")
    write_atomically(path, content.encode("utf-8"))


def _mark(kind: str) -> str:
    return f'<meta name="generator" content="lora-studio {kind}">'


def _is_page(path: Path, kind: str) -> bool:
    if not path.is_file():  # opening a pipe would wait for ever
        return False
    with path.open("rb") as file:
        return _mark(kind).encode() in file.read(1000)


def text_of(value: str) -> str:
    """Text that a page shows as it is, also within an attribute."""
    return escape(shown(value), quote=True)
