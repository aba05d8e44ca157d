"""LoRA files with one thing wrong in each, from a seed, and what inspect, verify and combine make of them."""

from __future__ import annotations

import io
import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from trying import in_one_line, tried

from lora_studio.console import Screen
from lora_studio.console.inspect import print_facts, print_folder
from lora_studio.lora_file.open import open_plain
from lora_studio.tools.combine import CombineReport, Term, combine
from lora_studio.tools.inspect import Damaged, Facts, inspect_file, inspect_folder
from lora_studio.verify import verify

QUIET = Screen(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), width=100)
NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_mid_block_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
ENDINGS = (
    *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "diff", "w_norm"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_t1", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_t2"),
    *("oft_blocks", "lora_A.weight", "lora_B.weight", "rescale", "", "nothing"),
)
NUMBERS = (0, 1, 2, 3, -1, 2**31, 2**63, 2**64, 10**30, 1.5, True, None, "2", [], {}, float("nan"))
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I8", "U64", "U16", "BOOL", "F4")


def whole_files() -> list[bytes]:
    """One of every kind, small."""
    lora = {
        f"{NAME}.lora_down.weight": torch.randn(4, 768).half(),
        f"{NAME}.lora_up.weight": torch.randn(320, 4).half(),
        f"{NAME}.alpha": torch.tensor(2.0),
        f"{CONV}.lora_down.weight": torch.randn(2, 16, 3, 3).half(),
        f"{CONV}.lora_up.weight": torch.randn(16, 2, 1, 1).half(),
        f"{CONV}.alpha": torch.tensor(2.0),
        f"{TEXT}.lora_down.weight": torch.randn(4, 768),
        f"{TEXT}.lora_up.weight": torch.randn(768, 4),
        f"{TEXT}.alpha": torch.tensor(2.0),
    }
    loha = {f"{NAME}.hada_w{n}_{s}": torch.randn(*((320, 4), (4, 768))[s == "b"]) for n in "12" for s in "ab"}
    lokr = {
        f"{NAME}.lokr_w1": torch.randn(8, 8),
        f"{NAME}.lokr_w2_a": torch.randn(40, 2),
        f"{NAME}.lokr_w2_b": torch.randn(2, 96),
        f"{NAME}.alpha": torch.tensor(1.0),
    }
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    peft = {f"{path}.lora_A.weight": torch.randn(4, 768), f"{path}.lora_B.weight": torch.randn(1280, 4)}
    other = {f"{NAME}.diff": torch.randn(320, 768), f"{NAME}.diff_b": torch.randn(320)}
    embedding = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
    said = {"ss_tag_frequency": '{"a": {"b": 1}}', "ss_base_model_version": "sd_v1"}
    every: list[dict[str, Tensor]] = [lora, lora | loha, loha, lokr, peft, other, embedding]
    return [save(one, metadata=said) for one in every]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A file with one thing wrong."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    return draw.choice((_bytes, _length, _cut, _numbers, _header, _header, _header))(header, data, draw)


def packed(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def _bytes(header: Any, data: bytes, draw: random.Random) -> bytes:
    """Some bytes of length and header."""
    content = bytearray(packed(header, data))
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(len(content) - len(data))] = draw.randrange(256)
    return bytes(content)


def _length(header: Any, data: bytes, draw: random.Random) -> bytes:
    content = packed(header, data)
    length = len(content) - 8 - len(data)
    wrong = draw.choice((0, 1, length - 1, length + 1, length + 8, len(content), 2**32, 2**63, 2**64 - 1))
    return struct.pack("<Q", wrong) + content[8:]


def _cut(header: Any, data: bytes, draw: random.Random) -> bytes:
    content = packed(header, data)
    return content[: draw.randrange(len(content))] if draw.random() < 0.8 else content + b"\0" * 9


def _numbers(header: Any, data: bytes, draw: random.Random) -> bytes:
    """Bits of the tensors: some become infinite or no number."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 100, 5000))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return packed(header, bytes(changed))


def _header(header: Any, data: bytes, draw: random.Random) -> bytes:
    """A name, shape, dtype, place or the metadata; some so that the header stays right in itself."""
    key = draw.choice([name for name in header if name != "__metadata__"])
    entry = header[key]
    what = draw.randrange(8)
    if what == 0:
        header[f"{key.partition('.')[0]}.{draw.choice(ENDINGS)}"] = header.pop(key)
    elif what == 1:
        total = math.prod(entry["shape"])
        sides = [one for one in (1, 2, 3, 4, 8, 16, total) if total % one == 0]
        side = draw.choice(sides)
        entry["shape"] = draw.choice(([total], [side, total // side], [1, side, total // side, 1], [side]))
    elif what == 2:
        entry["dtype"] = draw.choice(DTYPES)
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        entry["shape"] = draw.choice((entry["shape"], [size], [size // 2], [size // 8, 1], [size // 4]))
    elif what == 3:
        entry["shape"] = [draw.choice(NUMBERS) for _ in range(draw.randint(0, 10))]
    elif what == 4:
        entry["data_offsets"] = [draw.choice((*NUMBERS, *entry["data_offsets"])) for _ in range(2)]
    elif what == 5:
        del header[key]
    elif what == 6:
        header[
            draw.choice(("a" * 600, "\x1b[31m", "", "\ud800", "lora_unet_.alpha", "é", "bundle_emb.x"))
        ] = entry
    else:
        deep = "[" * 5000
        header["__metadata__"] = draw.choice(
            (
                *NUMBERS,
                {"ss_tag_frequency": deep},
                {"ss_tag_frequency": '{"a": {"b": 1e999}}'},
                {"ss_tag_frequency": '{"a": {"b": "\\ud800", "\\ud800": 2}}'},
                {"long": "x" * 3_000_000},
                {f"{number}": "y" for number in range(30_000)},
                {"modelspec.trigger_phrase": "\x1b[2J\ud800"},
            )
        )
    return packed(header, data)


def run(folder: Path, numbers: range) -> tuple[dict[str, int], list[str]]:
    """How many were accepted and refused, and what went wrong otherwise."""
    torch.manual_seed(0)
    sources, counts, crashes = whole_files(), {"accepted": 0, "refused": 0}, []
    path = folder / "file.safetensors"
    for number in numbers:
        draw = random.Random(number)
        path.write_bytes(damaged(draw.choice(sources), draw))
        for look in (_inspect, verify, _list, _combine):
            with tried(str(number), counts, crashes, is_said=in_one_line(1000)):
                json.dumps(look(path).to_json()).encode()
                counts["accepted"] += 1
    return counts, crashes


def _inspect(path: Path) -> Facts:
    """And print it."""
    facts = inspect_file(path)
    print_facts(facts, QUIET)
    return facts


def _combine(path: Path) -> CombineReport:
    """With itself, and at another strength."""
    one = open_plain(path)
    out = path.with_name("out.safetensors")
    return combine([Term(one, 1.0), Term(one, -0.5)], out, method="concat", dtype="float32")


def _list(path: Path) -> Facts | Damaged:
    """As one of a folder, which never stops at it."""
    found = inspect_folder(path.parent)
    print_folder(found, QUIET)
    return found[0]
