"""The verbs `extract` and `merge-into`, on whole bases: they parse and print."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated

import typer

from lora_studio.cli.combine import cut_of, needed, terms_of
from lora_studio.cli.options import FILES, Dtype, Energy, Force, Json, Out, Rank
from lora_studio.console.screen import Bars, console, errors
from lora_studio.quiet import quiet_libraries

_BASE = 'a checkpoint file, a diffusers folder, "pocket" or a hub id'


def extract(
    tuned: Annotated[str, typer.Argument(help=f"the fine-tuned base: {_BASE}")],
    base: Annotated[str, typer.Argument(help="the base that it was trained from, likewise")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    dtype: Dtype = "float16",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a LoRA file of what a fine-tuned base has learned, and say what of that is not in it."""
    quiet_libraries()
    from lora_studio.lora_file.base_weights import open_weights
    from lora_studio.tools.extract import extract as write
    from lora_studio.tools.result import check_output

    cut = needed(cut_of(rank, energy))
    learned, before = open_weights(tuned), open_weights(base)
    check_output(out, force=force, inputs=[learned.path, before.path])
    with Bars(errors, transient=True) as bars:
        on_tensor = partial(bars.show, "comparing tensors")
        report = write(learned, before, out, cut, dtype=dtype, on_tensor=on_tensor)
    if as_json:
        console.print_json(json.dumps(report.to_json()))
        return
    from lora_studio.console.tools import print_extracted

    print_extracted(report, out, console)


def merge_into(
    base: Annotated[str, typer.Argument(help=_BASE)],
    files: Annotated[list[str], typer.Argument(metavar=FILES, help="LoRA files, e.g. a.safetensors:0.8")],
    out: Out,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a base with LoRA files in its weights, in its own layout and dtypes; the base stays as it is."""
    quiet_libraries()
    from lora_studio.lora_file.base_weights import open_weights
    from lora_studio.tools.merge_into import merge_into
    from lora_studio.tools.result import check_output

    terms = terms_of(files)
    weights = open_weights(base)
    check_output(out, force=force, inputs=[weights.path, *(term.file.path for term in terms)])
    report = merge_into(weights, terms, out)
    if as_json:
        console.print_json(json.dumps(report.to_json()))
        return
    from lora_studio.console.tools import print_merged

    print_merged(report, out, console)
