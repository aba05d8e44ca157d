"""The public functions, `lora_studio.train` and so on: what the verbs do, as objects and exceptions.

Paths are str or Path. Each raises a StudioError with one sentence for whatever the user can mend. Libraries
keep quiet inside, and nothing heavy is imported before a function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_values
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lora_studio.quiet import quietly

if TYPE_CHECKING:
    from lora_studio.data.captioners import WriterOptions
    from lora_studio.data.captioners.write import Captioned, CaptioningResult, Replace
    from lora_studio.data.doctor import DoctorOptions
    from lora_studio.data.doctor.finding import DoctorReport
    from lora_studio.evaluate.result import Evaluation
    from lora_studio.jobs import Job
    from lora_studio.recipe import Recipe
    from lora_studio.recipe.sweep import Value
    from lora_studio.sweep.result import SweepResult
    from lora_studio.sweep.running import TrialChange
    from lora_studio.tools.compare import Comparison
    from lora_studio.tools.evaluate import EvaluationRequest
    from lora_studio.tools.sample import Sampled, SampleRequest
    from lora_studio.training.events import Listener
    from lora_studio.training.finish import Finished
    from lora_studio.training.finish.export import Exported
    from lora_studio.training.planning import RunPlan
    from lora_studio.training.planning.for_card import CardPlan
    from lora_studio.verify import VerifyReport

Place = str | PathLike[str]
Changes = Mapping[str, object]


@quietly
def load_recipe(path: Place, *, set: Changes | None = None, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file; relative paths in it are taken from the file's folder.

    `set`: other values by dotted key, {"training.steps": 200}, or by section, {"training": {"steps": 200}}.
    `changes`: the same as the command line's --set has it, ["training.steps=200"].
    Raises RecipeError that lists every fault at once.
    """
    from lora_studio.recipe.load import load_recipe as load

    return load(Path(path), changes=changes, set=set or {})


@quietly
def train(
    recipe: Recipe | Place,
    folder: Place | None = None,
    *,
    set: Changes | None = None,
    resume: bool = False,
    on_event: Listener | None = None,
) -> Finished:
    """Train a recipe, or the one in a TOML file: the run's folder, its verified file, its report and figures.

    `folder`: by default runs/<name of the recipe>. `set`: as in `load_recipe`. `resume`: go on from the
    folder's newest checkpoint. `on_event` hears the plan, each step with loss and seconds, and notes; it may
    raise StopTraining.
    Raises Interrupted, behind a checkpoint, for that, Ctrl-C and SIGTERM; TrainingDiverged for a loss that is
    not finite; ExportMismatch if the file is not what was trained.
    """
    from lora_studio.training.events import ignore_events
    from lora_studio.training.session import train as run

    place = None if folder is None else Path(folder)
    return run(_recipe(recipe, set), place, resume=resume, on_event=on_event or ignore_events)


@quietly
def plan(
    recipe: Recipe | Place,
    *,
    set: Changes | None = None,
    memory_gib: float | None = None,
    on_event: Listener | None = None,
) -> RunPlan:
    """What a run trains, and takes of memory (bytes), disk (bytes) and time (seconds), from a trial step.

    Fills the caches as the run would; writes nothing else. `memory_gib`: what it has to fit into, instead of
    what this machine's device has free.
    """
    from lora_studio.training.events import ignore_events
    from lora_studio.training.planning import plan as make
    from lora_studio.training.planning.for_card import fewest_blocks_in_main_memory

    return make(
        _recipe(recipe, set),
        memory_gib=memory_gib,
        on_event=on_event or ignore_events,
        choose_offload=fewest_blocks_in_main_memory,
    )


@quietly
def plan_for(
    recipe: Recipe | Place, card: str, *, set: Changes | None = None, memory_gib: float | None = None
) -> CardPlan:
    """The same on a graphics card that is not here, simulated; needs no weights and no images.

    `card`: a name such as "RTX 4060", or "cuda" with `memory_gib`.
    """
    from lora_studio.training.planning.for_card import plan_for as make

    return make(_recipe(recipe, set), card, memory_gib=memory_gib)


@quietly
def doctor(target: Recipe | Place, options: DoctorOptions | None = None) -> DoctorReport:
    """What is wrong with a folder of images and captions, or with a recipe's; changes nothing.

    `options`: of a folder, what a recipe would say: base, resolution, trigger, recursive.
    Raises DatasetError if there is nothing to look at, RecipeError for a recipe's faults.
    """
    from lora_studio.errors import DatasetError, RecipeError
    from lora_studio.recipe import Recipe

    if not isinstance(target, Recipe) and Path(target).is_dir():
        from lora_studio.data.doctor import DoctorOptions, examine_folder

        return examine_folder(Path(target), options or DoctorOptions())[0]
    if options is not None:
        raise RecipeError("options are for a folder of images; a recipe says that itself.")
    if not isinstance(target, Recipe) and not Path(target).is_file():
        raise DatasetError(f"there is no {target}; give a folder of images or a recipe's .toml file.")
    from lora_studio.training.prepare.dataset import examine_recipe

    return examine_recipe(_recipe(target))[0]


