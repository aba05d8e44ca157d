"""The verb `env`: what this machine is, and which options work on it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from lora_studio.cli.options import Json, flag, print_json, value
from lora_studio.console import console
from lora_studio.errors import StudioError
from lora_studio.quiet import quiet_libraries
from lora_studio.text import file_size

if TYPE_CHECKING:
    from lora_studio.training.machine.self_test import OptionTest


def env(
    device: Annotated[str, value("DEVICE", '"auto", "cpu", "cuda" or "cuda:1"')] = "auto",
    quick: Annotated[bool, flag("--quick", "leave out compile, which can take minutes")] = False,
    as_json: Json = False,
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
        print_json(facts | {"options": options})
        return
    _print_facts(facts)
    console.say("\noptions, each tried with a small training step")
    try_all(chosen, _print_outcome, quick=quick)


def _print_facts(facts: dict[str, Any]) -> None:
    memory, main = facts["memory_bytes"], facts["main_memory_bytes"]
    rows = [
        ("device", f"{facts['device']} ({facts['name']})"),
        ("driver", f"{facts['driver']}, CUDA {facts['cuda']}" if facts["driver"] else ""),
        ("memory", f"{file_size(memory['free'])} of {file_size(memory['total'])} free" if memory else ""),
        ("main memory", file_size(main) if main else ""),
        ("system", f"{facts['system']}, {facts['cpus']} CPUs, Python {facts['python']}"),
        *((name, found or "not installed") for name, found in facts["versions"].items()),
    ]
    console.print_rows([(title, text) for title, text in rows if text])


def _print_outcome(outcome: OptionTest) -> None:
    console.say(f"{outcome.option}: {'works' if outcome.works else f'does not work: {outcome.why}'}")
