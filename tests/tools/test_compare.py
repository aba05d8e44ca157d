"""What a comparison says, against the dense changes and against what is known of the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_files import SHAPES, dense, write_random_lora
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_studio.errors import StudioError
from lora_studio.families.loading import load_base
from lora_studio.lora_file.lora_file import base_layers
from lora_studio.lora_file.open import open_plain
from lora_studio.tools.combine import Term
from lora_studio.tools.compare import MAIN, compare, compare_images, merged, prompts_for
from lora_studio.tools.plots import heat_map


def lora(tmp_path: Path, name: str, **options: object) -> Path:
    return write_random_lora(tmp_path / f"{name}.safetensors", **options)


def terms(*pairs: tuple[Path, float]) -> list[Term]:
    return [Term(open_plain(path), strength) for path, strength in pairs]


def test_norms_and_cosines_are_those_of_the_dense_changes(tmp_path: Path) -> None:
    a, b = lora(tmp_path, "a", rank=3, seed=1), lora(tmp_path, "b", rank=5, alpha=None, seed=2)
    found = compare(*terms((a, 1.0), (b, -0.5)))
    one, other = dense(a), {name: -0.5 * change for name, change in dense(b).items()}
    for layer in found.shared:
        x, y = one[layer.name].flatten(), other[layer.name].flatten()
        assert layer.norms == pytest.approx((x.norm().item(), y.norm().item()))
        assert layer.cosine == pytest.approx((x @ y / (x.norm() * y.norm())).item(), abs=1e-9)
    x, y = (torch.cat([changes[name].flatten() for name in SHAPES]) for changes in (one, other))
    assert found.norms == pytest.approx((x.norm().item(), y.norm().item()))
    assert found.cosine == pytest.approx((x @ y / (x.norm() * y.norm())).item(), abs=1e-9)


def test_overlap_is_the_dense_projections_above_chance(tmp_path: Path) -> None:
    shapes = {"lora_x": (40, 30)}
    a, b = (lora(tmp_path, name, rank=r, seed=r, shapes=shapes) for name, r in (("a", 4), ("b", 6)))
    (layer,) = compare(*terms((a, 1.0), (b, 1.0))).shared

    def expected(*changes: torch.Tensor) -> float:
        both = []
        for subject, against in (changes, changes[::-1]):
            _, sizes, right = torch.linalg.svd(against)
            energy = sizes.square().cumsum(0) / sizes.square().sum()
            main = right[: int((energy < MAIN).sum()) + 1]
            share = (subject @ main.T).square().sum() / subject.square().sum()
            chance = len(main) / subject.shape[1]
            both.append(((share - chance) / (1 - chance)).item())
        return sum(both) / 2

    one, other = dense(a)["lora_x"], dense(b)["lora_x"]
    assert layer.reads == pytest.approx(expected(one, other), abs=1e-9)
    assert layer.writes == pytest.approx(expected(one.T, other.T), abs=1e-9)


def test_random_files_overlap_by_chance_and_a_file_with_itself_whole(tmp_path: Path) -> None:
    shapes = {f"lora_{n}": (400, 300) for n in range(4)}
    a, b = (lora(tmp_path, name, seed=n, shapes=shapes) for n, name in enumerate("ab"))
    strangers, same = compare(*terms((a, 1.0), (b, 1.0))), compare(*terms((a, 1.0), (a, 2.0)))
    assert abs(strangers.reads) < 0.02 and abs(strangers.cosine) < 0.02
    assert strangers.verdict == "combine"
    assert same.reads > MAIN and same.cosine == pytest.approx(1) and same.verdict == "compete"
    assert compare(*terms((a, 1.0), (a, -1.0))).cosine == pytest.approx(-1)
    assert compare(*terms((a, 0.2), (b, 1.0))).verdict == "one dominates"


def test_triggers_that_clash_and_layers_of_one_file_are_told(tmp_path: Path) -> None:
    fewer = dict(list(SHAPES.items())[:2])
    a = lora(tmp_path, "a", metadata={"modelspec.trigger_phrase": "a vkq robot"})
    b = lora(tmp_path, "b", seed=1, shapes=fewer, metadata={"modelspec.trigger_phrase": "robot in a style"})
    found = compare(*terms((a, 1.0), (b, 1.0)))
    assert found.clashing_words == ["robot"] and found.alone == (1, 0)
    assert prompts_for(terms((a, 1.0), (b, 1.0))) == [
        "a vkq robot",
        "robot in a style",
        "a vkq robot, robot in a style",
    ]
    silent = lora(tmp_path, "c")
    with pytest.raises(StudioError, match=r"c\.safetensors does not say which words call it; give --prompt"):
        prompts_for(terms((a, 1.0), (silent, 1.0)))


def test_a_file_that_does_nothing_is_named(tmp_path: Path) -> None:
    a, b = lora(tmp_path, "a"), lora(tmp_path, "b")
    save_file({k: v * ("up" not in k) for k, v in load_file(b).items()}, b)
    with pytest.raises(StudioError, match=r"b\.safetensors changes nothing"):
        compare(*terms((a, 1.0), (b, 1.0)))


def test_the_heat_map_is_an_image_of_the_layers(tmp_path: Path) -> None:
    import io

    a, b = lora(tmp_path, "a"), lora(tmp_path, "b", seed=1)
    found = compare(*terms((a, 1.0), (b, 1.0)))
    image = Image.open(io.BytesIO(heat_map(found)))
    assert image.format == "PNG" and image.width > 500
    assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_the_images_are_of_the_base_each_file_and_both(tiny_base: Path, tmp_path: Path) -> None:
    """Same noise in every column: a file of no effect draws the base's image."""
    layers = base_layers(load_base(str(tiny_base)))
    name = next(name for name in layers if name.endswith("attn2_to_v"))
    shapes = {name: tuple(layers[name].weight.shape)}
    a, b = (lora(tmp_path, one, alpha=alpha, shapes=shapes) for one, alpha in (("a", 1e-9), ("b", 4e3)))
    pair = terms((a, 1.0), (b, 1.0))
    sheet = compare_images(str(tiny_base), pair, ["a fox"], seed=0, steps=2)
    side = (sheet.width - 12) // 4 - 12
    columns = [
        sheet.crop((12 + n * (side + 12), 52, 12 + n * (side + 12) + side, 52 + side)) for n in range(4)
    ]
    base, without, tuned, both = (column.tobytes() for column in columns)
    assert base == without != tuned == both


def test_merging_for_an_image_leaves_the_base_as_it_was(tiny_base: Path, tmp_path: Path) -> None:
    family = load_base(str(tiny_base))
    name, layer = next(iter(base_layers(family).items()))
    file = lora(tmp_path, "a", shapes={name: tuple(layer.weight.shape)})
    before = layer.weight.clone()
    with merged(family, terms((file, 0.5))):
        change = 0.5 * dense(file)[name].float()
        assert torch.allclose(layer.weight, before + change, atol=1e-6)
    assert torch.equal(layer.weight, before)
    other = lora(tmp_path, "b", shapes={"lora_unet_nowhere": (4, 4)})
    with (
        pytest.raises(
            StudioError, match=r"1 of 1 layer of b\.safetensors is not in this base, first lora_unet_nowhere"
        ),
        merged(family, terms((other, 1.0))),
    ):
        pass
