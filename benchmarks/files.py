"""Tools on finished files against the dense way, on files of SDXL's size: processor seconds and peak memory.

`python benchmarks/files.py [--ranks 32 128] [--share 0.02] [--folder runs/files] [--out FILE]`

The files have random factors in float16 in every linear layer that `tests/reference/sdxl_conv.txt` lists.
Each measurement is a process of its own, on one thread. Ours combines and resizes whole files; the dense way
(multiply out, an SVD of each whole matrix in float32, cut) would take hours, so it runs on a share of the
layers of each size, drawn at random, and its seconds are scaled by their number. Extracting is measured in
the same way on both sides, on a difference of matrices that is there already: two random ones of each size.
Every measurement is kept in `--folder`, so the command may be stopped and called again.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from figures import machine, table, write_json
from safetensors.torch import load_file, save_file
from torch import Tensor

REFERENCE = max(
    (Path(__file__).parent.parent / "tests" / "reference").glob("*_conv.txt")
)  # the largest base's comes last
RESULT = Path(__file__).parent / "results" / "files.json"
TASKS = ("combine", "resize", "extract")
Shape = tuple[int, int]


def layers() -> dict[str, Shape]:
    """Name -> [out, in] of every linear layer."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for line in REFERENCE.read_text("utf-8").splitlines():
        key, said = line.split("\t")
        name, _, end = key.partition(".")
        found.setdefault(name, {})[end] = tuple(
            json.loads(said.replace("(", "[").replace(",)", "]").replace(")", "]"))
        )
    return {
        name: (ends["lora_up.weight"][0], ends["lora_down.weight"][1])
        for name, ends in found.items()
        if len(ends["lora_down.weight"]) == 2
    }


