"""bitsandbytes' linear layer of 4 bits, read rightly on every processor."""

from __future__ import annotations

import copy

import bitsandbytes
import torch
import torch.nn.functional as F
from torch import Tensor


class OneRowLinear4bit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
    """Its weight is read as one long row where it lies in main memory.

    On processors with AVX512 bitsandbytes (0.50) gives the numbers of a row the scales of other blocks if the
    row is no whole number of blocks: where rows differ in size, a weight 96 wide comes out with an error of
    0.28 or more instead of 0.09. Such layers of a miniature are kept in float32 until the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in the dtype of x."""
        weight = self.weight
        if weight.device.type != "cpu" or self.in_features % weight.blocksize == 0:
            answer: Tensor = super().forward(x)
            return answer
        state = copy.copy(weight.quant_state)
        state.shape = torch.Size([self.out_features * self.in_features])
        dtype = self.compute_dtype or x.dtype
        row = bitsandbytes.functional.dequantize_4bit(weight.data, state).to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(x.to(dtype), row.view(self.out_features, self.in_features), bias).to(x.dtype)
