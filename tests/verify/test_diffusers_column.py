"""The table's word on diffusers, against diffusers' own loader on miniatures: strengths, names and kinds."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.lora_file.lora_file import base_layers, open_lora
from lora_studio.tools.convert import convert
from lora_studio.verify import verify
from lora_studio.verify.uis.table import UIS

Tensors = dict[str, Tensor]
WORD = "diffusers"
EVERY = re.compile(r"blocks_(?!0_0$)|mid_|middle_|encoder_layers")


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def base(request: pytest.FixtureRequest, base_of: Callable[[str], Path]) -> Path:
    return base_of(request.param)


@pytest.fixture
def family(base: Path) -> ModelFamily:
    return load_base(str(base))


def factors(layer: nn.Module, rank: int) -> tuple[Tensor, Tensor]:
    shape = layer.weight.shape  # type: ignore[union-attr]
    down = torch.randn(rank, *shape[1:])  # type: ignore[misc]
    return down, torch.randn(shape[0], rank, *(1 for _ in shape[2:]))  # type: ignore[misc,arg-type]


def loaded_changes(path: Path, family: ModelFamily) -> dict[str, Tensor]:
    """UI name -> the change of weight that diffusers makes of it."""
    pipeline = family.pipeline()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following alpha_pattern keys", RuntimeWarning)
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
    found = {}
    for part in family.targets:
        for name, module in family.parts[part].named_modules():
            for adapter in getattr(module, "scaling", ()):
                ui_name = family.ui_name(part, family.canonical_path(part, name))
                found[ui_name] = module.get_delta_weight(adapter).detach()  # type: ignore[operator]
    return found


def random_file(path: Path, family: ModelFamily, alpha: Callable[[str], float | None]) -> Path:
    """Every layer that UIs know, ranks of 2 to 4, `alpha` by name."""
    torch.manual_seed(0)
    draw, tensors = random.Random(0), Tensors()
    for name, layer in base_layers(family).items():
        if EVERY.search(name) and "text_projection" not in name:
            rank, chosen = draw.choice([2, 3, 4]), alpha(name)
            down, up = factors(layer, rank)
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            if chosen is not None:
                tensors[f"{name}.alpha"] = torch.tensor(chosen)
    save_file(tensors, path)
    return path


def off(path: Path, changes: dict[str, Tensor]) -> set[str]:
    """Layers whose loaded change is not the file's."""
    file = open_lora(path)
    return {
        name
        for name in file.layers
        if name not in changes
        or not torch.allclose(changes[name].flatten(1), file.delta(name).flatten(1), rtol=1e-3, atol=1e-4)
    }


ALPHAS: dict[str, Callable[[random.Random], Callable[[str], float | None]]] = {
    "of single layers": lambda draw: lambda name: draw.choice([1.0, 2.0, 2.0, 2.0, 4.0]),
    "missing in places": lambda draw: lambda name: draw.choice([1.0, None]),
    "of blocks": lambda draw: lambda name: 4.0 if re.search("block_|blocks_[13]_", name) else 1.0,
    "one for all": lambda draw: lambda name: 2.0,
    "none": lambda draw: lambda name: None,
}


@pytest.mark.parametrize("how", ALPHAS)
def test_layers_of_another_strength_are_those_that_diffusers_changes_otherwise(
    how: str, family: ModelFamily, tmp_path: Path
) -> None:
    path = random_file(tmp_path / "file.safetensors", family, ALPHAS[how](random.Random(1)))
    wrong = off(path, loaded_changes(path, family))
    reasons = [
        reason
        for one in verify(path).uis
        if one.ui == WORD
        for reason in one.reasons
        if "wrong strength" in reason.consequence
    ]
    assert bool(wrong) == bool(reasons) == (how not in ("one for all", "none"))
    for reason in reasons:
        assert reason.what.startswith(f"{len(wrong)} layer") and set(reason.keys) <= wrong


def test_convert_gives_diffusers_the_strength_of_every_layer(
    base: Path, family: ModelFamily, tmp_path: Path
) -> None:
    alphas = ALPHAS["of single layers"](random.Random(1))
    source = random_file(tmp_path / "file.safetensors", family, alphas)
    told = verify(source, base=str(base))
    assert told.ok and told.uis[UIS.index(WORD)].loads == "partly", told.faults
    assert {one.ui: one.reasons for one in told.uis if one.loads != "completely"}.keys() == {WORD}, told.uis
    out = tmp_path / "out.safetensors"
    convert(source, "kohya", out=out, base=str(base), dtype="float32")
    changes = loaded_changes(out, family)
    before = open_lora(source)
    for name in before.layers:
        ours, theirs = before.delta(name).flatten(1), changes[name].flatten(1)
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def layers(family: ModelFamily, *parts: str) -> Iterator[tuple[str, str, nn.Module]]:
    """Part, path and layer of projections, attention and feed-forward."""
    for part in parts or family.targets:
        for name, module in family.parts[part].named_modules():
            path = family.canonical_path(part, name)
            if isinstance(module, nn.Linear | nn.Conv2d) and re.search(r"attn|mlp|proj_in|\.ff\.", path):
                yield part, path, module


def peft(family: ModelFamily, *parts: str, strip: str = "", start: str = "") -> Tensors:
    found = Tensors()
    for part, path, layer in layers(family, *parts):
        down, up = factors(layer, 2)
        stem = f"{start}{part}.{path.replace(strip, '')}"
        found |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    return found


