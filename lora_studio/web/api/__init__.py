"""The REST API: /api, for programs. The pages stand on the same functions."""

from __future__ import annotations

from fastapi import APIRouter


def routers() -> list[APIRouter]:
    """One for each kind of thing."""
    from lora_studio.web.api import datasets, drops, jobs, runs, uploads, written

    return [datasets.router, drops.router, jobs.router, runs.router, uploads.router, written.router]
