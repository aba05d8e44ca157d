"""/api: the API as a page that people read, and what this is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from lora_studio.pages import document, parts_of, text_of
from lora_studio.version import __version__
from lora_studio.web.answers import STATIC_POLICY
from lora_studio.web.studio import studio

router = APIRouter(prefix="/api", tags=["about"])
_PACKAGE = "lora_studio.web"


@router.get("/about")
def about() -> dict[str, Any]:
    """Version and folders."""
    return {"version": __version__, "folders": [str(one) for one in studio().folders.roots]}


@router.get("", response_class=HTMLResponse, include_in_schema=False)
def written(request: Request) -> HTMLResponse:
    """All operations, from the same description that programs read."""
    parts, described = parts_of(_PACKAGE), request.app.openapi()
    operations = "\n".join(
        _operation(method, path, one)
        for path, methods in described["paths"].items()
        for method, one in methods.items()
    )
    page = document("The REST API", parts.fill("api", operations=operations), parts, kind="page")
    return HTMLResponse(page, headers={"content-security-policy": STATIC_POLICY})


def _operation(method: str, path: str, described: dict[str, Any]) -> str:
    parts = parts_of(_PACKAGE)
    rows = [
        parts.fill(
            "row", name=text_of(one["name"]), place=text_of(one["in"]), what=text_of(_kind(one["schema"]))
        )
        for one in described.get("parameters", [])
    ]
    if "requestBody" in described:
        content = ", ".join(described["requestBody"]["content"])
        rows.append(parts.fill("row", name="body", place=text_of(content), what="see openapi.json"))
    return parts.fill(
        "operation",
        method=text_of(method.upper()),
        path=text_of(path),
        what=text_of(described.get("description", "")),
        rows="".join(rows),
    )


def _kind(schema: dict[str, Any]) -> str:
    default = f", default {schema['default']}" if "default" in schema else ""
    return f"{schema.get('type', 'value')}{default}"