@quietly
def caption(
    folder: Place,
    writer: str = "filename",
    *,
    trigger: str = "",
    class_words: str = "",
    options: WriterOptions | None = None,
    replace: Replace = "nothing",
    dry_run: bool = False,
    recursive: bool = False,
    on_image: Callable[[Captioned], None] = lambda captioned: None,
) -> CaptioningResult:
    """Write captions beside the images that have none: how many, which were kept, and why some have none yet.

    `writer`: one of `lora-studio caption --with`; "filename" and "template" need no model. `trigger`: put in
    front of captions that lack it. `options`: model, prompt, wording and the rest. `replace`: "nothing",
    "generated" (a captioner's captions that no one edited since) or "all"; a copy of what goes is kept.
    `on_image` gets every caption, also in a `dry_run`, which writes none.
    Raises CaptionError if the captioner cannot work; what was written until then stays.
    """
    from lora_studio.data.captioners import WriterOptions, caption_writer
    from lora_studio.data.captioners.write import write_captions
    from lora_studio.data.scan import ScanOptions, scan
    from lora_studio.errors import CaptionError

    if not Path(folder).is_dir():
        raise CaptionError(f"there is no folder {folder}; give the folder that holds the images.")
    options = options or WriterOptions()
    words = {"trigger": trigger, "class_words": class_words}
    wording = with_values(options.wording, **{name: text for name, text in words.items() if text})
    made = caption_writer(writer)(with_values(options, wording=wording))
    manifest = scan(Path(folder), ScanOptions(recursive=recursive))
    return write_captions(
        manifest, made, folder=Path(folder), replace=replace, dry_run=dry_run, on_image=on_image
    )


@quietly
def verify(file: Place, *, base: Place | None = None) -> VerifyReport:
    """Whether a LoRA file from anywhere is valid (`ok`, `faults`), and how each UI loads it (`uis`).

    `base`: "pocket", a diffusers folder, a checkpoint file or a hub id, which its layers must fit and with
    which it is tried. A damaged file is a fault in the report; one that is not there raises StudioError.
    """
    from lora_studio.verify import verify as check

    return check(Path(file), base=None if base is None else str(base))


@quietly
def compare(one: Place, other: Place, *, strengths: tuple[float, float] = (1.0, 1.0)) -> Comparison:
    """Whether two LoRA files go together: `verdict` is "combine", "compete" or "one dominates".

    With the cosine (-1..1) of their changes, norms and overlaps of all layers. Raises StudioError for files
    of different kinds of bases.
    """
    from lora_studio.lora_file.open import open_together
    from lora_studio.tools.combine import Term
    from lora_studio.tools.compare import compare as judge

    files = open_together([Path(one), Path(other)])
    first, second = (Term(file, strength) for file, strength in zip(files, strengths, strict=True))
    return judge(first, second)


@quietly
def export(
    run: Place,
    to: str | Sequence[str],
    *,
    checkpoint: int | Literal["best", "newest"] | None = None,
    dtype: str | None = None,
    out: Place | None = None,
    force: bool = False,
) -> list[Exported]:
    """A run's checkpoint in other forms, each with its paths (`made.paths`) and what was checked (`report`).

    `to`: one or more of `lora-studio export --to`. `checkpoint`: of this step, "best" on the validation
    images or "newest"; None: what the run's file is made of. `dtype`: "float16", "bfloat16" or "float32";
    None: as the recipe says. `out`: a folder; None: exports/step_<number> in the run's own. Files that are
    there are replaced with `force` only.
    Raises ExportMismatch, with the files set aside, if one is not what was trained.
    """
    from lora_studio.training.finish.export import ExportRequest, export_run

    targets = (to,) if isinstance(to, str) else tuple(to)
    folder = None if out is None else Path(out)
    return export_run(Path(run), ExportRequest(targets, checkpoint, dtype, folder, force))


@quietly
def sample(
    target: Place,
    prompts: str | Sequence[str] = (),
    *,
    strengths: Sequence[float] = (),
    seeds: Sequence[int] = (),
    base: Place | None = None,
    options: SampleRequest | None = None,
    out: Place | None = None,
    on_event: Listener | None = None,
) -> Sampled:
    """Images of a LoRA file or a run's checkpoints, the base beside them: a sheet, and each image's file.

    A row for each prompt and seed, a column for each strength. `base`: of a file, as in `verify`. What is not
    given is taken from `options` (checkpoints, steps, guidance, side in pixels and more), then from the run's
    previews. `out`: a folder; None: samples in the run, or <name>_samples beside the file. Nothing that is
    there is replaced.
    """
    from lora_studio.tools.sample import SampleRequest
    from lora_studio.tools.sample import sample as draw
    from lora_studio.training.events import ignore_events

    asked = options or SampleRequest()
    request = with_values(
        asked,
        prompts=((prompts,) if isinstance(prompts, str) else tuple(prompts)) or asked.prompts,
        strengths=tuple(strengths) or asked.strengths,
        seeds=tuple(seeds) or asked.seeds,
        base=asked.base if base is None else str(base),
        folder=asked.folder if out is None else Path(out),
    )
    return draw(Path(target), request, on_event=on_event or ignore_events)


