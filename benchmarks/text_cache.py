"""What captions of large text encoders take in the cache: on the disk, and in main memory.

`python benchmarks/text_cache.py` has captions encoded for bases of published sizes, 40 to 200 tokens each, by
random numbers in place of a language model, through the code that a run uses, and then shown in batches of
one. Each base is a process of its own, whose growth to its peak is taken from the kernel. Of FLUX.2, whose
padding is seen by its transformer and kept, there are fewer captions, and what they take of the disk
is multiplied. The result is benchmarks/results/text_cache.json; it takes 1 GB of disk at a time and a minute.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from figures import Criterion, at_most, criteria_table, machine, write_json

from lora_studio.data.cache.encode import TextCache
from lora_studio.data.conditioning import CaptionSet, prepare_texts
from lora_studio.families.base import Conditioning, ModelFamily
from lora_studio.families.loading.published import published_base
from lora_studio.families.transformers import MASK
from lora_studio.rng import generator

RESULTS = Path(__file__).parent / "results" / "text_cache.json"
BASES = {  # captions that are encoded
    "Qwen/Qwen-Image-2512": 1000,
    "Tongyi-MAI/Z-Image": 1000,
    "black-forest-labs/FLUX.2-klein-base-4B": 50,
    "black-forest-labs/FLUX.2-klein-base-9B": 50,
}
OF = 1000  # captions
FEWEST, MOST = 40, 200  # tokens: a sentence, and what a language model writes of an image
SHOWN = 100  # batches
DISK_GB, MEMORY_MB = 4, 200


def random_states(family: ModelFamily, captions: list[str]) -> Conditioning:
    """As long and wide as the base's own would be, in bfloat16."""
    rng = generator("states", captions[0])
    config = family.parts["text_encoder"].config.to_dict()  # type: ignore[operator, union-attr]
    layers = getattr(family, "read_layers", None)  # of FLUX.2, which keeps padding
    tokens = 512 if layers else int(torch.randint(FEWEST, MOST + 1, (), generator=rng))
    width = config["hidden_size"] * (len(layers) if layers else 1)
    numbers = torch.randn(1, 1, width, generator=rng).bfloat16()
    places = torch.randn(1, tokens, 1, generator=rng).bfloat16()
    mask = {} if layers else {MASK: torch.ones(1, tokens, dtype=torch.bool)}
    return {"text": numbers * places} | mask


def peak_mb() -> float:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text("utf-8"))
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def measure(model: str, folder: Path) -> dict[str, Any]:
    family, count = published_base(model), BASES[model]
    assert family is not None
    family.place(torch.device("cpu"))
    family.encode_text = lambda captions, like=(): random_states(family, captions)  # type: ignore[method-assign, misc]
    captions = [f"caption {number}" for number in range(count)]
    family.join([random_states(family, captions[:1])] * 2, random_states(family, [""]))
    before, began = peak_mb(), time.process_time()
    cache = TextCache(folder, model)
    known = CaptionSet({caption: set() for caption in ["", *captions]}, complete=True)
    texts = prepare_texts(cache, known, family)
    encoded, shown = time.process_time(), generator("shown")
    for index in torch.randint(count, (SHOWN,), generator=shown).tolist():
        texts.batch([captions[index]])
    ended, peak = time.process_time(), peak_mb() - before
    again = TextCache(folder, model)  # of another run
    prepare_texts(again, known, family)
    stored = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "captions": count,
        "disk_gb": stored * OF / count / 1e9,
        "peak_mb": peak,
        "held_mb": texts.num_bytes / 1e6,
        "seconds_a_caption": (encoded - began) / count,
        "seconds_a_batch": (ended - encoded) / SHOWN,
        "encoded_again": again.encoded,
    }


def judge(found: dict[str, dict[str, Any]]) -> list[Criterion]:
    made = []
    for model, one in found.items():
        name = model.partition("/")[2]
        made += [
            at_most(f"{name}: {OF:,} captions, GB of disk", one["disk_gb"], DISK_GB),
            at_most(f"{name}: MB of main memory", one["peak_mb"], MEMORY_MB),
            at_most(f"{name}: captions that another run encodes", one["encoded_again"], 0),
        ]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", help="measure this one in a folder", nargs=2, metavar=("MODEL", "FOLDER"))
    if (asked := parser.parse_args().base) is not None:
        print(json.dumps(measure(asked[0], Path(asked[1]))))
        return
    found = {}
    for model in BASES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--base", model, folder]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[model] = json.loads(said.splitlines()[-1])
        print(model, found[model], flush=True)
    criteria = judge(found)
    write_json({"machine": machine(), "bases": found, "criteria": [vars(one) for one in criteria]}, RESULTS)
    print(criteria_table(criteria))


if __name__ == "__main__":
    main()
