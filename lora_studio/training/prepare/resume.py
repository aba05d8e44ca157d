"""Resuming with a changed recipe: what changes nothing in what is learned may change, and is said aloud."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_studio.data.manifest import Manifest, current_line
from lora_studio.data.regularization_images import DRAWN
from lora_studio.errors import RecipeError, preview_names
from lora_studio.families.base import ModelFamily
from lora_studio.families.flow_schedule import FLOW_KEYS
from lora_studio.families.noise_schedule import is_flow
from lora_studio.files import digest
from lora_studio.metadata.provenance import MANIFEST, recipe_hash
from lora_studio.recipe import Recipe, RecipeChange, changes
from lora_studio.recipe.run_recipe import RUN_RECIPE, load_run_recipe
from lora_studio.runs import Run
from lora_studio.runs.reading import damaged, inputs_before
from lora_studio.training.events import Listener, Note
from lora_studio.training.optimizers import factor, make_schedule
from lora_studio.version import __version__

STEPS = "training.steps"
RECIPE = f"recipe as version {__version__} reads it"  # in inputs.json: another one may have other defaults
BASE, VAE, TEXT, NOISE = "base.model", "base.vae", "base.text_encoders", "base.noise"  # in inputs.json
SCHEDULE_END = "training.lr_schedule"  # there, of runs whose schedule to 0 ends behind the last step
_SAID = ("note", "captioned_by")  # about an image, and nothing that is learned
_NAMES = ("name", "mask")  # of files
_NOISE = [f"beta_{of}" for of in ("start", "end", "schedule")]  # of a scheduler's configuration
_NOISE += ["num_train_timesteps", "prediction_type", "rescale_betas_zero_snr"]
_CONTENTS = {
    "base.model": BASE,
    "base.vae": VAE,
    "base.text_encoder": TEXT,
    "base.tokenizer": TEXT,
    "adapter.init_from": "adapter.init_from",
}
_CONTENTS |= {f"data.{option}": MANIFEST for option in ("images", "masks", "exclude", "sources")}
_CONTENTS |= {"data.regularization_images.images": MANIFEST, "base.loras": "base.loras[0].file"}
"""Options that are paths -> what in inputs.json, or which file of the run, holds what lay there."""


def learned_hash(recipe: Recipe) -> str:
    """sha256 of the options that change what is learned, without the number of steps, which may grow."""
    return recipe_hash(
        recipe.model_copy(update={"training": recipe.training.model_copy(update={"steps": 1})})
    )


def run_recipe(folder: Path) -> Recipe:
    """The recipe of a run that is there. Raises CheckpointError if it is damaged, or that of another run."""
    recipe, before = load_run_recipe(folder), inputs_before(folder)
    if before.get(RECIPE, learned := learned_hash(recipe)) != learned:
        raise damaged(folder / RUN_RECIPE, "it is that of another run")
    return recipe


def base_lora(number: int) -> str:
    return f"base.loras[{number}].file"


def inputs_of(recipe: Recipe) -> dict[str, str]:
    """Option -> sha256 of the LoRA file that it names and that is there."""
    named = {base_lora(number): one.file for number, one in enumerate(recipe.base.loras)}
    if recipe.base.training_adapter is not None:
        named["base.training_adapter"] = recipe.base.training_adapter
    if recipe.adapter.init_from is not None:
        named["adapter.init_from"] = recipe.adapter.init_from
    return {option: digest(path) for option, path in named.items() if path.is_file()}


def contents_of(family: ModelFamily) -> dict[str, str]:
    """sha256 of all of a base that decides what is learned, whatever library reads it."""
    encoders = [family.fingerprint(name) for name in sorted(family.text_encoders)]
    words = [(sorted(one.get_vocab().items()), one.pad_token_id) for one in family.tokenizers.values()]
    return {
        BASE: family.fingerprint(family.denoiser),
        VAE: family.fingerprint("vae"),
        TEXT: _sha256([encoders, words]),
        NOISE: _sha256({key: family.scheduler.get(key) for key in _noise_keys(family.scheduler)}),
    }


def _noise_keys(scheduler: Mapping[str, object]) -> list[str]:
    return [*_NOISE, *(FLOW_KEYS if is_flow(scheduler) else ())]


def _sha256(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def has_zero_last(run: Run) -> bool:
    """Whether a run that is there began when a schedule that ends at 0 did so in the last step."""
    return SCHEDULE_END not in inputs_before(run.folder)


def input_faults(folder: Path, before: Mapping[str, str], inputs: Mapping[str, str]) -> list[str]:
    """Files or weights that are something else now than when the run in `folder` began."""
    other = [option for option, found in inputs.items() if before.get(option, found) != found]
    if not other:
        return []
    held = "other weights" if {BASE, VAE, TEXT, NOISE} & {*other} else "another file"
    sha256 = f"sha256 was {before[other[0]][:12]}..."
    advice = "put that back to resume, or start another run with --out"
    return [f"{folder} was started when {', '.join(other)} held {held} (its {sha256}); {advice}."]


def allowed_changes(run: Run, recipe: Recipe) -> list[RecipeChange]:
    """What differs from the run folder's recipe. Raises RecipeError if some of it changes what is learned."""
    old, before = run_recipe(run.folder), inputs_before(run.folder)
    found = changes(old, recipe)
    unsafe = [one for one in found if not one.resume_safe and not _is_moved(one, run, before)]
    fixed = [one for one in unsafe if one.option != STEPS or not _same_rates(old, recipe)]
    if not fixed:
        return found
    lines = [f"{run.folder} was started with another recipe, and these options change what is learned:"]
    lines += [f"  {one}{_why(one, old)}" for one in fixed]
    lines.append("start another run with --out, or go on with the recipe as it was.")
    raise RecipeError("\n".join(lines))


