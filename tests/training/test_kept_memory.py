"""A step finds the memory of the one before: counted in pages, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from memory import needs_proc

# Blocks as a step asks for and frees them: together more than the C library keeps by itself.
PROGRAM = """
import resource, sys
import torch
from lora_studio.training.kept_memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def rounds(count):
    for _ in range(count):
        blocks = [torch.ones(2**21 + 1000 * number) for number in range(8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = rounds(10)
print(rounds(10) - before)
"""


def new_pages(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@needs_proc
def test_what_a_step_has_freed_is_there_for_the_next_one() -> None:
    assert 10 * new_pages("kept") < new_pages("as it is")
