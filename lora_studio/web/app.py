"""The application: pages and API behind one door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from nicegui import ui

from lora_studio.errors import StudioError
from lora_studio.text import shown
from lora_studio.version import __version__
from lora_studio.web.api import routers
from lora_studio.web.folders import NotAllowed
from lora_studio.web.pages import register_pages
from lora_studio.web.security import Guard
from lora_studio.web.studio import WebStudio


def application(studio: WebStudio) -> Guard:
    """The ASGI application of a start; one for each process."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await studio.begin()
        yield
        await studio.end()

    app = FastAPI(
        title="LoRA Studio",
        version=__version__,
        docs_url=None,  # FastAPI's own loads scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
    )
    app.add_exception_handler(StudioError, _told)
    app.add_exception_handler(RequestValidationError, _not_valid)
    for router in routers():
        app.include_router(router)
    register_pages()
    ui.run_with(
        app,
        title="LoRA Studio",
        dark=None,
        tailwind=False,
        gzip_middleware_factory=None,  # the door looks into pages
        show_welcome_message=False,
        reconnect_timeout=20.0,
        language="en-US",
    )
    return Guard(app, studio.settings, studio.keys)


def _told(request: Request, error: Exception) -> JSONResponse:
    status = 403 if isinstance(error, NotAllowed) else 400
    return JSONResponse({"error": str(error)}, status)


def _not_valid(request: Request, error: Exception) -> JSONResponse:
    """What pydantic says of the fields, in a line each."""
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    lines = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in faults[:20]]
    return JSONResponse({"error": shown("; ".join(lines), limit=1000)}, 422)
