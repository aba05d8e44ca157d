"""The verbs of the queue: `lora-studio queue add`, `list`, `show`, `stop`, `resume`, `remove` and `work`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lora_studio.cli.options import (
    Changes,
    Command,
    Group,
    Json,
    RayAddress,
    argument,
    flag,
    print_json,
    value,
)
from lora_studio.console import console, errors
from lora_studio.text import command_of

HELP = "Trainings and other verbs, one after the other on each GPU: kept on the disk, stopped and resumed."
queue = typer.Typer(name="queue", cls=Group, no_args_is_help=True, help=HELP)

Number = Annotated[int, argument("JOB", "its number; `lora-studio queue list` shows them")]
_WHAT = "a recipe to train, or a verb: evaluate, caption, export, sample, verify ..., and its arguments"
_MORE = {"allow_extra_args": True, "ignore_unknown_options": True}


@queue.command(cls=Command, context_settings=_MORE)
def add(
    context: typer.Context,
    what: Annotated[str, argument("RECIPE|VERB", _WHAT)],
    changes: Changes = None,
    out: Annotated[
        Path | None, value("DIR", "the run folder; default: runs/<name of the recipe>", "-o", "--out")
    ] = None,
    after: Annotated[int | None, value("JOB", "it begins when that one is done")] = None,
    priority: Annotated[int, value("N", "higher ones come first; default: 0")] = 0,
    as_json: Json = False,
) -> None:
    """Add a training, or another verb with its arguments; a recipe's faults are told at once."""
    from dataclasses import replace

    from lora_studio.jobs import Queue
    from lora_studio.jobs.adding import job_of

    wanted = job_of(what, context.args, tuple(changes or ()), out)
    job = Queue().add(replace(wanted, after=after, priority=priority))
    if as_json:
        print_json(job.to_json())
        return
    console.say(f"job {job.id}: {command_of(*job.arguments)}")
    console.say(f"next: {command_of('queue', 'work')}, unless a worker is at work")


@queue.command("list", cls=Command)
def list_jobs(as_json: Json = False) -> None:
    """Show all jobs: state, device, and how each ended."""
    from lora_studio.console.jobs import print_jobs
    from lora_studio.jobs import Queue

    found = Queue().jobs()
    if as_json:
        print_json([job.to_json() for job in found])
    else:
        print_jobs(found, console)


@queue.command(cls=Command)
def show(number: Number, as_json: Json = False) -> None:
    """Show one job, and the last lines that it printed."""
    from lora_studio.console.jobs import print_job
    from lora_studio.jobs import Queue

    there = Queue()
    job = there.job(number)
    if as_json:
        print_json(job.to_json())
    else:
        print_job(job, there.log(number), console)


@queue.command(cls=Command)
def stop(number: Number) -> None:
    """Have a running job write a checkpoint and end, or a waiting one not begin."""
    from lora_studio.jobs import Queue

    job = Queue().stop(number)
    console.say(f"job {number}: {job.state}; go on with: {command_of('queue', 'resume', number)}")


@queue.command(cls=Command)
def resume(number: Number) -> None:
    """Queue a stopped, failed or lost job again; a training goes on from its newest checkpoint."""
    from lora_studio.jobs import Queue
    from lora_studio.jobs.adding import resumed_digest

    there = Queue()
    job = there.resume(number, recipe_sha256=resumed_digest(there.job(number)))
    console.say(f"job {number}: {job.state}")


@queue.command(cls=Command)
def remove(number: Number) -> None:
    """Take a job and its log off the list; its run folder stays."""
    from lora_studio.jobs import Queue

    Queue().remove(number)
    console.say(f"job {number} is removed; what it has made stays")


@queue.command(cls=Command)
def work(
    devices: Annotated[
        str, value("DEVICES", "e.g. cuda:0,cuda:1, or cpu; default: every GPU, or the processor", "--devices")
    ] = "",
    until_empty: Annotated[bool, flag("--until-empty", "end when nothing is left to begin")] = False,
    ray: RayAddress = None,
) -> None:
    """Do the jobs of the queue, one at a time on each device; Ctrl-C stops them behind checkpoints."""
    from lora_studio.console.jobs import change_in_words
    from lora_studio.jobs import Queue
    from lora_studio.jobs.cluster import RayWorker
    from lora_studio.jobs.worker import Worker, devices_named

    heard: dict[str, Any] = {
        "on_change": lambda job: console.say(change_in_words(job)),
        "on_trouble": lambda error: errors.say(f"note: {error}"),
        "on_stop": lambda: console.say("stopping: jobs write their checkpoints"),
    }
    if ray is None:
        worker = Worker(Queue(), devices_named(devices), **heard)
    else:
        worker = RayWorker(Queue(), ray, **heard)
    names = ", ".join(slot.device for slot in worker.slots)
    console.say(f"at work on {names}; Ctrl-C stops with checkpoints")
    worker.work(until_empty=until_empty)
