"""Runs cases where a GPU is pretended, some of so many parts of them: a line of JSON for each.

`run_cases.py PART PARTS [slow]`
"""

from __future__ import annotations

import gc
import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from audit import Audit
from cases import cases, slow_cases, write_images
from drive import drive
from pretend import pretended_cuda
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from waits import WAITS_AND_NOT

gc.freeze()  # what was imported need not be searched for garbage again and again
part, parts = map(int, sys.argv[1:3])
for number, case in enumerate(slow_cases() if "slow" in sys.argv else cases()):
    if number % parts != part:
        continue
    with TemporaryDirectory() as folder:
        write_images(Path(folder))
        recipe, began = case.recipe(Path(folder)), time.process_time()
        asked: dict[str, Any] = {"capability": case.capability, "plans": case.plans, "times": case.times}
        outcome = drive(case.family, recipe, Path(folder), **asked)
    seconds = round(time.process_time() - began, 2)
    print(json.dumps({"name": case.name, "seconds": seconds} | asdict(outcome)), flush=True)

for name, line in WAITS_AND_NOT.items():
    audit = Audit()
    # without numbers the number of rows is unknown, which is an error then
    with pretended_cuda(audit), audit.of_step(1), suppress(DynamicOutputShapeException):
        line()
    print(json.dumps({"name": name, "blocking": dict(audit.found)}), flush=True)
