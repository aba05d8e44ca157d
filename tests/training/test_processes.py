"""Two processes on the CPU train what one trains; one that dies ends the other."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import processes
import pytest
from safetensors.torch import load_file
from tiny import picture_folder, recipe_text
from torch import Tensor

from lora_studio.recipe import load_recipe
from lora_studio.run import Run
from lora_studio.training.build import read_dataset
from lora_studio.training.build import plan as plan_batches
from lora_studio.training.schedule import SCHEDULES, factor

STEPS = 4
EXTRA = """
[holdout]
count = 2
every = 2
[preview]
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
    """Four steps with accumulation, a mean of the weights, holdout and previews."""
    folder = tmp_path_factory.mktemp("recipe")
    picture_folder(folder / "pictures", count=7)
    text = recipe_text(folder / "pictures", str(tiny_base), steps=STEPS, extra=EXTRA)
    text = text.replace("resolution = 64", "resolution = 32").replace("1e-3", "1e-4")
    text = text.replace("batch_size = 2", "batch_size = 3\naccumulation = 2\nema = 0.9")
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
    batches = plan_batches(used, batch_size=3, accumulation=2, seed=loaded.training.seed)
    sizes = {len(micro.indices) for step in range(1, STEPS + 1) for micro in batches.of_step(step)}
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
    assert [row["step"] for row in Run(two).lines("holdout.jsonl")] == [0, 2, 4]
    assert processes.said(two, 1).strip() == ""
    assert json.loads((two / "verify.json").read_text())["whole"]
    measured = [[row["relative"] for row in Run(f).lines("holdout.jsonl")] for f in (two, one)]
    assert measured[0] == pytest.approx(measured[1], 1e-5)


def test_each_process_encoded_a_part_of_the_pictures_and_captions(two: Path) -> None:
    heard = set(two.with_name("heard").read_text().splitlines())
    cache = two.with_name("cache")
    assert len(list((cache / "latents").iterdir())) == 7 and "latents 4" in heard  # the main one's share
    assert len(list((cache / "text").iterdir())) == 8 and "captions 4" in heard
    assert not {"latents 7", "captions 8"} & heard


def test_processes_without_a_common_disk_are_stopped_and_go_on_as_one(
    tmp_path: Path, recipe: Path, one: Path
) -> None:
    folder = tmp_path / "run"
    caches = [{"LORA_STUDIO_CACHE": str(tmp_path / f"cache_{rank}")} for rank in range(2)]
    fault = processes.AtStep(1, processes.interrupt)  # Ctrl-C to the main process alone
    started = processes.start_several(recipe, folder, caches, fault=fault)
    assert processes.ends_of(started) == [0, 0], processes.said(folder) + processes.said(folder, 1)
    for cache in caches:
        assert len(list((Path(cache["LORA_STUDIO_CACHE"]) / "latents").iterdir())) == 7
    (checkpoint,) = Run(folder).checkpoints()
    assert checkpoint.name == "step_000002"  # they agree on it when they next add up
    outcome = processes.train(recipe, folder, resume=True)
    assert outcome.code == 0, outcome.said
    assert_close(weights(folder), weights(one))


def test_a_process_that_is_killed_ends_the_other_with_a_sentence_and_one_can_go_on(
    tmp_path: Path, recipe: Path
) -> None:
    longer = tmp_path / "longer.toml"
    longer.write_text(recipe.read_text("utf-8").replace("steps = 4\n", "steps = 500\n", 1), "utf-8")
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
    assert outcome.code == 0, outcome.said
    assert Run(folder).newest_checkpoint().name == f"step_{at + 1:06}"


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


def hold_a_part(base: Path, environment: dict[str, str], answer: Path) -> None:
    os.environ.update(environment)
    import torch

    from lora_studio.families.loading import load_base
    from lora_studio.processes import join_processes
    from lora_studio.training.sharded import shard

    together = join_processes("cpu")
    family = load_base(str(base))
    inputs = (torch.randn(1, 4, 16, 16), torch.tensor([500]), family.encode_text(["x"]), torch.zeros(1, 6))
    with torch.no_grad():
        whole = family.denoise(*inputs)
        sizes = [sum(p.nbytes for p in family.parts["unet"].parameters())]
        shard(family, together, torch.device("cpu"), torch.float32)
        apart = (family.denoise(*inputs) - whole).abs().max().item()
    sizes.append(sum(p.to_local().nbytes for p in family.parts["unet"].parameters()))
    (answer / environment["RANK"]).write_text(json.dumps({"sizes": sizes, "apart": apart}))


def test_each_process_holds_half_of_a_spread_base_which_answers_as_before(
    tmp_path: Path, tiny_base: Path
) -> None:
    started = [
        processes.CONTEXT.Process(target=hold_a_part, args=(tiny_base, environment, tmp_path))
        for environment in processes.launch_environments(2)
    ]
    for process in started:
        process.start()
    assert processes.ends_of(started) == [0, 0]
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    whole = found[0]["sizes"][0]
    assert sum(each["sizes"][1] for each in found) == whole
    assert all(abs(each["sizes"][1] / whole - 0.5) < 0.02 and each["apart"] < 1e-5 for each in found)