def make_file(path: Path, rank: int, seed: int) -> None:
    """A LoRA file with a falling spectrum, as trained ones have."""
    if path.is_file():
        return
    draw = torch.Generator().manual_seed(seed)
    fall = torch.linspace(0, -3, rank).exp()[:, None]
    tensors: dict[str, Tensor] = {}
    for name, (out, inputs) in layers().items():
        tensors[f"{name}.lora_down.weight"] = (torch.randn(rank, inputs, generator=draw) * 0.02 * fall).half()
        tensors[f"{name}.lora_up.weight"] = (torch.randn(out, rank, generator=draw) * 0.02).half()
        tensors[f"{name}.alpha"] = torch.tensor(float(rank)).half()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def ours(task: str, rank: int, folder: Path) -> dict[str, object]:
    """One measurement in this process, on the whole files; of extract, on all their layers' changes."""
    from lora_studio.lora_file.factors import RankLimit
    from lora_studio.lora_file.open import open_plain
    from lora_studio.tools.combine import Term, combine, resize
    from lora_studio.tools.methods import MergeOptions

    first, second, out = (folder / f"{name}_{rank}.safetensors" for name in ("a", "b", "out"))
    began = time.process_time()
    if task == "combine":
        terms = [Term(open_plain(first), 0.8), Term(open_plain(second), 0.6)]
        combine(terms, out, method="svd", options=MergeOptions(RankLimit(rank=rank)))
    elif task == "resize":
        resize(open_plain(first), out, RankLimit(rank=rank // 2))
    else:
        return _seconds_by_size(_extract_one, rank, _one_of_each())
    out.unlink()
    return {"seconds": time.process_time() - began, "layers": len(layers())}


def dense(task: str, rank: int, folder: Path, share: float) -> dict[str, object]:
    """The same by dense SVDs, on a share of the layers."""
    tensors = [load_file(folder / f"{name}_{rank}.safetensors") for name in ("a", "b")]
    picked = _picked(share)
    seconds: dict[Shape, list[float]] = {}
    for name in picked:
        began = time.process_time()
        one, other = (
            t[f"{name}.lora_up.weight"].float() @ t[f"{name}.lora_down.weight"].float() for t in tensors
        )
        change = 0.8 * one + 0.6 * other if task == "combine" else one
        kept = rank // 2 if task == "resize" else rank
        left, sizes, right = torch.linalg.svd(change, full_matrices=False)
        _ = (
            (left[:, :kept] * sizes[:kept].sqrt()).half(),
            (sizes[:kept].sqrt()[:, None] * right[:kept]).half(),
        )
        seconds.setdefault(layers()[name], []).append(time.process_time() - began)
    return _scaled(seconds, len(picked))


def _extract_one(shape: Shape, rank: int) -> None:
    from lora_studio.lora_file.factors import RankLimit, leading

    draw = torch.Generator().manual_seed(0)
    change = torch.randn(shape[0], 2 * rank, generator=draw) @ torch.randn(2 * rank, shape[1], generator=draw)
    began = time.process_time()
    leading(change, RankLimit(rank=rank), "layer")
    _MEASURED.append(time.process_time() - began)


_MEASURED: list[float] = []


def _one_of_each() -> list[Shape]:
    return sorted(set(layers().values()))


def _seconds_by_size(measure: object, rank: int, shapes: list[Shape]) -> dict[str, object]:
    assert callable(measure)
    seconds: dict[Shape, list[float]] = {}
    for shape in shapes:
        for _ in range(2):
            measure(shape, rank)
            seconds.setdefault(shape, []).append(_MEASURED.pop())
    return _scaled(seconds, 2 * len(shapes))


def _picked(share: float) -> list[str]:
    """At least one layer of every size, and a share of each."""
    draw, by_size = random.Random(0), _by_size()
    return [
        name for names in by_size.values() for name in draw.sample(names, max(1, round(share * len(names))))
    ]


def _by_size() -> dict[Shape, list[str]]:
    found: dict[Shape, list[str]] = {}
    for name, shape in layers().items():
        found.setdefault(shape, []).append(name)
    return found


def _scaled(seconds: dict[Shape, list[float]], measured: int) -> dict[str, object]:
    counts = Counter(layers().values())
    total = sum(counts[shape] * sum(some) / len(some) for shape, some in seconds.items())
    assert seconds.keys() == counts.keys()
    return {"seconds": total, "layers": measured, "scaled_to": len(layers())}


def measured(way: str, task: str, rank: int, options: argparse.Namespace) -> dict[str, object]:
    """One measurement in a process of its own, or the one that is kept."""
    kept = options.folder / f"{way}_{task}_{rank}.json"
    if not kept.is_file():
        command = [sys.executable, __file__, "--folder", str(options.folder), "--share", str(options.share)]
        answer = subprocess.run(
            [*command, "--one", way, task, str(rank)], check=True, capture_output=True, text=True
        )
        write_json(json.loads(answer.stdout.splitlines()[-1]), kept)
    found: dict[str, object] = json.loads(kept.read_text("utf-8"))
    return found


def rows(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Both ways for every task and rank."""
    for rank in options.ranks:
        for seed, name in enumerate("ab"):
            make_file(options.folder / f"{name}_{rank}.safetensors", rank, seed)
        for task in TASKS:
            ours_, dense_ = (measured(way, task, rank, options) for way in ("ours", "dense"))
            faster = float(str(dense_["seconds"])) / float(str(ours_["seconds"]))
            row = {
                "task": task,
                "rank": rank,
                "ours": ours_,
                "dense": dense_,
                "times_as_fast": round(faster, 1),
            }
            print(row, flush=True)
            yield row


def markdown(found: list[dict[str, object]]) -> str:
    """A row a task and rank."""
    lines = []
    for row in found:
        cells = [row["task"], row["rank"]]
        for way in ("ours", "dense"):
            figures = row[way]
            assert isinstance(figures, dict)
            cells += [f"{figures['seconds']:.0f} s", f"{figures['peak_bytes'] / 2**30:.1f} GiB"]
        lines.append((*cells, row["times_as_fast"]))
    return table(("task", "rank", "ours", "peak", "dense SVD", "peak", "times as fast"), lines)


def main() -> None:
    """Measure what is missing, then tell what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--share", type=float, default=0.02, help="of the layers, for the dense way")
    parser.add_argument("--folder", type=Path, default=Path("runs/files"))
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "TASK", "RANK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        way, task, rank = options.one
        figures = (
            ours(task, int(rank), options.folder)
            if way == "ours"
            else dense(task, int(rank), options.folder, options.share)
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(figures | {"peak_bytes": peak}))
        return
    found = list(rows(options))
    note = f"dense: {options.share:.0%} of the layers of each size, at least one, scaled by their number"
    write_json({"rows": found, "threads": 1, "dense_way": note, "machine": machine()}, options.out)
    print(markdown(found))


if __name__ == "__main__":
    main()
