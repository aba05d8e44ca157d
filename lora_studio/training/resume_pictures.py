"""A resume trains on what the run began with: the same pictures, captions, masks and base, or none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lora_studio.data.class_images import DRAWN
from lora_studio.data.manifest import Manifest
from lora_studio.data.names import some
from lora_studio.errors import RecipeError
from lora_studio.export.provenance import MANIFEST
from lora_studio.recipe import Recipe
from lora_studio.run import Run
from lora_studio.training.resume import inputs_before

BASE = "base.model"  # in INPUTS
_SAID = ("note", "captioned_by")  # about a picture, and nothing that is learned


def refuse_other_pictures(run: Run, manifest: Manifest) -> None:
    """Raise RecipeError if the run began with other pictures, captions, masks or crops.

    Class images that the base draws are not compared: they follow from these and from the base.
    """
    if not (run.folder / MANIFEST).is_file():
        return
    before = _learned(run.lines(MANIFEST))
    now = _learned(json.loads(record.to_json()) for record in manifest.records)
    if before == now:
        return
    gone, new = ({name for name, _ in (one - other)} for one, other in ((before, now), (now, before)))
    told = {
        "are gone": gone - new,
        "are new": new - gone,
        "are others, or have other captions, masks or crops": gone & new,
    }
    what = "; ".join(f"{len(names)} {words}: {some(sorted(names))}" for words, names in told.items() if names)
    raise RecipeError(
        f"{run.folder} was started with other pictures: {what}; put them back to "
        "resume, or start another run with --out (and adapter.init_from, to begin as what is learned so far)."
    )


def refuse_other_base(run: Run, recipe: Recipe, fingerprint: str) -> None:
    """Raise RecipeError if the run began with other weights under the base's name.

    With [[base.loras]] they are not compared: another machine merges those with another rounding.
    """
    if recipe.base.loras:
        return
    before = inputs_before(run).get(BASE, fingerprint)
    if before != fingerprint:
        raise RecipeError(
            f"{run.folder} was started when base.model held other weights (their sha256 was "
            f"{before[:12]}...); put those back to resume, or start another run with --out."
        )


def _learned(lines: Iterable[Mapping[str, Any]]) -> Counter[tuple[str, str]]:
    """Names of the pictures that are used, and all that is known of them."""
    used = (line for line in lines if not line["excluded"] and line["captioned_by"] != DRAWN)
    learned = ({key: one for key, one in line.items() if key not in _SAID} for line in used)
    return Counter((one["name"], json.dumps(one, sort_keys=True)) for one in learned)
