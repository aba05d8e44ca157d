"""Files whose weights have 8 bits: those of one scale a tensor are multiplied, all others refused by name.

`fp8_scaled`, as ComfyUI and Kijai's scripts write it: beside `X.weight` in float8 lies `X.weight_scale` (or
`X.scale_weight`), and the weight is their product; marks are a tensor `scaled_fp8` or, of each layer,
`X.comfy_quant`, which holds JSON. Read as if there were no scale, such weights are noise.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from lora_studio.errors import BaseModelError
from lora_studio.families.original.checkpoint import Checkpoint

SCALES = (".weight_scale", ".scale_weight")
_INPUTS = (".input_scale", ".scale_input")  # of activations, for kernels that multiply in 8 bits
_MARK, _LAYER_MARK = "scaled_fp8", ".comfy_quant"
_READABLE = ("float8_e4m3fn", "float8_e5m2")
_OTHERS = (  # tensors, the format
    (r"\.weight_scale_2$", "NVFP4"),
    (r"\.quant_state\.bitsandbytes__|\.weight\.(absmax|quant_map)$", "bitsandbytes (NF4)"),
    (r"\.(qweight|wscales|smooth_factor|wtscale)$", "SVDQuant (Nunchaku)"),
    (r"\.(weight_)?(qzeros|g_idx)$", "GPTQ"),
    (r"\.SCB$", "LLM.int8()"),
    (r"\.weight_codebook$", "a codebook's"),
)
INSTEAD = "take the file in bf16, fp16, fp8 or fp8_scaled"


def in_plain_numbers(file: Checkpoint) -> Checkpoint:
    """The file as one without scales, its weights multiplied where they are read.

    Raises BaseModelError that names a format which is not read.
    """
    name = file.path.name
    for pattern, format_name in _OTHERS:
        if any(re.search(pattern, key) for key in file.shapes):
            raise _refusal(name, format_name)
    marked = [key for key in file.shapes if key.endswith(_LAYER_MARK)]
    for format_name in _formats(file, marked):
        if format_name not in _READABLE:
            raise _refusal(name, _printable(format_name).upper())
    scales = dict(_scales(file))
    for key, dtype in file.dtypes.items():
        if dtype in ("int8", "uint8") and key.endswith(".weight"):
            raise _refusal(name, "whole numbers of 8 bits")
    beside = {*scales.values(), *marked, *(key for key in file.shapes if _is_beside(key))}
    if not beside:
        return file
    shapes = {key: shape for key, shape in file.shapes.items() if key not in beside}
    return replace(file, shapes=shapes, scales=scales)


def _is_beside(key: str) -> bool:
    return key.endswith(_INPUTS) or key == _MARK or key.endswith(f".{_MARK}")


def _scales(file: Checkpoint) -> list[tuple[str, str]]:
    found = []
    for key, shape in file.shapes.items():
        ending = next((one for one in SCALES if key.endswith(one)), None)
        if ending is None:
            continue
        weight = f"{key.removesuffix(ending)}.weight"
        rows = file.shapes.get(weight, ())[:1]
        if not rows or file.dtypes.get(weight, "float8").startswith("float8") is False:
            raise BaseModelError(
                f"{file.path.name} has the scale {key} of no weight in 8 bits; download it again."
            )
        if shape not in ((), (1,), rows, (*rows, 1), (1, 1)):
            raise _refusal(file.path.name, "MXFP8 or another of scales by blocks")
        found.append((weight, key))
    return found


def _formats(file: Checkpoint, marks: list[str]) -> set[str]:
    """That the layers' marks name."""
    if not marks:
        return set()
    found = set()
    with file.values() as value:
        for mark in marks:
            try:
                found.add(str(json.loads(bytes(value(mark).tolist()))["format"]))
            except (ValueError, KeyError, TypeError):
                raise _refusal(file.path.name, f"a format that {mark} does not name") from None
    return found


def _printable(word: str) -> str:
    return re.sub(r"[^\w.-]", "?", word)[:40]


def _refusal(name: str, format_name: str) -> BaseModelError:
    return BaseModelError(
        f"{name} has its weights in {format_name}, which cannot be trained on; {INSTEAD} of the same base."
    )