def _is_moved(change: RecipeChange, run: Run, before: Mapping[str, str]) -> bool:
    """Whether only a path is another, and what it holds is compared by its content."""
    content = _CONTENTS.get(change.option)
    known = content in before or (content == MANIFEST and (run.folder / MANIFEST).exists())
    if not known or (change.option == "adapter.init_from" and None in (change.before, change.after)):
        return False
    return _without_paths(change.before) == _without_paths(change.after)


def _without_paths(value: object) -> object:
    """Of the tables in a list what is no path; of a path by itself nothing."""
    if not isinstance(value, list):
        return None
    paths = ("images", "masks", "file")
    if not all(isinstance(table, dict) for table in value):
        return None
    return [{key: one for key, one in table.items() if key not in paths} for table in value]


def apply_recipe_changes(run: Run, found: Sequence[RecipeChange], listener: Listener) -> None:
    """Say what is different, and let go of the base's previews if they would be other images now."""
    if not found:
        return
    listener(Note(f"going on with a changed recipe: {'; '.join(map(str, found))}"))
    if any(one.option.startswith("samples.") and one.option != "samples.every" for one in found):
        with run.writing():
            for path in sorted((run.folder / "previews").glob("base_*.png")):
                path.unlink()


def _same_rates(old: Recipe, new: Recipe) -> bool:
    """Whether another number of steps leaves the learning rate of every step as it was."""
    both = (old.training, new.training)
    if len({(one.lr_schedule, one.lr_schedule_floor) for one in both}) > 1 or _stops(old) != _stops(new):
        return False
    schedule = make_schedule(old.training.lr_schedule, old.training.lr_schedule_floor)
    return all(
        len({factor(schedule, step, steps=one.steps, warmup_steps=one.warmup) for one in both}) == 1
        for step in range(1, min(one.steps for one in both) + 1)
    )


def _stops(recipe: Recipe) -> list[int | None]:
    return [one.last_step(recipe.training.steps) for one in (*recipe.adapter.layers, *recipe.tokens)]


def _why(change: RecipeChange, old: Recipe) -> str:
    if change.option == "adapter.init_from":
        return " (it is what a new run begins with; a resumed one goes on from its own checkpoint)"
    if change.option != STEPS:
        return ""
    if any(one.stop_at is not None and one.stop_at <= 1 for one in (*old.adapter.layers, *old.tokens)):
        return " (a stop_at is a share of the steps, so it would be at another step)"
    return (
        f" (the schedule {old.training.lr_schedule!r} runs to the last step, so steps that are done would "
        "have had other learning rates; only a run with the schedule 'constant' can become longer)"
    )


def refuse_other_images(run: Run, manifest: Manifest) -> None:
    """Raise RecipeError if the run began with other images, captions, masks or crops, whatever their names.

    Regularization images that the base draws are not compared: they follow from these and from the base.
    """
    if not (run.folder / MANIFEST).is_file():
        return
    before = _learned(run.lines(MANIFEST))
    now = _learned(json.loads(record.to_json()) for record in manifest.records)
    if [content for _, content in before] == [content for _, content in now]:
        return
    was, is_ = Counter(before), Counter(now)
    gone, new = ({name for name, _ in (one - other)} for one, other in ((was, is_), (is_, was)))
    told = {"are gone": gone - new, "are new": new - gone}
    told["are others, or have other captions, masks or crops"] = gone & new
    listed = {words: sorted(names) for words, names in told.items() if names}
    what = "; ".join(f"{len(names)} {words}: {preview_names(names)}" for words, names in listed.items())
    advice = "put them back to resume, or start another run with --out"
    raise RecipeError(
        f"{run.folder} was started with other images: {what or 'they are in another order'}; {advice} (and "
        "adapter.init_from, to begin as what is learned so far)."
    )


def _learned(lines: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Of the images that are used, in their order: the name, and all that is learned from it."""
    current = map(current_line, lines)
    used = (line for line in current if not line["excluded"] and line["captioned_by"] != DRAWN)
    return [
        (line["name"], json.dumps({key: one for key, one in line.items() if key not in (*_SAID, *_NAMES)}))
        for line in used
    ]
