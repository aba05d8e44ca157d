"""The pages. Each is a module with functions under `@ui.page`, whose content stands in a `frame`."""

from __future__ import annotations

from importlib import import_module

_MODULES = ("home", "training.new_training", "dataset", "run", "results", "lora_files")
"""A page is added here, and in `frame.PLACES` if it is to be in the navigation."""


def register_pages() -> None:
    """Import them all, which tells NiceGUI their addresses."""
    for name in _MODULES:
        import_module(f"{__name__}.{name}")
