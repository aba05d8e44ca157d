"""Two processes on the CPU train what one trains; one that dies ends the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import processes
import pytest
from safetensors.torch import load_file
from tiny import image_folder, recipe_text
from torch import Tensor

from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.data.batches import BatchPlan
from lora_studio.errors import DatasetError, RecipeError
from lora_studio.processes import Processes, join_processes
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.runs import ReadOnlyRun, Run
from lora_studio.training.loop.batch_split import all_reduce_gradients, own_passes
from lora_studio.training.optimizers import SCHEDULES, factor
from lora_studio.training.prepare.dataset import read_dataset
from lora_studio.training.report import processes_section

STEPS = 4
IMAGES = 8
EXTRA = """
[validation]
count = 2
every = 3
[samples]
prompts = ["a red ball, zwx style"]
steps = 1
every = 3
"""


@dataclass(frozen=True)
class Listening:
    """A listener that writes down what the caches had to do, for the test to read."""

    file: Path

    def __call__(self, event: object) -> None:
        if type(event).__name__ == "Progress":
            with self.file.open("a") as file:
                print(event.what, event.total, file=file)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Four steps with gradient_accumulation, a mean of the weights, validation and previews."""
    folder = tmp_path_factory.mktemp("recipe")
    image_folder(folder / "images", count=IMAGES)
    text = recipe_text(folder / "images", str(tiny_base), steps=STEPS, extra=EXTRA)
    text = (
        text.replace("resolution = 64", "resolution = 32")
        .replace("1e-3", "1e-4")
        .replace("every = 2", "every = 1")
    )
    text = text.replace(
        "batch_size = 2", "batch_size = 3\ngradient_accumulation = 2\nema = 0.9\nkeep_checkpoints = 9"
    )
    (folder / "recipe.toml").write_text(text, "utf-8")
    return folder / "recipe.toml"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """The run folder of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    outcome = processes.train(recipe, folder)
    assert outcome.code == 0, outcome.said
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """The run folder of two processes, beside the cache that they shared and what the main one heard."""
    folder = tmp_path_factory.mktemp("two") / "run"
    cache = {"LORA_STUDIO_CACHE": str(folder.with_name("cache"))}
    started = processes.start_several(
        recipe, folder, (cache, cache), fault=Listening(folder.with_name("heard"))
    )
    assert processes.ends_of(started) == [0, 0], processes.said(folder) + processes.said(folder, 1)
    return folder


def without(recipe: Path, section: str, folder: Path) -> Path:
    """The recipe up to that section, to save time."""
    shorter = folder / "shorter.toml"
    shorter.write_text(recipe.read_text("utf-8").partition(section)[0], "utf-8")
    return shorter


def weights(folder: Path, step: int = STEPS, name: str = "adapters") -> dict[str, Tensor]:
    return load_file(folder / f"checkpoints/step_{step:06}/{name}.safetensors")


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-6 relative in all; what was learned is `up` alone, of which Adam enlarges the rounding."""
    assert found.keys() == expected.keys()
    for ending, tolerance in (("", 1e-6), (".up", 1e-3)):
        keys = [key for key in expected if key.endswith(ending)]
        apart = sum((found[key] - expected[key]).double().square().sum().item() for key in keys) ** 0.5
        size = sum(expected[key].double().square().sum().item() for key in keys) ** 0.5
        assert size > 0 and apart <= tolerance * size, (ending, apart / size)


def test_weights_and_their_mean_equal_one_process_s_to_rounding(one: Path, two: Path) -> None:
    assert_close(weights(two), weights(one))
    assert_close(weights(two, name="ema"), weights(one, name="ema"))
    assert_close(weights(two, step=2), weights(one, step=2))


def test_there_were_batches_in_unequal_shares_and_such_that_left_one_process_without_rows(
    recipe: Path,
) -> None:
    loaded = load_recipe(recipe)
    used = read_dataset(loaded, 8).used
    batches = BatchPlan(used, batch_size=3, gradient_accumulation=2, seed=loaded.training.seed)
    sizes = {len(micro) for step in range(1, STEPS + 1) for micro in batches.of_step(step)}
    assert {1, 3} <= sizes


