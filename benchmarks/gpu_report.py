"""The results of `gpu_acceptance.py` for people: what was tried, and the figures of the runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from figures import table
from gpu_cases import CASES, CHECKPOINTING
from gpu_checks import plain_key, plan_title

from lora_studio.training.planning.simulation import (
    ENCODING_CAPTIONS,
    ENCODING_IMAGES,
    PREVIEWS,
    TRAINING,
    VERIFYING,
)

PHASES = (ENCODING_IMAGES, ENCODING_CAPTIONS, TRAINING, PREVIEWS, VERIFYING)
Outcomes = Sequence[Mapping[str, Any]]


def markdown(facts: Mapping[str, Any], outcomes: Outcomes) -> str:
    """The whole report."""
    states = table(
        ("check", "", "seconds", "why"),
        [(one["name"], one["state"], one["seconds"], one["why"]) for one in outcomes],
    )
    found = {one["name"]: one["figures"] for one in outcomes if one["figures"]}
    parts = [f"# GPU acceptance\n\n{_machine(facts, found)}", states, speed(found), memory(found)]
    parts += [_figures(name, found[name]) for name in found if not name.startswith(("512", "1024", "plan"))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(facts: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    name = found.get("machine", {}).get("name", "")
    where = f"{facts['device']} {name}".strip()
    return f"A rehearsal with tiny bases on {where}." if facts["rehearsal"] else f"On {where}."


def speed(found: Mapping[str, Any]) -> str:
    """Steps of each run beside the plain loop's, and the share of what the device can multiply."""
    rows = []
    for case in (one for one in CASES if one.title in found):
        own, plain = found[case.title], found.get(f"{case.resolution} px: plain loop", {})
        step, key = own["seconds_per_step"], plain_key(case.batch_size, CHECKPOINTING in case.machine)
        other = plain.get(key)
        rate = found.get("machine", {}).get(f"tflops_{case.dtype}")
        work = plain.get("tflop_of_a_step_batch_1")
        share = f"{case.batch_size * work / step / rate:.0%}" if work and rate else ""
        started = own["seconds_to_first_step"]
        times = f"{other / step:.2f}" if other else ""
        rows.append(
            (
                case.title,
                own["steps_per_second"],
                round(1000 * step, 1),
                times,
                share,
                started,
            )
        )
    header = (
        "run",
        "steps / s",
        "ms a step",
        "times the plain loop",
        "of the matrix rate",
        "s to the first step",
    )
    return table(header, rows) if rows else ""


def memory(found: Mapping[str, Any]) -> str:
    """GiB on the device at most in each phase, and behind the stroke what was planned."""
    rows = []
    for case in CASES:
        peaks = found.get(case.title, {}).get("peak_gib", {})
        planned = found.get(plan_title(case), {})
        if not peaks and not planned:
            continue
        rows.append((case.title, *(_beside(peaks.get(phase), planned.get(phase)) for phase in PHASES)))
    return table(("GiB, measured / planned", *PHASES), rows) if rows else ""


def _beside(measured: float | None, planned: float | None) -> str:
    one, other = ("-" if value is None else f"{value:.2f}" for value in (measured, planned))
    return f"{one} / {other}"


def _figures(name: str, figures: Mapping[str, Any]) -> str:
    return table((name, ""), list(figures.items()))