@quietly
def evaluate(
    target: Place,
    *,
    checkpoint: int | Literal["best", "newest"] | None = None,
    strength: float | None = None,
    base: Place | None = None,
    images: Place | None = None,
    prompts: Place | None = None,
    options: EvaluationRequest | None = None,
    out: Place | None = None,
    on_event: Listener | None = None,
) -> Evaluation:
    """What a run's checkpoint or a LoRA file has learned and what that cost, with 95 % intervals.

    `measure("fidelity").interval` and so on, and `verdicts`. `images`: a folder of images of what was taught
    that were not trained on. `prompts`: a text file, a prompt a line. What is not given is taken from
    `options` (seeds, prompts a group, encoder and more). `out`: the folder of evaluation.json and its page;
    None: evaluation in the run, or <name>_evaluation beside the file. Images that were drawn before are not
    drawn again. Raises StudioError for what cannot be evaluated.
    """
    from lora_studio.tools.evaluate import EvaluationRequest
    from lora_studio.tools.evaluate import evaluate as measure
    from lora_studio.training.events import ignore_events

    asked = options or EvaluationRequest()
    request = with_values(
        asked,
        checkpoint=asked.checkpoint if checkpoint is None else checkpoint,
        strength=asked.strength if strength is None else strength,
        base=asked.base if base is None else str(base),
        images=asked.images if images is None else Path(images),
        prompts=asked.prompts if prompts is None else Path(prompts),
        folder=asked.folder if out is None else Path(out),
    )
    return measure(Path(target), request, on_event=on_event or ignore_events)[0].evaluation


@quietly
def sweep(
    recipe: Recipe | Place,
    vary: Mapping[str, str | Sequence[Value]] | None = None,
    *,
    trials: int | None = None,
    seeds: int | None = None,
    by: Literal["evaluation", "validation"] | None = None,
    search: Literal["chance", "tpe"] | None = None,
    stop_early: bool | None = None,
    set: Changes | None = None,
    devices: str = "",
    retry: bool = False,
    out: Place | None = None,
    on_change: Callable[[TrialChange], None] = lambda change: None,
) -> SweepResult:
    """Train a recipe with other values, measure each, and recommend one: `recommended`, `recipe`, `why`.

    `vary`: option -> a list of values, "log:1e-4..1e-3" or "lin:0..0.5"; None, as of `trials`, `seeds`, `by`,
    `search` and `stop_early`: as the recipe's [sweep] has it. `devices`: as "cuda:0,cuda:1"; empty: all GPUs.
    `out`: the sweep's folder; None: runs/<name>_sweep. What is finished there is not trained again, and what
    failed only to `retry`. Trials are processes of their own; `on_change` hears when one begins or ends.
    Raises RecipeError for what cannot be varied or trained, before anything begins.
    """
    from lora_studio.jobs.worker import devices_named
    from lora_studio.runs import run_folder
    from lora_studio.sweep import plan_sweep
    from lora_studio.sweep.folder import SweepFolder
    from lora_studio.sweep.running import run_sweep

    loaded = _recipe(recipe, set)
    how = {"search": search, "stop_early": stop_early}
    plan = plan_sweep(loaded, vary, trials=trials, seeds=seeds, by=by, **how)
    folder = SweepFolder(run_folder(f"{loaded.name}_sweep") if out is None else Path(out))
    return run_sweep(plan, folder, devices=devices_named(devices), retry=retry, on_change=on_change)


@quietly
def queue(
    recipe: Place,
    folder: Place | None = None,
    *,
    changes: Sequence[str] = (),
    after: int | None = None,
    priority: int = 0,
) -> Job:
    """Add the training of a recipe's file to the queue of `lora-studio queue work`: its job, with `id`.

    `folder`: the run's; None: runs/<name of the recipe>. `changes`: as of the command line's --set. `after`:
    the number of a job that has to be done first. Higher ones of `priority` come first.
    Raises RecipeError for all that is wrong with the recipe, StudioError if the queue cannot be written.
    """
    from lora_studio.jobs import Queue
    from lora_studio.jobs.adding import training

    job = training(Path(recipe), changes, None if folder is None else Path(folder))
    return Queue().add(with_values(job, after=after, priority=priority))


def _recipe(recipe: Recipe | Place, set: Changes | None = None) -> Recipe:
    from lora_studio.recipe import Recipe
    from lora_studio.recipe.load import changed
    from lora_studio.recipe.load import load_recipe as load

    if not isinstance(recipe, Recipe):
        return load(Path(recipe), set=set or {})
    return changed(recipe, set) if set else recipe
