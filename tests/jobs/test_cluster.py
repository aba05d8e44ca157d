"""The queue on a Ray cluster: the same files as without it, and a machine that is lost costs no training."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tiny import recipe_text

from lora_studio.errors import StudioError
from lora_studio.jobs import Job, Queue
from lora_studio.jobs.adding import training
from lora_studio.jobs.cluster import RayWorker, connected
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import ReadOnlyRun
from lora_studio.sweep import plan_sweep
from lora_studio.sweep.folder import SweepFolder
from lora_studio.sweep.running import run_sweep
from lora_studio.training.session import train

ROOT = Path(__file__).parents[2]


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudioError, match=r'install it with: pip install "lora-studio\[ray\]"'):
        connected("auto")


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Ray, not yet begun; what it starts finds this checkout, and computes with as many threads as we do."""
    module = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{':'.join(sys.path)}")
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    yield module
    module.shutdown()
    gc.collect()  # of what it leaves to the collector it is warned within the test that caused it


def begun(ray: ModuleType, num_cpus: int) -> None:
    ray.init(num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="error")


def recipe_of(tmp_path: Path, images: Path, base: str, *, steps: int = 2, extra: str = "") -> Path:
    text = recipe_text(images, base, steps=steps, extra=extra)
    (tmp_path / "one.toml").write_text(text, "utf-8")
    return tmp_path / "one.toml"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("trial_*/*.safetensors")}


@pytest.mark.filterwarnings("ignore")  # Ray's own, about what it will do in later versions
def test_a_sweep_on_a_cluster_makes_the_files_of_one_without_it(
    ray: ModuleType, tmp_path: Path, images: Path, tiny_base: Path
) -> None:
    extra = "[validation]\ncount = 1\n[sweep]\nby = 'validation'\nvary = { 'adapter.rank' = [2, 4] }\n"
    plan = plan_sweep(load_recipe(recipe_of(tmp_path, images, str(tiny_base), extra=extra)))
    begun(ray, 2)
    result = run_sweep(plan, SweepFolder(tmp_path / "cluster"), devices=(), ray="auto")
    assert not result.unfinished and result.recommended is not None
    found = files_of(tmp_path / "cluster")
    assert len(found) == 2
    for trial in plan.trials:
        alone = train(trial.recipe, tmp_path / "alone" / trial.name)
        assert alone.lora_file is not None and alone.lora_file.read_bytes() == found[trial.name]


@pytest.mark.filterwarnings("ignore")
def test_jobs_that_fail_or_are_stopped_on_a_cluster_say_so(ray: ModuleType, tmp_path: Path) -> None:
    begun(ray, 2)
    queue = Queue(tmp_path / "queue")
    fails = "import sys; print('a line'); sys.exit('error: no image')"
    waits = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(130)); print('up', flush=True)"
    queue.add(Job(("-c", fails), str(tmp_path)))
    queue.add(Job(("-c", f"{waits}; time.sleep(100)"), str(tmp_path)))
    queue.add(Job(("-c", "pass"), str(tmp_path / "gone")))

    def stop_when_up() -> None:
        while not (queue.log(2).exists() and b"up" in queue.log(2).read_bytes()):
            time.sleep(0.2)
        queue.stop(2)

    thread = threading.Thread(target=stop_when_up)
    thread.start()
    python = lambda job: [sys.executable, "-S", "-E", *job.arguments]  # noqa: E731
    RayWorker(queue, "auto", command=python).work(until_empty=True)
    thread.join()
    assert [job.state for job in queue.jobs()] == ["failed", "stopped", "failed"]
    assert queue.job(1).reason == "no image" and "gone" in queue.job(3).reason


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_six_pocket_trials_are_the_same_with_and_without_a_cluster(
    ray: ModuleType, tmp_path: Path, images: Path
) -> None:
    extra = "[validation]\ncount = 1\n[sweep]\nby = 'validation'\nseeds = 2\n"
    extra += "vary = { 'adapter.rank' = [2, 4, 8] }\n"
    plan = plan_sweep(load_recipe(recipe_of(tmp_path, images, "pocket", extra=extra)))
    begun(ray, 2)
    run_sweep(plan, SweepFolder(tmp_path / "cluster"), devices=(), ray="auto")
    run_sweep(plan, SweepFolder(tmp_path / "here"), devices=["cpu"])
    found = files_of(tmp_path / "cluster")
    assert len(found) == 6 and found == files_of(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_a_lost_machine_was_at_goes_on_elsewhere_to_the_same_bytes(
    ray: ModuleType, tmp_path: Path, images: Path, tiny_base: Path
) -> None:
    from ray.cluster_utils import Cluster  # type: ignore[import-not-found,unused-ignore]

    path = recipe_of(tmp_path, images, str(tiny_base), steps=400)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    first = cluster.add_node(num_cpus=1)
    cluster.connect()
    queue = Queue(tmp_path / "queue")
    job = queue.add(training(path, (), tmp_path / "run"))

    worker = RayWorker(queue, "auto")
    thread = threading.Thread(target=worker.work, kwargs={"until_empty": True})
    thread.start()
    try:  # Ray's machines come and go in the main thread alone
        while not ReadOnlyRun(tmp_path / "run").checkpoints():
            time.sleep(0.1)
        cluster.remove_node(first, allow_graceful=False)
        cluster.add_node(num_cpus=1)
    finally:
        thread.join()
        ray.shutdown()
        cluster.shutdown()
    told = queue.log(job.id).read_text("utf-8")
    assert queue.job(job.id).state == "done", told
    assert "its machine was lost" in told
    alone = train(load_recipe(path), tmp_path / "alone")
    assert alone.lora_file.read_bytes() == (tmp_path / "run" / "tiny.safetensors").read_bytes()
