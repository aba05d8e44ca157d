"""Pages that are open at another machine: what they are told reaches them, and nobody here draws it.

`python benchmarks/viewers.py ADDRESS PATH COUNT`, with the page's token in LORA_STUDIO_WEB_TOKEN, opens so
many of them, each as a browser does: the page, then its socket. To each line on its standard input it answers
with how many messages have changed their numbers.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
import sys
import uuid
from typing import Any
from urllib.parse import urlencode

import httpx
import socketio

_QUERY = re.compile(r"^\s*query: (\{.*\}),$", re.MULTILINE)
_ACKNOWLEDGED_EVERY = 3.0  # seconds, as NiceGUI's own page does


class Viewer:
    """One page and its socket."""

    def __init__(self) -> None:
        self.told = 0
        self._next = 0
        self._socket = socketio.AsyncClient()
        self._socket.on("*", self._hear)

    async def open(self, address: str, path: str) -> None:
        """Raises ValueError if what is there is no page of NiceGUI's."""
        headers = {"Origin": address}
        async with httpx.AsyncClient(headers=headers, trust_env=False) as client:
            await client.post(f"{address}/sign-in", data={"token": os.environ["LORA_STUDIO_WEB_TOKEN"]})
            page = (await client.get(address + path)).raise_for_status().text
            headers = headers | {"Cookie": "; ".join(f"{name}={one}" for name, one in client.cookies.items())}
        if (found := _QUERY.search(page)) is None:
            raise ValueError(f"no page at {address}{path}.")
        query = ast.literal_eval(found[1])
        self._next = int(query["next_message_id"])
        own = {"document_id": str(uuid.uuid4()), "tab_id": str(uuid.uuid4()), "implicit_handshake": "true"}
        await self._socket.connect(
            f"{address}?{urlencode(query | own)}",
            headers=headers,
            transports=["websocket"],
            socketio_path="/_nicegui_ws/socket.io",
        )
        self._client = query["client_id"]

    async def acknowledge(self) -> None:
        """The server keeps what was not."""
        await self._socket.emit("ack", {"client_id": self._client, "next_message_id": self._next})

    async def close(self) -> None:
        await self._socket.disconnect()

    async def _hear(self, event: str, message: Any = None) -> None:
        if isinstance(message, dict) and "_id" in message:
            self._next = message["_id"] + 1
            self.told += event == "run_javascript" and '"say"' in message["code"]


async def view(address: str, path: str, count: int) -> None:
    """Until standard input ends."""
    viewers = [Viewer() for _ in range(count)]
    for one in viewers:
        await one.open(address, path)

    async def acknowledge() -> None:
        while True:
            await asyncio.sleep(_ACKNOWLEDGED_EVERY)
            for one in viewers:
                await one.acknowledge()

    acknowledging = asyncio.create_task(acknowledge())
    while await asyncio.to_thread(sys.stdin.readline):
        print(sum(one.told for one in viewers), flush=True)
    acknowledging.cancel()
    for one in viewers:
        await one.close()


if __name__ == "__main__":
    asyncio.run(view(sys.argv[1], sys.argv[2], int(sys.argv[3])))
