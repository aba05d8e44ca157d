"""The verb `env`: what this machine is, and which options work on it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lora_studio.errors import StudioError
from lora_studio.quiet import quiet_libraries

if TYPE_CHECKING:
    from lora_studio.training.machine.self_test import OptionTest

console = Console(highlight=False)
GIGABYTE = 10**9


def env(
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda" or "cuda:1"')] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="leave out compile, which can take minutes")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print it all as JSON")] = False,
) -> None:
    """Show device, memory and versions, and try every option with a small training step."""
    quiet_libraries()
    from lora_studio.devices import find_device
    from lora_studio.training.machine.environment import environment
    from lora_studio.training.machine.self_test import try_all

    chosen = find_device(device)
    if chosen is None:
        raise StudioError(f'--device is {device!r}, which this machine does not have; use "auto" or "cpu".')
    facts = environment(chosen)
    if as_json:
        options = [asdict(one) for one in try_all(chosen, lambda outcome: None, quick=quick)]
        console.print_json(json.dumps(facts | {"options": options}))
        return
    _print_facts(facts)
    console.print("\noptions, each tried with a small training step")
    try_all(chosen, _print_outcome, quick=quick)


def _print_facts(facts: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    memory, main = facts["memory_bytes"], facts["main_memory_bytes"]
    rows = [
        ("device", f"{facts['device']} ({facts['name']})"),
        ("driver", f"{facts['driver']}, CUDA {facts['cuda']}" if facts["driver"] else ""),
        ("memory", f"{_gigabytes(memory['free'])} of {_gigabytes(memory['total'])} free" if memory else ""),
        ("main memory", _gigabytes(main) if main else ""),
        ("system", f"{facts['system']}, {facts['cpus']} CPUs, Python {facts['python']}"),
        *((name, found or "not installed") for name, found in facts["versions"].items()),
    ]
    for title, text in rows:
        if text:
            table.add_row(title, text)
    console.print(table)


def _print_outcome(outcome: OptionTest) -> None:
    answer = "works" if outcome.works else f"does not work: {outcome.why}"
    console.print(f"{outcome.option}: {answer}", markup=False, soft_wrap=True)


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / GIGABYTE:.1f} GB"
