"""The first day on a GPU: everything that the project claims of one, in one command and under nine minutes.

`python benchmarks/gpu_acceptance.py` needs the repository and its packages alone: bases have random weights
at published sizes, made on the device, and the pocket base is what learns. Whole runs are trained, verified
and measured at 512 and 1024 pixels, in each precision, quantised, checkpointed and compiled, beside a plain
loop of diffusers with PEFT and beside the memory that was planned; options are tried, and a run is killed
and resumed. Results lie in `--out` as JSON and Markdown after every check, so that a stop loses nothing. A
check that fails, hangs or takes its process with it does not end the others. The exit status is 0 if all
that was tried is right, and 1 otherwise. `--rehearse` runs the same to its end on a CPU, with tiny bases.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import torch
from figures import table
from gpu_cases import GIB, Bench
from gpu_checks import checks_of
from gpu_report import markdown
from guarded import LOG, NOT_HERE, Book, Check, Outcome, supervise, work_off

from lora_studio.quiet import quiet_libraries

MINUTES = 8.8
USABLE = 0.95  # of the device's memory
MANY_CORES = 8  # from which on planning beside the runs does not slow them
GPUS_GIB = (8.0, 139.0)  # whose agenda a rehearsal prints


def too_large(check: Check, gib: float) -> str:
    """Why a check is left out on a device with so much memory; empty if it is not."""
    if check.gib <= USABLE * gib:
        return ""
    return f"it takes about {check.gib:g} GiB, and the device has {gib:.0f}"


def agenda(checks: Sequence[Check], gib: float) -> str:
    """What would be run on a GPU with so much memory, as a table."""
    rows = [(one.name, one.seconds, one.gib or "", too_large(one, gib) or "runs") for one in checks]
    seconds = sum(one.seconds for one in checks if not (one.beside or too_large(one, gib)))
    title = f"On a GPU with {gib:g} GiB, about {seconds / 60:.1f} minutes on a fast one:"
    return f"{title}\n\n{table(('check', 'seconds', 'GiB', ''), rows)}\n"


def run_all(checks: Sequence[Check], bench: Bench, minutes: float) -> bool:
    """All of them, group by group; whether nothing failed."""
    until = time.monotonic() + 60 * minutes
    cuda = bench.device.type == "cuda"
    gib = torch.cuda.mem_get_info(bench.device)[1] / GIB if cuda else float("inf")
    book = Book(bench.folder, checks, markdown, {"rehearsal": bench.rehearsal, "device": str(bench.device)})
    command = [
        sys.executable,
        __file__,
        "--out",
        str(bench.folder),
        *(["--rehearse"] if bench.rehearsal else []),
    ]

    def start(names: list[str]) -> subprocess.Popen[bytes]:
        with (bench.folder / LOG).open("ab") as log:
            return subprocess.Popen([*command, "--worker", *names], stdout=log, stderr=log)

    fitting: dict[str, list[Check]] = {}
    for check in checks:
        if why := too_large(check, gib):
            book.enter(Outcome(check.name, NOT_HERE, why=why))
        else:
            fitting.setdefault(check.group, []).append(check)
    beside = [
        Thread(target=supervise, args=(group, book, start, until))
        for group in fitting.values()
        if group[0].beside
    ]
    parallel = (os.cpu_count() or 1) >= MANY_CORES
    for thread in beside if parallel else ():
        thread.start()
    for group in (one for one in fitting.values() if not one[0].beside):
        supervise(group, book, start, until)
    for thread in beside:
        if not parallel:
            thread.start()
        thread.join()
    book.write()
    print(f"results: {bench.folder / 'results.md'} and results.json; what was said: {LOG}")
    return book.ok


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="a new folder; default: runs/gpu_acceptance-<time>")
    parser.add_argument("--rehearse", action="store_true", help="in small, on the CPU")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"for everything; {MINUTES} by default"
    )
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="checks whose name holds one of these")
    parser.add_argument("--agenda", nargs="+", type=float, metavar="GIB", help="say what would run, and end")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.agenda:
        everything = checks_of(Bench(Path(), rehearsal=True))
        print("\n".join(agenda(everything, gib) for gib in options.agenda))
        return
    folder = options.out or Path("runs") / time.strftime("gpu_acceptance-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("LORA_STUDIO_CACHE", str((folder / "cache").resolve()))
    bench = Bench(folder.resolve(), options.rehearse)
    checks = checks_of(bench)
    if options.worker:
        work_off(options.worker, checks, bench.folder)
        return
    if bench.rehearsal:
        print("\n".join(agenda(checks, gib) for gib in GPUS_GIB))
    asked = [one for one in checks if any(text in one.name for text in options.only or [""])]
    sys.exit(0 if run_all(asked, bench, options.minutes) else 1)


if __name__ == "__main__":
    main()
