"""/api/jobs: the queue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from lora_studio.errors import StudioError
from lora_studio.jobs import last_lines
from lora_studio.jobs.adding import job_of
from lora_studio.text import shown
from lora_studio.web.asked import VERB_OPTIONS, AskedVerb, verb_job
from lora_studio.web.folders import NotAllowed
from lora_studio.web.studio import studio

router = APIRouter(prefix="/api/jobs", tags=["jobs"])
_LOG_BYTES = 200_000


class NewJob(BaseModel):
    """A training, by its recipe, or another verb with its target."""

    model_config = ConfigDict(extra="forbid")

    recipe: str = Field("", description="a recipe's file, within the folders of this page")
    changes: list[str] = Field([], description='as --set, e.g. "training.steps=200"', max_length=200)
    out: str = Field("", description="the run folder; default: runs/<name of the recipe>")
    verb: Literal["", "evaluate", "choose", "export", "sample", "verify", "assess"] = ""
    target: str = Field("", description="of a verb: a run's folder or a file")
    options: dict[str, str | float | int | bool] = Field({}, description=f"of a verb: {VERB_OPTIONS}")
    after: int | None = Field(None, description="the job that has to be done first")
    priority: int = Field(0, ge=-1000, le=1000)


@router.get("")
def list_jobs() -> list[dict[str, Any]]:
    """All jobs, by number."""
    live = studio().live
    found = [job.to_json() for job in live.jobs()]
    if live.fault:
        raise StudioError(live.fault)
    return found


@router.post("", status_code=201)
def add_job(new: NewJob) -> dict[str, Any]:
    """Queue a training or a verb; a worker begins with it when its turn comes."""
    there = studio()
    if bool(new.recipe) == bool(new.verb):
        raise StudioError("give a recipe to train, or a verb and its target.")
    if new.verb:
        target = there.folders.resolve(new.target)
        job = verb_job(AskedVerb(new.verb, target, new.options))
    else:
        recipe = there.folders.resolve(new.recipe)
        out = there.folders.resolve(new.out) if new.out else None
        job = job_of(str(recipe), (), tuple(new.changes), out)
        if not there.folders.allows(job.run):
            raise NotAllowed(f"the run folder {shown(job.run)} is outside of the folders of this page.")
    return there.add(replace(job, after=new.after, priority=new.priority)).to_json()


@router.get("/{number}")
def show_job(number: int) -> dict[str, Any]:
    """Its command, state and device, and how it ended."""
    return studio().queue.job(number).to_json()


@router.get("/{number}/log")
def read_log(number: int) -> PlainTextResponse:
    """The end of what it has printed."""
    there = studio()
    job = there.queue.job(number)
    return PlainTextResponse("\n".join(last_lines(there.queue.log(job.id), _LOG_BYTES)) + "\n")


@router.post("/{number}/stop")
def stop_job(number: int) -> dict[str, Any]:
    """Have it write a checkpoint and end, or not begin."""
    return studio().stop(number).to_json()


@router.post("/{number}/resume")
def resume_job(number: int) -> dict[str, Any]:
    """Queue it again; a training goes on from its newest checkpoint."""
    return studio().resume(number).to_json()


@router.delete("/{number}")
def remove_job(number: int) -> dict[str, Any]:
    """Take it and its log off the list; its run folder stays."""
    return studio().remove(number).to_json()
