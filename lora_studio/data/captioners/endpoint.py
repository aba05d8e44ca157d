"""Asks a server that speaks OpenAI's chat protocol and can see: a local one, or a service."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import ClassVar

from lora_studio.data.captioners.base import CaptionResult, CaptionWriter, WriterOptions
from lora_studio.data.captioners.server import Refused, Server
from lora_studio.data.images.decode import load_image
from lora_studio.data.manifest import Record
from lora_studio.errors import CaptionError

KEY_VARIABLE = "LORA_STUDIO_API_KEY"
PROMPT = (
    "Describe this image in one sentence, as a caption for training an image model: what it shows, "
    "its colours, its surroundings and its light. Answer with the caption alone."
)
MAX_SIDE = 1024  # pixels; more costs tokens and is made smaller by most servers
MAX_TOKENS = 200


class Endpoint(CaptionWriter):
    """Several images at a time, each in a request of its own; the key comes from the environment only."""

    name: ClassVar[str] = "endpoint"
    uses: ClassVar[tuple[str, ...]] = ("url", "model", "prompt", "max_tokens")
    batch_size = 4

    def __init__(self, options: WriterOptions) -> None:
        super().__init__(options)
        if not options.url:
            raise CaptionError(
                "the captioner endpoint needs --url, the address of a server that speaks OpenAI's protocol, "
                "such as http://localhost:8080/v1."
            )
        self.server = Server(options.url, os.environ.get(KEY_VARIABLE, ""), key_variable=KEY_VARIABLE)

    @property
    def settings(self) -> dict[str, str | int | float]:
        """Address, model, question and length; never the key."""
        options = self.options
        return {
            "url": self.server.url,
            "model": options.model,
            "prompt": options.prompt or PROMPT,
            "max_tokens": options.max_tokens or MAX_TOKENS,
        }

    def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
        """An answer for each. Raises CaptionError if the server is not there or does not let us in."""
        with ThreadPoolExecutor(max_workers=len(records) or 1) as pool:
            return list(pool.map(self._ask, records))

    def _ask(self, record: Record) -> CaptionResult:
        try:
            return _read(self.server.post(self._request(record)))
        except Refused as reason:
            return CaptionResult(fault=str(reason))

    def _request(self, record: Record) -> dict[str, object]:
        settings = self.settings
        content = [
            {"type": "text", "text": settings["prompt"]},
            {"type": "image_url", "image_url": {"url": data_url(record)}},
        ]
        request: dict[str, object] = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": settings["max_tokens"],
            "temperature": 0,
        }
        return request | ({"model": settings["model"]} if settings["model"] else {})


def data_url(record: Record) -> str:
    """The image as a JPEG in a data URL, made anew so that no place or camera of the file goes along."""
    image = load_image(record.path)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    clean = image.copy()
    clean.info.clear()
    buffer = BytesIO()
    clean.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _read(data: bytes) -> CaptionResult:
    """The caption in a server's answer. Raises CaptionError if it is of another protocol."""
    try:
        choice = json.loads(data)["choices"][0]
        text = choice["message"]["content"] or ""
        if isinstance(text, list):  # some servers answer in parts, as they are asked
            text = " ".join(part["text"] for part in text if part.get("type") == "text")
        reason = choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError):
        shown = data[:80].decode("utf-8", "replace")
        raise CaptionError(
            f"the server does not answer as OpenAI's chat protocol says ({shown!r}); look at --url."
        ) from None
    if reason == "length":
        return CaptionResult(fault="the answer was cut at its longest; give more --max-tokens")
    return CaptionResult(str(text))
