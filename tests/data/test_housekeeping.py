"""What lies in the cache folder and what of it may go."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from lora_studio.data.cache import (
    CacheEntry,
    bytes_of,
    entries,
    prunable,
    remove,
    remove_left_overs,
    seconds_of,
)
from lora_studio.data.cache.encode import TextCache
from lora_studio.data.cache.store import TensorStore
from lora_studio.errors import DatasetError

DAY = 24 * 3600


def file_in(folder: Path, name: str, *, size: int = 100, days_old: float = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - days_old * DAY,) * 2)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two latents, a caption, and a regularization image with what was said about it."""
    file_in(tmp_path / "latents", f"{'a' * 64}.safetensors", size=1000, days_old=40)
    file_in(tmp_path / "latents", f"{'b' * 64}.safetensors", size=1000, days_old=10)
    file_in(tmp_path / "text", f"{'c' * 64}.safetensors", size=500, days_old=35)
    for ending in ("png", "json"):
        file_in(tmp_path / "class_images", f"{'d' * 64}.{ending}", size=250, days_old=2)
    return tmp_path


def test_entries_are_counted_by_kind_with_their_bytes(cache: Path) -> None:
    found = [(one.kind, len(one.files), one.num_bytes) for one in entries(cache)]
    assert sorted(found) == [
        ("class_images", 2, 500),
        ("latents", 1, 1000),
        ("latents", 1, 1000),
        ("text", 1, 500),
    ]
    assert entries(cache / "nowhere") == []


def names(found: list[CacheEntry]) -> set[str]:
    return {one.files[0].name[0] for one in found}


def test_what_was_not_used_for_long_goes(cache: Path) -> None:
    assert names(prunable(entries(cache), older_than=30 * DAY)) == {"a", "c"}


@pytest.mark.parametrize(("left", "gone"), [(3000, ""), (2999, "a"), (2000, "a"), (1999, "ac"), (0, "abcd")])
def test_down_to_a_size_the_longest_unused_go_first(cache: Path, left: int, gone: str) -> None:
    assert names(prunable(entries(cache), max_bytes=left)) == set(gone)


def test_age_and_size_together(cache: Path) -> None:
    assert names(prunable(entries(cache), older_than=38 * DAY, max_bytes=1500)) == {"a", "c"}


def test_nothing_but_entries_is_ever_removed(cache: Path) -> None:
    keep = [
        file_in(cache, "holiday.jpg"),
        file_in(cache, f"{'a' * 64}.safetensors"),
        file_in(cache / "latents", "mine.safetensors"),
        file_in(cache / "latents", f"{'a' * 63}.safetensors"),
        file_in(cache / "latents", f"{'a' * 64}.txt"),
        file_in(cache / "latents" / f"{'e' * 64}.png", "inside.png"),
        file_in(cache / "loras", f"{'a' * 64}.safetensors"),
    ]
    outside = file_in(cache / "elsewhere", f"{'f' * 64}.safetensors")
    (cache / "latents" / f"{'f' * 64}.safetensors").symlink_to(outside)
    remove(prunable(entries(cache), max_bytes=0))
    assert all(path.is_file() for path in [*keep, outside])
    assert entries(cache) == [] and (cache / "latents" / f"{'f' * 64}.safetensors").is_symlink()


def test_a_kinds_folder_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    path = file_in(tmp_path / "elsewhere", f"{'a' * 64}.safetensors")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "latents").symlink_to(path.parent, target_is_directory=True)
    assert entries(tmp_path / "cache") == []


def test_what_a_crash_left_goes_after_an_hour(cache: Path) -> None:
    file_in(cache / "latents", f"{'a' * 64}.{'1' * 32}.tmp", days_old=2)
    file_in(cache / "class_images", f".lora-studio-{'2' * 32}.tmp", days_old=2)
    young = file_in(cache / "text", f"{'b' * 64}.{'3' * 32}.tmp")
    gone = prunable(entries(cache), max_bytes=10**9)
    assert remove(gone) == 200 and [one.leftover for one in gone] == [True, True]
    assert young.is_file()


def test_a_run_removes_what_killed_ones_left_and_not_what_a_running_one_may_hold(cache: Path) -> None:
    old = file_in(cache / "latents", f"{'a' * 64}.{'1' * 32}.tmp", days_old=1)
    memory = file_in(cache, f".lora-studio-{'2' * 32}.tmp", days_old=1)
    others = [file_in(cache / "latents", "mine.tmp", days_old=9), file_in(cache / "text", "a.safetensors")]
    young = file_in(cache / "text", f"{'b' * 64}.{'3' * 32}.tmp")
    remove_left_overs(cache)
    assert not old.exists() and not memory.exists()
    assert all(one.is_file() for one in (*others, young))
    remove_left_overs(cache / "nowhere")


def test_using_an_entry_makes_it_young_again(cache: Path) -> None:
    store = TensorStore(cache / "text")
    store.save("e" * 64, {"x": torch.ones(3)})
    path = cache / "text" / f"{'e' * 64}.safetensors"
    os.utime(path, (time.time() - 50 * DAY,) * 2)
    assert "e" in names(prunable(entries(cache), older_than=30 * DAY))
    assert store.load("e" * 64) is not None
    assert "e" not in names(prunable(entries(cache), older_than=30 * DAY))


def test_a_pruned_entry_is_made_again(tmp_path: Path) -> None:
    def encode(captions: list[str]) -> dict[str, torch.Tensor]:
        return {"text": torch.tensor([[len(caption)] for caption in captions])}

    TextCache(tmp_path / "text", "clip").load_or_encode(["a", "b"], encode)
    assert remove(prunable(entries(tmp_path), max_bytes=0)) > 0
    again = TextCache(tmp_path / "text", "clip")
    again.load_or_encode(["a", "b"], encode)
    assert again.encoded == 2


def test_removing_what_another_process_removed_is_no_fault(cache: Path) -> None:
    found = entries(cache)
    remove(found)
    assert remove(found) == 3000


@pytest.mark.parametrize(("text", "seconds"), [("30d", 30 * DAY), ("12h", 12 * 3600), (" 4W ", 28 * DAY)])
def test_ages(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("5GB", 5 * 10**9), ("1.5 tb", 1.5 * 10**12), ("500", 500), ("0MB", 0), ("7kb", 7000)],
)
def test_sizes(text: str, num_bytes: float) -> None:
    assert bytes_of(text) == num_bytes


@pytest.mark.parametrize("text", ["", "d", "30", "-3d", "3 months", "1.5d"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="is no age; give hours, days or weeks such as 12h"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "5 gigs", "5PB", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="is no size; give bytes, KB, MB, GB or TB such as 500MB"):
        bytes_of(text)
