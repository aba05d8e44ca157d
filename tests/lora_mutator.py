"""LoRA files of every kind and spelling with one or two things wrong, from a seed; what is made of them.

The layers are of the pocket base, so that changes which depend on a base's weights are computed, too.
"""

from __future__ import annotations

import json
import random
import re
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import torch
from fuzzing import QUIET, damaged, packed
from safetensors.torch import save, save_file
from torch import Tensor
from trying import in_one_line, tried

from lora_studio.console.inspect import print_facts, print_report
from lora_studio.console.tools import print_combined, print_comparison, print_converted, print_resized
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.lora_file.convertible import read_any
from lora_studio.lora_file.factors import RankLimit
from lora_studio.lora_file.open import open_plain, open_together
from lora_studio.tools.combine import Term, combine, resize
from lora_studio.tools.compare import compare
from lora_studio.tools.convert import convert
from lora_studio.tools.inspect import inspect_file
from lora_studio.verify import verify

Tensors = dict[str, Tensor]
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
SHAPES = {  # (part, path) -> shape of the weight
    ("unet", f"{ATTENTION}.to_k"): (64, 96),
    ("unet", f"{ATTENTION}.to_out.0"): (64, 64),
    ("unet", "down_blocks.1.attentions.0.proj_in"): (64, 64, 1, 1),
    ("unet", "down_blocks.1.resnets.1.conv1"): (64, 64, 3, 3),
    ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj"): (96, 96),
}
RANK, SECONDS = 4, 20.0
Shape = tuple[int, ...]


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.1


def _lora(shape: Shape) -> Tensors:
    out, *rest = shape
    down, up = _random(RANK, *rest), _random(out, RANK, *(1 for _ in rest[1:]))
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)}


def _mid(shape: Shape) -> Tensors:
    """A convolution in three parts; of a linear layer in two."""
    if len(shape) == 2:
        return _lora(shape)
    down, up = _random(RANK, shape[1], 1, 1), _random(shape[0], RANK, 1, 1)
    middle = _random(RANK, RANK, *shape[2:])
    return {
        "lora_down.weight": down,
        "lora_mid.weight": middle,
        "lora_up.weight": up,
        "alpha": torch.tensor(2.0),
    }


def _loha(shape: Shape, *, core: bool = False) -> Tensors:
    out, inputs = shape[0], shape[1:].numel() if isinstance(shape, torch.Size) else _count(shape[1:])
    found = {"alpha": torch.tensor(1.0)}
    for number in "12":
        if core and len(shape) == 4:
            found |= {f"hada_w{number}_a": _random(RANK, out), f"hada_w{number}_b": _random(RANK, shape[1])}
            found[f"hada_t{number}"] = _random(RANK, RANK, *shape[2:])
        else:
            found |= {f"hada_w{number}_a": _random(out, RANK), f"hada_w{number}_b": _random(RANK, inputs)}
    return found


def _count(shape: Shape) -> int:
    return torch.Size(shape).numel()


def _lokr(shape: Shape, *, how: str = "half") -> Tensors:
    out, inputs, kernel = shape[0] // 4, shape[1] // 4, shape[2:]
    first = {"lokr_w1": _random(4, 4)}
    if how == "whole":
        return first | {"lokr_w2": _random(out, inputs, *kernel), "alpha": torch.tensor(float("inf"))}
    if how == "both":
        first = {"lokr_w1_a": _random(4, 2), "lokr_w1_b": _random(2, 4)}
    second = {"lokr_w2_a": _random(out, RANK), "lokr_w2_b": _random(RANK, inputs * _count(kernel))}
    if how == "core" and kernel:
        second = {"lokr_w2_a": _random(RANK, out), "lokr_w2_b": _random(RANK, inputs)}
        second["lokr_t2"] = _random(RANK, RANK, *kernel)
    return first | second | {"alpha": torch.tensor(1.0)}


def _glora(shape: Shape) -> Tensors:
    inputs = shape[1]
    found = {"a1.weight": _random(inputs, RANK), "a2.weight": _random(RANK, inputs)}
    found |= {"b1.weight": _random(shape[0], RANK), "b2.weight": _random(RANK, _count(shape[1:]))}
    return found | {"alpha": torch.tensor(1.0)}


