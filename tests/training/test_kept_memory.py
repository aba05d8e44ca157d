"""A step finds the memory of the one before: counted in pages, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from memory import needs_proc

PAGES_OF_16_MB = 4096
# Blocks as a step of a small model asks for and frees them, the last of them at the end of the heap.
PROGRAM = """
import resource, sys
import torch
from lora_studio.training.kept_memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def step():
    blocks = [torch.ones(2**20) for _ in range(4)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@needs_proc
def test_what_a_step_has_freed_is_there_for_the_next_one() -> None:
    assert new_pages("kept") < PAGES_OF_16_MB / 10 < new_pages("as it is")
