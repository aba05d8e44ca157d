from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_config import data_config
from noise import grey_noise
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_studio.data.batches import each_view
from lora_studio.data.buckets import assign
from lora_studio.data.cache.encode import LatentCache, TextCache, pixels_of
from lora_studio.data.cache.store import Latent, sample_latents
from lora_studio.data.scan import ScanOptions, scan
from lora_studio.errors import DatasetError


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def halves(pixels):
    """Stands for a VAE: 8x8 means and deviations of the pixels."""
    mean = torch.nn.functional.avg_pool2d(pixels, 8)
    return mean, mean.abs() + 0.1


def lengths(captions):
    """Stands for a text encoder with two outputs."""
    numbers = torch.tensor([[len(caption)] for caption in captions])
    return {"hidden": numbers.float()[:, None].expand(-1, 5, 3), "mask": numbers > 0}


@pytest.fixture
def records(folder, paint):
    for number, size in enumerate([(64, 64), (90, 70), (70, 90), (64, 64)]):
        paint(f"{number}.png", *size, (40 * number, 200 - 40 * number, 90))
    return assign(scan(folder), data_config(resolution=64), stride=8).used


@pytest.fixture
def store(tmp_path):
    return tmp_path / "cache"


def files(store):
    return sorted(store.glob("*.safetensors"))


def test_pixels_are_the_resized_crop_in_minus_one_to_one(folder):
    noise = grey_noise((100, 80), 80).convert("RGB")
    noise.save(folder / "a.png")
    (record,) = assign(scan(folder), data_config(resolution=64), stride=8).used
    pixels = pixels_of(record)
    expected = np.asarray(noise.resize(record.resize, Image.Resampling.LANCZOS).crop(record.crop))
    assert pixels.shape == (3, record.bucket.height, record.bucket.width) and pixels.dtype == torch.float32
    # One level: the crop's place in the image is a number with a rounding of its own.
    assert np.abs(((pixels.permute(1, 2, 0) + 1) * 127.5).round().numpy() - expected).max() <= 1


def test_black_is_minus_one_and_white_is_one(folder, paint):
    paint("black.png", 64, 64, "black")
    paint("white.png", 64, 64, "white")
    black, white = assign(scan(folder), data_config(resolution=64), stride=8).used
    assert (pixels_of(black) == -1).all() and (pixels_of(white) == 1).all()


def test_the_second_run_encodes_nothing_and_gets_the_same_latents(records, store):
    first, second = LatentCache(store, "vae"), LatentCache(store, "vae")
    made, read = first.load_or_encode(records, halves), second.load_or_encode(records, halves)
    assert (first.encoded, second.encoded) == (4, 0)
    for record, a, b in zip(records, made, read, strict=True):
        mean, std = halves(pixels_of(record)[None])
        for latent in (a, b):
            assert torch.equal(latent.mean, mean[0]) and torch.equal(latent.std, std[0])
            assert latent.mean.shape == (3, record.bucket.height // 8, record.bucket.width // 8)


def test_editing_one_image_encodes_exactly_one(folder, records, store):
    LatentCache(store, "vae").load_or_encode(records, halves)
    Image.new("RGB", (64, 64), "yellow").save(folder / "0.png")
    cache = LatentCache(store, "vae")
    latents = cache.load_or_encode(assign(scan(folder), data_config(resolution=64), stride=8).used, halves)
    assert cache.encoded == 1
    assert latents[0].mean[0, 0, 0] == 1  # yellow's red


def test_the_key_depends_on_all_that_the_latent_depends_on(records, store):
    record, cache = records[1], LatentCache(store, "vae")
    others = [
        LatentCache(store, "another vae").key(record),
        cache.key(replace(record, flip=True)),
        cache.key(replace(record, sha256="0" * 64)),
        cache.key(replace(record, background="white")),
        cache.key(replace(record, bucket=records[0].bucket)),
        cache.key(replace(record, resize=(1, 1))),
        cache.key(replace(record, crop=(1, 0, 73, 56))),
    ]
    assert len({cache.key(record), *others}) == 8


def test_the_key_does_not_depend_on_name_caption_or_repeats(records, store):
    cache = LatentCache(store, "vae")
    renamed = replace(records[0], name="x", path="/x", caption="x", repeats=9, weight=0.5)
    assert cache.key(records[0]) == cache.key(renamed)


def test_another_background_encodes_only_images_with_transparency(folder, paint, store):
    paint("solid.png", 64, 64, "red")
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 0, 255))
    clear.save(folder / "clear.png")
    means, counts = [], []
    for background in ("white", "#000000", "white"):
        cache = LatentCache(store, "vae")
        placed = assign(
            scan(folder, ScanOptions(background=background)), data_config(resolution=64), stride=8
        ).used
        means.append(cache.load_or_encode(placed, halves)[0].mean[:, -1, -1].tolist())
        counts.append(cache.encoded)
    assert counts == [2, 1, 0]
    assert means == [[1, 1, 1], [-1, -1, -1], [1, 1, 1]]


