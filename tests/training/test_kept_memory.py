"""A step finds the memory of the one before: counted in pages, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from memory import needs_proc

# Beyond 32 MiB the C library gives every block back by itself. Each one fits into what the last one left.
PROGRAM = """
import resource, sys
import torch
from lora_studio.training.machine import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**26)
before = pages()
for number in range(5):
    torch.ones(2**24 - 2**16 * number)
print(pages() - before)
"""


def new_pages(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@needs_proc
def test_what_a_step_has_freed_is_there_for_the_next_one() -> None:
    assert 10 * new_pages("kept") < new_pages("as it is")
