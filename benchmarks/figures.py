"""Shares with bootstrap intervals, pass or fail, the machine they were measured on, and markdown tables."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

_RESAMPLES = 4000


@dataclass(frozen=True)
class Share:
    """A share (or a difference of shares) over prompts, and the ends of its bootstrap 95 % interval."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Criterion:
    """A demand on a figure, and whether it is met."""

    name: str
    value: float
    demand: str
    passed: bool


def at_least(name: str, value: float, limit: float) -> Criterion:
    """Passed if value >= limit."""
    return Criterion(name, round(value, 4), f">= {limit:g}", value >= limit)


def at_most(name: str, value: float, limit: float) -> Criterion:
    """Passed if value <= limit."""
    return Criterion(name, round(value, 4), f"<= {limit:g}", value <= limit)


def interval_of(values: npt.NDArray[np.float64]) -> Share:
    """The mean of one value per prompt; prompts are resampled with replacement, always by the same draws."""
    rows = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), (0.025, 0.975))
    return Share(*(round(float(x), 4) for x in (values.mean(), low, high)))


def share_of(hits: Sequence[bool]) -> Share:
    """How many of the hits are true."""
    return interval_of(np.asarray(hits, np.float64))


def difference_of(hits: Sequence[bool], others: Sequence[bool]) -> Share:
    """The share of `hits` less that of `others`, paired by prompt."""
    return interval_of(np.asarray(hits, np.float64) - np.asarray(others, np.float64))


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, str | int]:
    """The kind of machine and the versions; nothing that names this one."""
    packages = {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")}
    facts: dict[str, str | int] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "system": platform.system(),
    }
    return facts | {"python": platform.python_version()} | packages


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def criteria_table(criteria: Sequence[Criterion]) -> str:
    """The criteria as a markdown table."""
    rows = [(c.name, f"{c.value:g}", c.demand, "pass" if c.passed else "FAIL") for c in criteria]
    return table(("criterion", "measured", "demanded", ""), rows)


def write_json(report: dict[str, object], path: Path) -> None:
    """The report, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, path)


def two_trees(description: str) -> argparse.ArgumentParser:
    """The command line of what measures a source tree `before` and another one `after`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "before", type=Path, help="a source tree: the folder that holds lora_studio/ and recipes/"
    )
    parser.add_argument("after", type=Path, help="another one")
    return parser