def test_another_resolution_encodes_every_image_again(folder, records, store):
    """Pain point 11: a cache that knows images by name went on being used after the resolution changed."""
    LatentCache(store, "vae").load_or_encode(records, halves)
    larger = assign(scan(folder), data_config(resolution=128, max_upscale=4), stride=8).used
    cache = LatentCache(store, "vae")
    latents = cache.load_or_encode(larger, halves)
    assert cache.encoded == len(records)
    assert [latent.mean.shape[1] * 8 for latent in latents] == [record.bucket.height for record in larger]


def test_every_view_is_encoded_once_and_further_ones_leave_the_others_be(folder, records, store):
    LatentCache(store, "vae").load_or_encode(records, halves)
    framing = data_config(resolution=64, flip=0.5, extra_resolutions=(32,))
    views = each_view(assign(scan(folder), framing, stride=8).used)
    cache = LatentCache(store, "vae")
    cache.load_or_encode(views, halves)
    assert len(views) == 4 * len(records) and cache.encoded == 3 * len(records)


def test_a_mirrored_latent_is_encoded_from_the_mirrored_image(folder, store):
    """And not made of the other latent: a VAE answers a mirrored image with something else."""
    grey_noise((200, 90), 80).convert("RGB").save(folder / "a.png")
    (record,) = assign(scan(folder), data_config(resolution=64, flip=0.5), stride=8).used
    plain, mirrored = (pixels_of(view) for view in each_view([record]))
    assert (plain - mirrored.flip(2)).abs().max() <= 1 / 127.5  # but for the rounding of a level
    lopsided = torch.nn.Conv2d(3, 4, 8, stride=8)
    latents = LatentCache(store, "vae").load_or_encode(
        each_view([record]), lambda pixels: (lopsided(pixels), lopsided(pixels).exp())
    )
    assert torch.equal(latents[1].mean, lopsided(mirrored[None])[0].detach())
    assert not torch.allclose(latents[1].mean, latents[0].mean.flip(2), atol=0.01)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit_of_the_last_number(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def hold_something_else(path):
    save_file({"something": torch.zeros(3)}, path)


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit_of_the_last_number, hold_something_else])
def test_a_damaged_file_is_made_again(records, store, damage):
    made = LatentCache(store, "vae").load_or_encode(records, halves)
    good = files(store)[0].read_bytes()
    damage(files(store)[0])
    cache = LatentCache(store, "vae")
    again = cache.load_or_encode(records, halves)
    assert cache.encoded == 1 and files(store)[0].read_bytes() == good
    assert all(torch.equal(a.mean, b.mean) for a, b in zip(made, again, strict=True))


def test_nan_and_infinity_are_reported_with_the_names_and_not_stored(records, store):
    def sick(pixels):
        mean, std = halves(pixels)
        wide, tall = mean.shape[3] > mean.shape[2], mean.shape[3] < mean.shape[2]
        return (mean / 0 if wide else mean), (std * float("nan") if tall else std)

    with pytest.raises(
        DatasetError, match=r"NaN or infinite latents for 1\.png, 2\.png, in float32, too; remove these"
    ):
        LatentCache(store, "vae").load_or_encode(records, sick)
    cache = LatentCache(store, "vae")
    cache.load_or_encode(records, halves)
    assert cache.encoded == 2  # the two healthy ones were kept


def test_an_image_that_changed_after_the_scan_is_refused(folder, records, store):
    Image.new("RGB", (64, 64), "yellow").save(folder / "0.png")
    with pytest.raises(DatasetError, match=r"0\.png has changed since the folder was scanned; start"):
        LatentCache(store, "vae").load_or_encode(records, halves)


def test_an_image_that_vanished_after_the_scan_is_named(folder, records):
    (folder / "0.png").unlink()
    with pytest.raises(DatasetError, match=r"0\.png can no longer be used \(cannot be read"):
        pixels_of(records[0])


def test_latents_do_not_depend_on_what_was_cached_before(records, store, tmp_path):
    convolution = torch.nn.Conv2d(3, 24, 8, stride=8)  # its last bits differ with the batch size

    def encode(pixels):
        return convolution(pixels), convolution(pixels).exp()

    whole = LatentCache(store, "vae").load_or_encode(records, encode)
    interrupted = tmp_path / "interrupted"
    LatentCache(interrupted, "vae").load_or_encode(records[:1], encode)
    resumed = LatentCache(interrupted, "vae").load_or_encode(records, encode)
    assert all(torch.equal(a.mean, b.mean) for a, b in zip(whole, resumed, strict=True))
    assert not whole[0].mean.requires_grad


