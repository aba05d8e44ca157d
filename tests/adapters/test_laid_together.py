"""Layers that are laid together are in main memory once, also while that is done."""

from __future__ import annotations

from memory import needs_proc, said_alone

LAY = """
import torch
from lora_studio.adapters.stack import Joined
from lora_studio.training.machine import keep_freed_memory
keep_freed_memory()  # as a run on a CPU does
layers = [torch.nn.Parameter(torch.ones(1280, 1280)) for _ in range(60)]  # 6.5 MB each, 393 MB
others = [torch.zeros(100) for _ in range(60)]
before = peak_bytes()
whole = Joined(layers)
assert all(bool((one == 1).all()) for one in layers[::20])
print(json.dumps([before, peak_bytes(), whole.whole.nbytes]))
"""


@needs_proc
def test_layers_that_are_laid_together_are_not_there_twice() -> None:
    before, peak, size = said_alone(LAY)
    assert size > 390e6
    assert peak - before < size / 2
