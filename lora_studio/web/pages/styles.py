"""Style sheets of single pages."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from nicegui import ui


def add_style(name: str) -> None:
    """A file beside this one, for the page that is being made."""
    ui.add_head_html(f"<style>{_style(name)}</style>")


@cache
def _style(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