def test_each_step_has_the_learning_rate_and_the_loss_that_one_process_has(one: Path, two: Path) -> None:
    rows = Run(two).metrics()
    expected = [
        1e-4 * factor(SCHEDULES["cosine"], step, steps=STEPS, warmup_steps=1) for step in range(1, STEPS + 1)
    ]
    assert [row["learning_rate"] for row in rows] == expected
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in Run(one).metrics()], 1e-6)
    views = [json.loads((folder / "summary.json").read_text())["views_per_image"] for folder in (one, two)]
    assert views[0] == views[1] > 0


def test_one_process_wrote_and_spoke_and_the_run_folder_is_that_of_one(one: Path, two: Path) -> None:
    found, expected = ({str(p.relative_to(f)) for p in f.rglob("*")} for f in (two, one))
    assert found == expected
    assert [row["step"] for row in Run(two).metrics()] == [1, 2, 3, 4]
    assert [row["step"] for row in Run(two).lines("validation.jsonl")] == [0, 3, 4]
    lines = processes.said(two, 1).replace("\r", "\n").splitlines()
    assert [line for line in lines if line and not line.startswith("Loading weights")] == []  # transformers'
    assert json.loads((two / "verify.json").read_text())["whole"]
    measured = [[row["relative"] for row in Run(f).lines("validation.jsonl")] for f in (two, one)]
    assert measured[0] == pytest.approx(measured[1], 1e-5)


def test_each_process_encoded_a_part_of_the_images_and_captions(two: Path) -> None:
    heard = set(two.with_name("heard").read_text().splitlines())
    cache = two.with_name("cache")
    assert len(list((cache / "latents").iterdir())) == IMAGES
    assert len(list((cache / "text").iterdir())) == IMAGES + 1
    assert {"latents 4", "captions 5"} <= heard  # the main one's share
    assert not {f"latents {IMAGES}", f"captions {IMAGES + 1}"} & heard


def test_processes_without_a_common_disk_are_stopped_and_go_on_as_one(
    tmp_path: Path, recipe: Path, one: Path
) -> None:
    recipe, folder = without(recipe, "[samples]", tmp_path), tmp_path / "run"
    caches = [{"LORA_STUDIO_CACHE": str(tmp_path / f"cache_{rank}")} for rank in range(2)]
    fault = processes.AtStep(1, processes.interrupt)  # Ctrl-C to the main process alone
    started = processes.start_several(recipe, folder, caches, fault=fault)
    assert processes.ends_of(started) == [130, 130], processes.said(folder) + processes.said(folder, 1)
    for cache in caches:
        assert len(list((Path(cache["LORA_STUDIO_CACHE"]) / "latents").iterdir())) == IMAGES
    assert Run(folder).newest_checkpoint().name == "step_000002"  # they agree on it when they next add up
    fault = processes.AtStep(3, processes.interrupt)
    outcome = processes.train(recipe, folder, resume=True, fault=fault)
    assert outcome.code == 130, outcome.said
    assert_close(weights(folder, step=3), weights(one, step=3))


def test_a_process_that_is_killed_ends_the_other_with_a_sentence_and_one_can_go_on(
    tmp_path: Path, recipe: Path
) -> None:
    longer = without(recipe, "[validation]", tmp_path)
    longer.write_text(longer.read_text("utf-8").replace("steps = 4\n", "steps = 500\n", 1), "utf-8")
    folder = tmp_path / "run"
    started = processes.start_several(longer, folder)
    while len(Run(folder).metrics()) < 3 and all(process.is_alive() for process in started):
        time.sleep(0.02)
    started[1].kill()
    assert processes.ends_of(started, seconds=60) == [1, -9]
    newest = Run(folder).newest_checkpoint()
    sentence = f"error: another process of this run has ended; the last good checkpoint is {newest}; "
    assert sentence in processes.said(folder) and "Traceback" not in processes.said(folder)
    at = int(newest.name[5:])
    outcome = processes.train(
        longer, folder, resume=True, fault=processes.AtStep(at + 1, processes.interrupt)
    )
    assert outcome.code == 130, outcome.said
    assert Run(folder).newest_checkpoint().name == f"step_{at + 1:06}"