def processors(family: ModelFamily, start: str = "unet.") -> Tensors:
    found = Tensors()
    for _, path, layer in layers(family, "unet"):
        if "attn" in path:
            stem = start + re.sub(r"\.(to_[qkv]|to_out)(?:\.0)?$", r".processor.\1_lora", path)
            found[f"{stem}.down.weight"], found[f"{stem}.up.weight"] = factors(layer, 2)
    return found


def kohya(family: ModelFamily, **instead: Tensor) -> Tensors:
    """With the first cross-attention key made of `instead`, __ for dots."""
    found = Tensors()
    for part, path, layer in layers(family, "unet"):
        name = family.ui_name(part, path)
        down, up = factors(layer, 2)
        found |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        found[f"{name}.alpha"] = torch.tensor(2.0)
    if instead:
        name = next(key.partition(".")[0] for key in found if "attn2_to_k" in key)
        found = {key: one for key, one in found.items() if key.partition(".")[0] != name}
        found |= {f"{name}.{end.replace('__', '.')}": one for end, one in instead.items()}
    return found


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {re.sub(old, new, key): one for key, one in tensors.items()}


def by_path(family: ModelFamily, *outside: str) -> Tensors:
    """Kohya's keys of diffusers' paths, and of layers outside of the blocks."""
    found = Tensors()
    unet = family.parts["unet"]
    chosen = [(path, layer) for _, path, layer in layers(family, "unet")]
    for path, layer in chosen + [(name, unet.get_submodule(name)) for name in outside]:
        name = f"lora_unet_{path.replace('.', '_')}"
        down, up = factors(layer, 2)
        found |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        found[f"{name}.alpha"] = torch.tensor(2.0)
    return found


FILES: dict[str, Callable[[ModelFamily], Tensors]] = {
    "PEFT's names": peft,
    "PEFT's names with an alpha": lambda family: peft(family) | {"unet.mid_block.alpha": torch.tensor(2.0)},
    "PEFT's names with alphas": lambda family: {
        end: one
        for key, value in peft(family, "unet").items()
        for end, one in ((key, value), (re.sub(r"lora_[AB]\.weight", "alpha", key), torch.tensor(2.0)))
    },
    "PEFT's names without text_model": lambda family: peft(family, "text_encoder", strip="text_model."),
    "old attention processors": processors,
    "old attention processors without unet.": lambda family: processors(family, ""),
    "kohya's": kohya,
    "ComfyUI's": lambda family: renamed(kohya(family), "^lora_unet_", "diffusion_model."),
    "LyCORIS'": lambda family: renamed(kohya(family), "^lora_unet_", "lycoris_"),
    "a whole difference": lambda family: kohya(family, diff=torch.ones(16, 24)),
    "a change of a bias": lambda family: kohya(
        family, lora_down__weight=torch.ones(2, 24), lora_up__weight=torch.ones(16, 2), diff_b=torch.ones(16)
    ),
    "a lora_mid": lambda family: kohya(
        family,
        lora_down__weight=torch.ones(2, 24),
        lora_up__weight=torch.ones(16, 2),
        lora_mid__weight=torch.ones(2, 2, 1, 1),
    ),
    "OFT": lambda family: kohya(family, oft_blocks=torch.ones(4, 4, 4)),
    "GLoRA": lambda family: kohya(
        family,
        a1__weight=torch.ones(24, 2),
        a2__weight=torch.ones(2, 24),
        b1__weight=torch.ones(16, 2),
        b2__weight=torch.ones(2, 24),
    ),
    "a weight that is set": lambda family: kohya(family, set_weight=torch.ones(16, 24)),
    "a changed norm": lambda family: (
        kohya(family) | {"lora_unet_mid_block_attentions_0_norm.w_norm": torch.ones(24)}
    ),
    "a scalar": lambda family: (
        kohya(family) | {f"{next(iter(kohya(family))).partition('.')[0]}.scalar": torch.ones(1)}
    ),
    "a bundled embedding": lambda family: kohya(family) | {"bundle_emb.word.clip_l": torch.ones(1, 24)},
    "diffusers' paths, first and last layers": lambda family: by_path(family, "conv_in", "conv_out"),
    "float8": lambda family: {
        key: one if key.endswith("alpha") else one.to(torch.float8_e4m3fn)
        for key, one in kohya(family).items()
    },
}


@pytest.mark.parametrize("what", FILES)
def test_what_the_table_says_of_diffusers_is_what_it_does(
    what: str, family: ModelFamily, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    tensors, path = FILES[what](family), tmp_path / "file.safetensors"
    save_file({key: one.contiguous() for key, one in tensors.items()}, path)
    said = verify(path).uis[UIS.index(WORD)].loads
    try:
        changes = loaded_changes(path, family)
    except (ValueError, IndexError, KeyError, RuntimeError):
        changes = {}
    names = open_lora(path).in_one_spelling().layers
    loads = "not at all" if not changes else "completely" if len(changes) == len(names) else "partly"
    assert said == loads


def test_the_embeddings_of_sizes_by_diffusers_paths_are_lost(
    base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """As the LCM LoRA of SDXL has them."""
    family, path = load_base(str(base_of("sdxl"))), tmp_path / "file.safetensors"
    sizes = ["add_embedding.linear_1", "add_embedding.linear_2"]
    save_file(by_path(family, "conv_in", "conv_out", "time_embedding.linear_1", *sizes), path)
    changes = loaded_changes(path, family)
    lost = {name for name in open_lora(path).in_one_spelling().layers if name not in changes}
    assert lost == {family.ui_name("unet", one) for one in sizes}
    (verdict,) = [one for one in verify(path).uis if one.ui == WORD]
    assert verdict.loads == "partly" and "embeddings of sizes" in verdict.reasons[0].what
