"""A step finds the memory of the one before: counted in pages, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from memory import needs_proc

# Beyond 32 MiB the C library gives every block back by itself. Each one fits into what the last one left.
PROGRAM = """
import resource
import torch
from lora_studio.training.machine import keep_freed_memory
def new_pages():
    torch.ones(2**26)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for number in range(5):
        torch.ones(2**24 - 2**16 * number)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
new_pages()
assert keep_freed_memory()
new_pages()
"""


@needs_proc
def test_what_a_step_has_freed_is_there_for_the_next_one() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    as_it_is, kept = map(int, done.stdout.split())
    assert 10 * kept < as_it_is