@pytest.mark.slow
def test_a_base_that_is_spread_over_the_processes_trains_as_a_whole_one(
    tmp_path: Path, recipe: Path, one: Path
) -> None:
    spread = tmp_path / "spread.toml"
    text = recipe.read_text("utf-8").replace("[machine]\n", "[machine]\nshard_base = true\n")
    spread.write_text(text, "utf-8")
    folder = tmp_path / "run"
    started = processes.start_several(spread, folder)
    assert processes.ends_of(started) == [0, 0], processes.said(folder) + processes.said(folder, 1)
    assert_close(weights(folder), weights(one))
    assert json.loads((folder / "verify.json").read_text())["whole"]
    assert (folder / "previews/step_000003.png").is_file()


@pytest.mark.slow
def test_several_processes_measure_checkpoints_together_and_agree_on_the_best(
    tmp_path: Path, recipe: Path
) -> None:
    asked = without(recipe, "[validation]", tmp_path)
    few = 'encoder = "pocket"\ncheckpoint_prompts = 1\nprompts = 1\nseeds = 2\n'
    text = (
        asked.read_text("utf-8") + f"[evaluate]\nevery = 1\nchoose = true\npatience = 1\nat_end = true\n{few}"
    )
    asked.write_text(text + "[samples]\nsteps = 1\n", "utf-8")
    folder, cache = tmp_path / "run", tmp_path / "cache"
    started = processes.start_several(asked, folder, [{"LORA_STUDIO_CACHE": str(cache)}] * 2)
    codes = processes.ends_of(started, seconds=300)
    assert codes == [0, 0], processes.said(folder) + processes.said(folder, 1)
    run = Run(folder)
    steps = [row["step"] for row in run.measurements("choice.jsonl")]
    assert steps == list(range(1, len(steps) + 1)) and run.file_step() == run.chosen_step()
    assert (folder / "evaluation" / "evaluation.json").is_file()
    assert all(one.is_file() for one in (cache / "drawn").iterdir())


def hold_a_part(base: Path, environment: dict[str, str], answer: Path) -> None:
    os.environ.update(environment)
    import torch

    from lora_studio.families.loading import load_base
    from lora_studio.processes import join_processes
    from lora_studio.training.machine import shard

    together = join_processes("cpu")
    options = AdapterOptions("lora", rank=4, alpha=4.0, seed=1)
    found = []
    for spread in (False, True):
        family = load_base(str(base))
        if spread:
            shard(family, together, torch.device("cpu"), torch.float32)
        unet = family.parts["unet"]
        frozen = sum(getattr(p, "_local_tensor", p).nbytes for p in unet.parameters())
        adapters = inject(
            {"unet": unet}, {"unet": family.targets["unet"]}, options, canonical_path=family.canonical_path
        )
        latents = torch.randn(1, 4, 16, 16, generator=generator("latents"))
        text = {name: tensor.detach() for name, tensor in family.encode_text(["x"]).items()}
        family.denoise(latents, torch.tensor([500]), text, torch.zeros(1, 6)).square().mean().backward()
        gradients = [p.grad.flatten() for p in adapters.parameters("unet") if p.grad is not None]
        found.append((frozen, torch.cat(gradients)))
    (whole, expected), (part, gradient) = found
    apart = ((gradient - expected).norm() / expected.norm()).item()
    (answer / environment["RANK"]).write_text(json.dumps([whole, part, apart]))


def started_with(target: Callable[..., None], *arguments: object, folder: Path) -> list[int | None]:
    """Run `target(*arguments, environment, folder)` in two processes; how they ended."""
    started = [
        processes.CONTEXT.Process(target=target, args=(*arguments, environment, folder))
        for environment in processes.launch_environments(2)
    ]
    for process in started:
        process.start()
    return processes.ends_of(started)


def test_each_process_holds_half_of_a_spread_base_and_gradients_are_as_before(
    tmp_path: Path, tiny_base: Path
) -> None:
    assert started_with(hold_a_part, tiny_base, folder=tmp_path) == [0, 0]
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    (whole, *_), _ = found
    assert sum(part for _, part, _ in found) == whole
    assert all(abs(part / whole - 0.5) < 0.02 and apart < 1e-6 for _, part, apart in found)


