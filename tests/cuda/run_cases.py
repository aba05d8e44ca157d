"""Runs cases where a GPU is pretended: a line of JSON for each, in a file of each process that shares them.

`run_cases.py FOLDER PROCESSES [slow]`
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from audit import Audit
from cases import cases, offloaded_cases, slow_cases, write_images
from drive import drive
from pretend import pretended_cuda
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from waits import WAITS_AND_NOT

gc.disable()  # a fifth of the time; each run is searched for garbage when it is over
gc.freeze()  # what was imported need not be
home, processes = Path(sys.argv[1]), int(sys.argv[2])
part = next((number for number in range(1, processes) if os.fork() == 0), 0)  # all have the same imports
os.environ["LORA_STUDIO_CACHE"] = str(home / f"cache_{part}")
with (home / f"{part}.jsonl").open("w") as file:
    for number, case in enumerate(slow_cases() if "slow" in sys.argv else (*cases(), *offloaded_cases())):
        if number % processes != part:
            continue
        with TemporaryDirectory() as folder:
            write_images(Path(folder))
            recipe, began = case.recipe(Path(folder)), time.process_time()
            asked: dict[str, Any] = {"capability": case.capability, "plans": case.plans, "times": case.times}
            asked["count_bytes"] = bool(case.offloaded)
            outcome = drive(case.family, recipe, Path(folder), **asked)
        seconds = round(time.process_time() - began, 2)
        print(json.dumps({"name": case.name, "seconds": seconds} | asdict(outcome)), file=file)
        gc.collect()
    for name, line in WAITS_AND_NOT.items() if part == 0 else ():
        audit = Audit()
        # without numbers the number of rows is unknown, which is an error then
        with pretended_cuda(audit), audit.of_step(1), suppress(DynamicOutputShapeException):
            line()
        print(json.dumps({"name": name, "blocking": dict(audit.found)}), file=file)
if part == 0 and any([os.wait()[1] for _ in range(1, processes)]):
    sys.exit("another of the processes failed")
