"""The server of `lora-studio web`."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable

from lora_studio.errors import StudioError
from lora_studio.web.settings import PORT, WebSettings


def bind(host: str, port: int | None) -> tuple[socket.socket, int]:
    """A socket that listens there; without a port at the usual one, or a free one if that is taken.

    Raises StudioError for a port that was asked for and is taken, and a host that this machine is not.
    """
    try:
        family = socket.getaddrinfo(host, None)[0][0]
    except OSError as error:
        raise StudioError(
            f"--host is {host}, which is no address of this machine ({error.strerror})."
        ) from None
    tries = [port] if port is not None else [PORT, 0]
    for one in tries:
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name != "nt":  # where it would let two processes have the same port
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, one))
            listening.listen(128)  # from now on browsers wait, until all is ready
            return listening, int(listening.getsockname()[1])
        except OSError as error:
            listening.close()
            if one == tries[-1]:
                raise StudioError(
                    f"port {one} of {host} cannot be had ({error.strerror}); choose another with --port."
                ) from None
    raise AssertionError(tries)


def serve(
    settings: WebSettings,
    listening: socket.socket,
    *,
    on_ready: Callable[[str, str], None],
    opens_browser: bool,
) -> None:
    """Serve until Ctrl-C or SIGTERM. `on_ready` is told the address, which works once, and the token.

    The folder of the project becomes the working folder, as of a terminal in it.
    """
    os.chdir(settings.folders.project)
    import uvicorn

    from lora_studio.web.app import application
    from lora_studio.web.studio import open_studio

    for name in ("uvicorn.error", "nicegui"):  # each address that is not there would be a line
        logging.getLogger(name).setLevel(logging.ERROR)
    studio = open_studio(settings)
    config = uvicorn.Config(
        application(studio),
        log_level="error",
        access_log=False,
        server_header=False,
        ws_per_message_deflate=False,  # nothing goes far, and small updates cost more to pack than to send
        timeout_graceful_shutdown=2,
    )
    address = f"{settings.address}/?token={studio.keys.launch}"

    def tell() -> None:
        on_ready(address, settings.token)
        if opens_browser and _has_screen():
            webbrowser.open(address)

    server = uvicorn.Server(config)
    studio.on_ready = lambda: threading.Thread(target=tell, daemon=True).start()
    server.run(sockets=[listening])


def _has_screen() -> bool:
    """Else a browser would open in the terminal, or none."""
    return sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