def exchange(environment: dict[str, str], answer: Path) -> None:
    os.environ.update(environment)
    import torch

    from lora_studio.processes import join_processes

    together = join_processes("auto")

    def fail_on(rank: int) -> str:
        if together.rank == rank:
            raise DatasetError(f"a fault of {rank}")
        return "done"

    said = []
    for attempt in (
        lambda: together.each(lambda: together.rank + 10),
        lambda: together.from_main(lambda: together.rank + 20),
        lambda: together.each(lambda: fail_on(1)),
        lambda: together.from_main(lambda: fail_on(0)),
    ):
        try:
            said.append(attempt())
        except DatasetError as error:
            said.append([str(error), error.told_by_main])
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.tensor([1.0, 2.0])
    if together.is_main:
        parameters[1].grad = torch.tensor([5.0, float("nan")])
    loss, flags = all_reduce_gradients(together, parameters, torch.tensor(0.5), [not together.is_main, False])
    gradients = [None if one.grad is None else one.grad.tolist() for one in parameters]
    said.append([loss.item(), *flags, str(gradients)])
    with together.folder_of_main(answer if together.is_main else answer / "elsewhere") as folder:
        said.append((folder / "a file").read_text())
    (answer / environment["RANK"]).write_text(json.dumps(said))


def test_facts_faults_files_and_gradients_are_the_same_on_all(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("of the main process")
    assert started_with(exchange, folder=tmp_path) == [0, 0]
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert (
        found[0]
        == found[1]
        == [
            [10, 11],
            20,
            ["a fault of 1", True],
            ["a fault of 0", True],
            [1.0, True, False, "[[2.0, 4.0], [5.0, nan], None]"],
            "of the main process",
        ]
    )


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_every_row_belongs_to_one_process_and_in_lockstep_all_have_as_many_passes(
    rows: int, count: int
) -> None:
    together = [Processes(rank, count) for rank in range(count)]
    assert [row for each in together for row in range(rows)[each.share(rows)]] == list(range(rows))
    for passes in (1, 2, 5):
        found = [own_passes(rows, each, passes, lockstep=True) for each in together]
        assert len({len(each) for each in found}) == 1
        assert [row for each in found for part in each for row in range(rows)[part]] == list(range(rows))


def test_an_onlooker_writes_nothing(tmp_path: Path) -> None:
    run = ReadOnlyRun(tmp_path / "run")
    run.text("a.txt", "x")
    run.json("a.json", {})
    run.metric({"step": 1})
    run.append("b.jsonl", {})
    run.forget_after(0)
    run.checkpoint(1, {"a": b""}, keep=1)
    run.remove_left_overs()
    run.close()
    assert list(tmp_path.iterdir()) == []


def test_one_certain_device_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        RecipeError, match=r'machine.device is \'cuda:1\', but 2 processes .* set it to "auto"'
    ):
        join_processes("cuda:1")


@pytest.mark.parametrize(
    ("batch_size", "words"),
    [(4, ["so each has 2"]), (3, ["1 or 2"]), (1, ["0 or 1", "1 of the 2 processes"])],
)
def test_the_plan_tells_what_the_batch_size_means_and_who_stands_idle(
    batch_size: int, words: list[str]
) -> None:
    text = " ".join(line for _, line in processes_section(2, batch_size).rows)
    assert "counts the images of all of them together" in text and all(one in text for one in words)
    assert ("nothing to train" in text) == (batch_size == 1)
    assert not processes_section(1, 1).rows


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--nproc-per-node", "2"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_the_launchers_start_it(launcher: list[str], tmp_path: Path, recipe: Path, one: Path) -> None:
    more = ["--mixed_precision", "no", "--dynamo_backend", "no"] if "accelerate" in launcher[0] else []
    folder = tmp_path / "run"
    command = [sys.executable, "-m", *launcher, *more, "-m", "lora_studio", "train", recipe, "--out", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("reading the base model") == 1 and "so each has 1 or 2" in done.stdout
    assert_close(weights(folder), weights(one))
