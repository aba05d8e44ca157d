"""The verb `web`: the studio in a browser."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from lora_studio.cli.options import flag, value
from lora_studio.console import console
from lora_studio.errors import StudioError

_FOLDER = "what the page may use: the first is the project's; can be repeated; default: this folder"
_HOST = "another address to listen at, which other machines may reach; only with --token"
_TOKEN = "a token of your own, of 16 letters or more; default: $LORA_STUDIO_WEB_TOKEN, else a new one"


def web(
    folders: Annotated[list[Path] | None, value("DIR", _FOLDER, "--folder")] = None,
    port: Annotated[int | None, value("PORT", "default: 7861, or a free one if that is taken", min=1)] = None,
    host: Annotated[str, value("ADDRESS", _HOST)] = "127.0.0.1",
    token: Annotated[str, value("TOKEN", _TOKEN)] = "",
    no_browser: Annotated[bool, flag("--no-browser", "only print the page's address")] = False,
) -> None:
    """Open the studio in the browser: runs, previews, results and LoRA files, and a REST API; Ctrl-C ends it.

    Trainings that were begun there go on when it ends.
    """
    from importlib.util import find_spec

    from lora_studio.web.server import bind, serve
    from lora_studio.web.settings import PORT, WebSettings

    if find_spec("nicegui") is None:
        raise StudioError("the page needs NiceGUI; install it with: pip install 'lora-studio[web]'")
    given = token or os.environ.get("LORA_STUDIO_WEB_TOKEN", "")
    WebSettings.checked(folders or [], host=host, port=PORT, token=given)  # before anything listens
    listening, found = bind(host, port)
    if port is None and found != PORT:
        console.say(f"port {PORT} is taken, so this is at {found}")
    settings = WebSettings.checked(folders or [], host=host, port=found, token=given)

    def say(address: str, secret: str) -> None:
        own = "the one that was given" if given else secret
        console.say_rows(
            [
                ("page", address),
                ("", "this address works once; another browser asks for the token"),
                ("token", own),
                ("folder", ", ".join(map(str, settings.folders.roots))),
                ("end", "Ctrl-C; trainings go on"),
            ]
        )
        sys.stdout.flush()  # whoever started this through a pipe waits for the address

    serve(settings, listening, on_ready=say, opens_browser=not no_browser)