class Overflowing:
    """Stands for a VAE in half precision, which gives infinity for bright images."""

    def __init__(self):
        self.calls = 0

    def __call__(self, pixels):
        self.calls += 1
        mean, std = halves(pixels)
        return torch.where(pixels.mean((1, 2, 3)) > 0, torch.inf, 1.0)[:, None, None, None] * mean, std


def test_an_image_that_overflows_is_encoded_again_in_float32_and_named(folder, paint, store):
    """USERS row 4: zeros are never put in its place."""
    paint("bright.png", 64, 64, "white")
    paint("dark.png", 64, 64, "black")
    records = assign(scan(folder), data_config(resolution=64), stride=8).used
    cache, sick = LatentCache(store, "vae in bfloat16"), Overflowing()
    bright, dark = cache.load_or_encode(records, sick, in_float32=halves)
    assert cache.retried == ["bright.png"] and sick.calls == 2
    assert torch.equal(bright.mean, torch.ones(3, 8, 8)) and torch.equal(dark.mean, -torch.ones(3, 8, 8))
    again = LatentCache(store, "vae in bfloat16")
    assert torch.equal(again.load_or_encode(records, sick)[0].mean, bright.mean)
    assert (again.encoded, again.retried) == (0, [])


def many(folder, count):
    """Images of one bucket, all different."""
    for number in range(count):
        grey_noise((64, 64), 90 + number).convert("RGB").save(folder / f"{number}.png")
    return assign(scan(folder), data_config(resolution=64), stride=8).used


def test_in_batches_a_latent_does_not_depend_on_its_neighbours_or_on_what_was_cached(folder, tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Conv2d(32, 24, 8, stride=8))
    shapes = []

    def encode(pixels):
        shapes.append(tuple(pixels.shape))
        mean = network(pixels)
        return mean, mean.exp()

    def latents(name, records):
        return LatentCache(tmp_path / name, "vae", batch_pixels=4 * 64 * 64).load_or_encode(records, encode)

    records = many(folder, 7)
    whole = latents("whole", records)
    assert shapes == [(4, 3, 64, 64)] * 2  # filled up: always as many
    latents("interrupted", records[2:5])
    for other in (latents("interrupted", records), latents("backwards", records[::-1])[::-1]):
        assert all(torch.equal(a.mean, b.mean) for a, b in zip(whole, other, strict=True))


def test_a_batch_holds_one_bucket_and_large_images_are_encoded_one_by_one(records, store):
    sizes = []

    def encode(pixels):
        sizes.append((len(pixels), *pixels.shape[2:]))
        return halves(pixels)

    cache = LatentCache(store, "vae", batch_pixels=2 * 64 * 64 - 1)
    latents = cache.load_or_encode(records, encode)
    assert cache.encoded == 4 and {size[0] for size in sizes} == {1, 2} and (1, 64, 64) in sizes
    for record, latent in zip(records, latents, strict=True):
        assert torch.equal(latent.mean, halves(pixels_of(record)[None])[0][0])