KINDS: dict[str, Callable[[Shape], Tensors]] = {
    "lora": _lora,
    "lora without alpha": lambda s: {end: one for end, one in _lora(s).items() if end != "alpha"},
    "mid": _mid,
    "dora of outputs": lambda s: _lora(s) | {"dora_scale": torch.ones(s[0], *(1 for _ in s[1:]))},
    "dora of inputs": lambda s: _lora(s) | {"dora_scale": torch.ones(1, s[1], *(1 for _ in s[2:]))},
    "loha": _loha,
    "loha with a core": lambda s: _loha(s, core=True),
    "lokr": _lokr,
    "lokr of whole factors": lambda s: _lokr(s, how="whole"),
    "lokr of four factors": lambda s: _lokr(s, how="both"),
    "lokr with a core": lambda s: _lokr(s, how="core"),
    "loha with dora": lambda s: _loha(s) | {"dora_scale": torch.ones(s[0], *(1 for _ in s[1:]))},
    "oft": lambda s: {"oft_blocks": _random(4, s[0] // 4, s[0] // 4), "alpha": torch.tensor(1e-3)},
    "oft with rescale": lambda s: (
        {"oft_blocks": _random(4, s[0] // 4, s[0] // 4), "alpha": torch.tensor(0.0)}
        | {"rescale": torch.ones(s[0], *(1 for _ in s[1:]))}
    ),
    "glora": _glora,
    "full": lambda s: {"diff": _random(*s), "diff_b": _random(s[0])},
    "set": lambda s: {"set_weight": _random(*s)},
    "lora and biases": lambda s: _lora(s) | {"diff_b": _random(s[0])},
}
ORIGINAL = {
    "down_blocks.1.attentions.0": "input_blocks.4.1",
    "down_blocks.1.resnets.1.conv1": "input_blocks.5.0.in_layers.2",
}


def _original(path: str) -> str:
    for ours, theirs in ORIGINAL.items():
        path = path.replace(ours, theirs)
    return path


def _kohya(part: str, path: str, prefix: str = "lora_te_") -> str:
    return ("lora_unet_" if part == "unet" else prefix) + path.replace(".", "_")


_LETTERS = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}


def _peft(start: str = "", adapter: str = "") -> Callable[[str, str, str], str]:
    def spell(part: str, path: str, end: str) -> str:
        end = (
            "lora_magnitude_vector.weight" if end == "dora_scale" and not adapter else _LETTERS.get(end, end)
        )
        return f"{start}{part}.{path}.{end.replace('.weight', f'{adapter}.weight')}"

    return spell


def _processor(start: str) -> Callable[[str, str, str], str]:
    """diffusers before PEFT; kinds that it never had keep their endings."""

    def spell(part: str, path: str, end: str) -> str:
        path = path if part == "unet" else f"text_encoder.{path}"
        if end not in _LETTERS:
            return f"{start if part == 'unet' else ''}{path}.{end}"
        end = end.replace("lora_", "")
        if part != "unet":
            return f"{path}.lora_linear_layer.{end}"
        block, _, last = path.removesuffix(".0").rpartition(".")
        if "attn" in block.rpartition(".")[2]:
            return f"{start}{block}.processor.{last}_lora.{end}"
        return f"{start}{path}.lora.{end}"

    return spell


def _comfy(part: str, path: str, end: str) -> str:
    if part == "unet":
        return f"diffusion_model.{_original(path)}.{end}"
    return f"text_encoders.clip_l.transformer.{path}.{end}"


SPELLINGS: dict[str, Callable[[str, str, str], str]] = {
    "kohya": lambda part, path, end: f"{_kohya(part, path)}.{end}",
    "te1": lambda part, path, end: f"{_kohya(part, path, 'lora_te1_')}.{end}",
    "SAI's names": lambda part, path, end: f"{_kohya(part, _original(path))}.{end}",
    "lettered": lambda part, path, end: f"{_kohya(part, path)}.{_LETTERS.get(end, end)}",
    "peft": _peft(),
    "peft with an adapter": _peft("", ".default"),
    "peft's own": _peft("base_model.model."),
    "processors": _processor("unet."),
    "processors without unet": _processor(""),
    "ComfyUI's extract": _comfy,
    "lycoris": lambda part, path, end: f"lycoris_{path.replace('.', '_')}.{end}",
}


def whole_file(kind: str, spelling: str, extra: str) -> tuple[Tensors, dict[str, str]]:
    """All layers of a kind in a spelling, and what stands beside them."""
    torch.manual_seed(0)
    spell, tensors = SPELLINGS[spelling], {}
    for (part, path), shape in SHAPES.items():
        made = {spell(part, path, end): one for end, one in KINDS[kind](shape).items()}
        tensors |= made
    metadata = {"ss_base_model_version": "sd_v1"}
    return EXTRAS[extra](tensors, metadata, kind), metadata


Extra = Callable[[Tensors, dict[str, str], str], Tensors]


def _twice(tensors: Tensors, metadata: dict[str, str], kind: str) -> Tensors:
    """One layer under another name, too."""
    (part, path), shape = next(iter(SHAPES.items()))
    other = "peft" if any(key.startswith("lora_") for key in tensors) else "kohya"
    return tensors | {SPELLINGS[other](part, path, end): one for end, one in KINDS[kind](shape).items()}


def _said(metadata: dict[str, str], **values: object) -> None:
    metadata["lora_adapter_metadata"] = json.dumps(values)


def _patterns(tensors: Tensors, metadata: dict[str, str], kind: str) -> Tensors:
    _said(metadata, **{"unet.lora_alpha": 8, "unet.r": RANK, "unet.alpha_pattern": {f"{ATTENTION}.to_k": 16}})
    return tensors


def _first(tensors: Tensors) -> str:
    return next(iter(tensors)).partition(".")[0]


EXTRAS: dict[str, Extra] = {
    "nothing": lambda t, m, k: t,
    "half precision": lambda t, m, k: {key: one.half() for key, one in t.items()},
    "bfloat16": lambda t, m, k: {key: one.bfloat16() for key, one in t.items()},
    "fp8": lambda t, m, k: {key: one.to(torch.float8_e4m3fn) for key, one in t.items()},
    "fp8 e5m2 and alphas in float": lambda t, m, k: {
        key: one if key.endswith("alpha") else one.to(torch.float8_e5m2) for key, one in t.items()
    },
    "OneTrainer's": lambda t, m, k: (
        t | {"bundle_emb.word.string_to_param.*": torch.ones(2, 96), f"{_first(t)}.scalar": torch.tensor(1.0)}
    ),
    "norms": lambda t, m, k: (
        t
        | {"lora_unet_down_blocks_1_resnets_0_norm1.w_norm": torch.ones(64)}
        | {"lora_unet_down_blocks_1_resnets_0_norm1.b_norm": torch.ones(64)}
    ),
    "twice": _twice,
    "alphas in the metadata": _patterns,
}


def _keys(tensors: Tensors, draw: random.Random) -> list[str]:
    """One, all of a layer, all of an ending, or all."""
    key = draw.choice(list(tensors))
    stem, end = key.partition(".")[0], key.rpartition(".")[2]
    one = draw.randrange(6)
    if one == 0:
        return list(tensors)
    if one == 1:
        return [name for name in tensors if name.endswith(end)]
    return [name for name in tensors if name.startswith(stem + ".")] if one == 2 else [key]


Change = Callable[[Tensor], Tensor]
VALUES: dict[str, Change] = {
    "no numbers": lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t,
    "one is no number": lambda t: _with_one(t, float("nan")),
    "infinite": lambda t: _with_one(t, float("-inf")),
    "zero": torch.zeros_like,
    "negative": lambda t: (-t.float()).to(t.dtype),
    "huge": lambda t: t.double().mul(1e30).to(torch.float32),
    "huge in long numbers": lambda t: t.double().mul(1e200),
    "tiny": lambda t: t.double().mul(1e-42).to(torch.float32),
    "beyond float16": lambda t: t.float() * 1e6,
    "transposed": lambda t: t.transpose(0, -1).contiguous() if t.ndim > 1 else t,
    "first sides swapped": lambda t: t.transpose(0, 1).contiguous() if t.ndim > 1 else t,
    "a lower rank": lambda t: t[:-1] if t.ndim and len(t) > 1 else t,
    "a narrower side": lambda t: t[..., :-1].contiguous() if t.ndim > 1 else t,
    "another half of the rank": lambda t: t[:, :1].contiguous() if t.ndim > 1 else t,
    "flat": lambda t: t.reshape(-1),
    "without sides": lambda t: t.reshape(t.shape[0], -1) if t.ndim > 1 else t,
    "more sides": lambda t: t[..., None, None],
    "a side before": lambda t: t[None],
    "empty": lambda t: t.reshape(-1)[:0],
    "empty in one side": lambda t: t[:0] if t.ndim else t,
    "one number": lambda t: t.reshape(-1)[:1].reshape(()),
    "whole numbers": lambda t: t.float().nan_to_num(0, 0, 0).long(),
    "bytes": lambda t: torch.ones(t.shape, dtype=torch.int8),
    "truths": lambda t: torch.ones(t.shape, dtype=torch.bool),
    "long numbers": lambda t: t.double(),
    "eight bits": lambda t: t.float().to(torch.float8_e4m3fn),
    "repeated": lambda t: torch.cat([t, t]) if t.ndim else t,
}


def _with_one(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.float().clone()
    changed.view(-1)[:1] = value
    return changed


ALPHAS = (0, -1, 1e-30, 1e30, 1e38, float("nan"), float("inf"), 2, 4096, -0.0)
NAMES = (
    "lora_unet_nothing",
    "unet.double_blocks.0.img",
    "diffusion_model.nothing",
    "lora_te3_x",
    "",
    "lycoris_",
)
ADAPTERS = (
    {"unet.lora_alpha": "x"},
    {"unet.alpha_pattern": [1]},
    {"unet.alpha_pattern": {"(": 1e999}},
    {"unet.lora_alpha": float("nan")},
    {"unet.lora_alpha": 0},
    {"unet.use_rslora": True, "unet.lora_alpha": 1e30},
    [1],
    None,
    {"lora_alpha": {"a": 1}},
)


def changed(tensors: Tensors, metadata: dict[str, str], draw: random.Random) -> str:
    """One thing of tensors, names or metadata; what it is."""
    what = draw.randrange(10)
    if what < 5:
        name = draw.choice(list(VALUES))
        for key in _keys(tensors, draw):
            try:
                tensors[key] = VALUES[name](tensors[key])
            except RuntimeError:  # torch has no such numbers
                tensors[key] = VALUES[name](tensors[key].float())
        return name
    key = draw.choice(list(tensors))
    if what == 5:
        alphas = [one for one in tensors if one.endswith("alpha")] or [key]
        for one in alphas if draw.random() < 0.5 else [draw.choice(alphas)]:
            tensors[one] = torch.tensor(draw.choice(ALPHAS)).reshape(draw.choice(((), (1,), (1, 1))))
    elif what == 6:
        for one in _keys(tensors, draw)[: len(tensors) - 1]:
            del tensors[one]
    elif what == 7:
        stem, _, end = key.partition(".")
        new = draw.choice((*NAMES, stem))
        tensors[f"{new}.{draw.choice((end, *_all_endings()))}"] = tensors[key]
        if draw.random() < 0.5:
            del tensors[key]
    elif what == 8:
        other = draw.choice(list(tensors))
        tensors[key], tensors[other] = tensors[other], tensors[key]
    else:
        said = draw.choice(ADAPTERS)
        metadata["lora_adapter_metadata"] = json.dumps(said)
        metadata["ss_base_model_version"] = draw.choice(("sdxl_base_v1-0", "sd_v2_v", "", "\x1b[2J"))
    return f"{what}"


@cache
def _all_endings() -> tuple[str, ...]:
    made = [KINDS[kind]((64, 64, 3, 3)) for kind in KINDS]
    return tuple(
        dict.fromkeys([*(end for one in made for end in one), "w_norm", "b_norm", "oft_diag", "x", ""])
    )


def mutated(draw: random.Random) -> tuple[str, bytes]:
    """A label, and the file."""
    chosen = draw.choice(list(KINDS)), draw.choice(list(SPELLINGS)), draw.choice(list(EXTRAS))
    tensors, metadata = whole_file(*chosen)
    said = [*chosen]
    if draw.random() < 0.75:
        said += [changed(tensors, metadata, draw) for _ in range(draw.choice((1, 1, 2)))]
        return ", ".join(said), _saved(tensors, metadata)
    content = _saved(tensors, metadata)
    if draw.random() < 0.2:
        return ", ".join([*said, "a key twice"]), _key_twice(content, draw)
    return ", ".join([*said, "its header"]), damaged(content, draw)


def _saved(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    named = {re.sub(r"^$", "x", key): one.contiguous().clone() for key, one in tensors.items()}
    return save(named, metadata=dict(metadata))


def _key_twice(content: bytes, draw: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    key = draw.choice(list(header))
    again = f"{{{json.dumps(key)}: {json.dumps(header[key])}, ".encode()
    text = packed(header, b"")[8:]
    text = again + text[1:]
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


class Verbs:
    """What is done to each file; what is written has to be whole."""

    def __init__(self, folder: Path) -> None:
        self.path, self.out = folder / "file.safetensors", folder / "out.safetensors"
        self.good = folder / "good.safetensors"
        self.family: ModelFamily = load_base("pocket")
        tensors, metadata = whole_file("lora", "kohya", "nothing")
        save_file(tensors, self.good, metadata=metadata)

    def verify(self) -> None:
        """INVALID has its reason."""
        report = verify(self.path)
        print_report(report, QUIET)
        json.dumps(report.to_json()).encode()
        assert report.ok or all(report.faults)

    def inspect(self) -> None:
        facts = inspect_file(self.path)
        print_facts(facts, QUIET)
        json.dumps(facts.to_json()).encode()

    def convert(self, target: str = "kohya", dtype: str = "float16") -> None:
        report = convert(self.path, target, out=self.out, dtype=dtype, skip_unknown=True, force=True)
        print_converted(report, QUIET)
        self._check(target)

    def convert_to_diffusers(self) -> None:
        self.convert("diffusers", "float32")

    def convert_with_base(self) -> None:
        file = read_any(self.path, base=self.family, skip_unknown=True)
        assert all(one.tensors["lora_up.weight"].isfinite().all() for one in file.layers.values())

    def resize(self) -> None:
        report = resize(open_plain(self.path), self.out, RankLimit(rank=2))
        print_resized(report, self.out, QUIET)
        self._check()

    def combine(self) -> None:
        terms = [Term(one, 0.7) for one in open_together([self.path, self.good])]
        print_combined(combine(terms, self.out, method="concat"), self.out, QUIET)
        self._check()

    def compare(self) -> None:
        terms = [Term(one, 1.0) for one in open_together([self.path, self.good])]
        print_comparison(compare(*terms), [], QUIET)

    def _check(self, target: str = "kohya") -> None:
        faults = [one for one in verify(self.out).faults if target == "kohya" or "no UI" not in one]
        assert not faults, faults  # PEFT's names with other parts are for no UI; that is no damage
        self.out.unlink()


def run(folder: Path, numbers: range) -> tuple[dict[str, int], list[str]]:
    """How many calls used a file and refused it, and what went wrong otherwise."""
    counts, crashes, verbs = {"used": 0, "refused": 0}, [], Verbs(folder)
    calls = [verbs.verify, verbs.inspect, verbs.convert, verbs.convert_to_diffusers, verbs.convert_with_base]
    for number in numbers:
        what, content = mutated(random.Random(number))
        verbs.path.write_bytes(content)
        try_calls((*calls, verbs.resize, verbs.combine, verbs.compare), f"{number} ({what})", counts, crashes)
        verbs.out.unlink(missing_ok=True)
    return counts, crashes


def try_calls(
    calls: Iterable[Callable[[], object]], file: str, counts: dict[str, int], crashes: list[str]
) -> None:
    """Each is used, refused in one line, or a crash; one that takes too long is that, too."""
    for call in calls:
        began = time.process_time()
        with tried(f"{file}: {call.__name__}", counts, crashes, is_said=in_one_line(1000)):
            call()
            counts["used"] += 1
        if time.process_time() - began > SECONDS:
            crashes.append(f"{file}: {call.__name__} took {time.process_time() - began:.0f} s")