def test_progress_counts_what_is_encoded(records, store):
    calls = []
    LatentCache(store, "vae").load_or_encode(records[:1], halves)
    LatentCache(store, "vae").load_or_encode(
        records, halves, on_progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_half_precision_latents_are_stored_in_float32(records, store):
    def half(pixels):
        mean, std = halves(pixels)
        return mean.half(), std.half()

    LatentCache(store, "vae").load_or_encode(records, half)
    assert {tensor.dtype for tensor in load_file(files(store)[0]).values()} == {torch.float32}


def test_a_sample_is_the_mean_plus_deviation_times_keyed_noise():
    latent = Latent(torch.full((4, 64, 64), 3.0), torch.full((4, 64, 64), 0.5))
    drawn, again = (sample_latents([latent], torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(drawn, again)
    # 16,384 draws: four standard errors of the mean are 0.016, of the deviation 0.011.
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.016)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.011)


def test_captions_are_encoded_once_and_read_back_equal(store):
    first, second = TextCache(store, "clip"), TextCache(store, "clip")
    made = first.load_or_encode(["a cat", "", "a cat", "ein Kätzchen"], lengths)
    read = second.load_or_encode(["a cat", "", "ein Kätzchen"], lengths)
    assert (first.encoded, second.encoded) == (3, 0)
    assert list(made) == list(read) == ["a cat", "", "ein Kätzchen"]
    for caption, conditioning in read.items():
        expected = lengths([caption])
        assert conditioning.keys() == expected.keys()
        for name in expected:
            assert conditioning[name].dtype == expected[name].dtype
            assert torch.equal(conditioning[name], expected[name]) and torch.equal(
                made[caption][name], expected[name]
            )


def test_a_caption_can_be_encoded_without_being_kept(store):
    cache = TextCache(store, "clip")
    fresh = cache.encode("a cat", lengths)
    assert not list(store.glob("*")) and cache.encoded == 1
    kept = cache.load_or_encode(["a cat"], lengths)["a cat"]
    assert fresh.keys() == kept.keys() and all(torch.equal(fresh[name], kept[name]) for name in kept)


def test_progress_counts_the_captions_that_are_encoded(store):
    seen = []
    TextCache(store, "clip").load_or_encode(["a"], lengths)
    TextCache(store, "clip").load_or_encode(
        ["a", "b", "b", "c"], lengths, on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]


def test_editing_a_caption_or_the_encoder_encodes_again(store):
    TextCache(store, "clip").load_or_encode(["a cat", "a dog"], lengths)
    edited, other = TextCache(store, "clip"), TextCache(store, "another clip")
    edited.load_or_encode(["a cat", "a dog, sitting"], lengths)
    other.load_or_encode(["a cat", "a dog"], lengths)
    assert (edited.encoded, other.encoded) == (1, 2)


def test_a_damaged_caption_entry_is_made_again(store):
    TextCache(store, "clip").load_or_encode(["a cat", "a dog"], lengths)
    truncate(files(store)[0])
    cache = TextCache(store, "clip")
    cache.load_or_encode(["a cat", "a dog"], lengths)
    assert cache.encoded == 1


def test_outputs_that_share_memory_are_stored_all_the_same(store):
    def views(captions):
        states = torch.arange(12.0).reshape(1, 4, 3)
        return {"hidden": states, "pooled": states[:, -1]}

    TextCache(store, "clip").load_or_encode(["a cat"], views)
    read = TextCache(store, "clip").load_or_encode(["a cat"], lengths)["a cat"]
    assert torch.equal(read["pooled"], torch.tensor([[9.0, 10.0, 11.0]]))


def test_nan_from_the_text_encoder_names_the_caption(store):
    with pytest.raises(DatasetError, match="for the caption 'a cat'; run the text encoder in float32"):
        TextCache(store, "clip").load_or_encode(
            ["a cat"], lambda _: {"hidden": torch.tensor([[float("nan")]])}
        )
    assert files(store) == []


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"cache folder .*file cannot be written to \(.*\); free space"):
        TextCache(tmp_path / "file", "clip").load_or_encode(["a cat"], lengths)


# Forked, so that what they import is imported once.
TWO_AT_ONCE = """
import os, sys, torch
from pathlib import Path
from lora_studio.data.buckets import assign
from lora_studio.data.cache.encode import LatentCache
from lora_studio.data.scan import scan
from lora_studio.recipe.data import DataConfig
torch.set_num_threads(1)
def encode(pixels):
    mean = torch.nn.functional.avg_pool2d(pixels, 8)
    return mean, mean.abs() + 0.1
def run():
    cache = LatentCache(Path(sys.argv[2]), "vae")
    data = DataConfig(images=sys.argv[1], resolution=64)
    latents = cache.load_or_encode(assign(scan(data.images), data, stride=8).used, encode)
    print(cache.encoded, sum(latent.mean.double().sum().item() for latent in latents), flush=True)
for _ in range(2):
    if os.fork() == 0:
        run()
        os._exit(0)
assert [os.wait()[1] for _ in range(2)] == [0, 0]
run()
"""


def test_two_processes_that_encode_the_same_images_at_once_agree(folder, store):
    many(folder, 24)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TWO_AT_ONCE, str(folder), str(store)]
    ended = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    (_, one), (_, other), third = (line.split() for line in ended.stdout.splitlines())
    assert one == other and third == ["0", one]
    assert len(files(store)) == len(list(store.iterdir())) == 24


def test_processes_that_share_a_cache_leave_whole_files_only(tmp_path, store):
    script = (
        "import os, sys, torch; from pathlib import Path\n"
        "from lora_studio.data.cache.store import TensorStore\n"
        "store, other = TensorStore(Path(sys.argv[1])), os.fork()\n"
        "for _ in range(150):\n"
        "    store.save('key', {'x': torch.arange(5000)})\n"
        "    assert torch.equal(store.load('key')['x'], torch.arange(5000))\n"
        "assert not other or os.wait()[1] == 0\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script, str(store)], env=environment, check=True, timeout=120)
    assert [path.name for path in store.iterdir()] == ["key.safetensors"]


def test_the_source_images_are_never_written(folder, records, store):
    def state():
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    before = state()
    LatentCache(store, "vae").load_or_encode(records, halves)
    assert state() == before
