"""Which runs are made on the pretended GPU, and which cannot be.

Every kind of adapter, optimizer and bundle of options meets every family that can have it, and every bundle
LoRA with AdamW, several of them in one run; the dtypes are dealt out in turn. A family that is like another
has a run of its own beside it; all of theirs are slow.
Not every pair of a kind and a bundle occurs: that would be hundreds of runs of a second each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe

# Rectified flow: frozen text, no convolutions.
FLOW = ("z_image", "flux1", "chroma", "sd3", "qwen_image", "flux2", "krea2", "lumina2", "anima")
FAMILIES = ("sd15", "sd2", "sdxl", *FLOW)  # names of `bases.BASES`
DTYPES = ("bfloat16", "float16", "float32")
USUAL = ("lora", "adamw")
Changes = tuple[str, ...]  # of a recipe, as --set takes them

PLAIN = ("adapter.rank=4", "adapter.alpha=4")
KINDS: dict[str, Changes] = {
    "lora": PLAIN,
    **{kind: (f"adapter.kind={kind}", *PLAIN) for kind in ("locon", "loha", "lokr", "dora", "oft")},
    "pissa": ("adapter.start=pissa", *PLAIN),
    "conv": ("adapter.conv=true", "adapter.conv_rank=2", "adapter.lora_plus_ratio=4", *PLAIN),
    "full": ("adapter.kind=full",),
    "none": ("adapter.kind=none",),  # [[tokens]] alone
}
OPTIMIZERS: dict[str, Changes] = {
    "adamw": (),
    "adafactor": (),
    "lion": (),
    "torch.optim:NAdam": (),
    "prodigy": ("training.learning_rate=1",),
    "schedule_free": ("training.lr_schedule=constant",),
}
BUNDLES: dict[str, Changes] = {
    "plain": (),
    "frugal": (
        *("machine.gradient_checkpointing=true", "machine.channels_last=true"),
        "training.ema=0.9",
    ),
    "text encoder": (
        *("adapter.text_encoder=true", "machine.gradient_checkpointing=true", "objective.preservation=0.6"),
        "data.max_token_chunks=2",
    ),
    "masks": (
        *("data.masks={folder}/masks", "data.flip=0.5", "data.latent_memory_gb=0"),
        *("objective.masked_preservation=0.5", "objective.preservation=0.4"),
    ),
    "dropout": ("adapter.rank_dropout=0.2", "adapter.module_dropout=0.2", "adapter.max_norm=0.5"),
    "tokens": ("data.caption_dropout=0.2",),  # beside what the kind trains
    "objective": (
        *("objective.noise_offset=0.1", "objective.multires_noise=0.3", "objective.input_perturbation=0.1"),
        *("objective.weighting=debiased", "objective.loss=huber", "objective.timesteps=low_variance"),
        *("data.extra_resolutions=[32]", "training.gradient_accumulation=2"),
    ),
    "class": ("data.regularization_images.images={folder}/class", "data.class_words=a ball"),
    "shown": (
        *("validation.count=1", "training.batch_size=8"),  # as many timesteps are measured at once
        *("samples.prompts=['a', 'b']", "samples.steps=1"),
    ),
}
FLOW_OBJECTIVE = (
    *("objective.density=weighted", "objective.sigma_weighting=bell", "objective.shift=2"),
    *("objective.input_perturbation=0.1", "objective.loss=huber", "objective.timesteps=low_variance"),
    *("data.extra_resolutions=[32]", "training.gradient_accumulation=2"),
)
"""The bundle "objective" of these."""
NOT_OF_FLOW = ("conv", "none", "text encoder", "tokens")  # kinds and bundles that they refuse
OFFLOADS, CHECKPOINTING = "machine.offload_blocks=3", "machine.gradient_checkpointing=true"
OFFLOADED: dict[str, Changes] = {  # Z-Image's miniature with and without its blocks in main memory
    "all here": (),
    "offloaded": (OFFLOADS,),
    "all here, checkpointing": (CHECKPOINTING,),
    "offloaded, checkpointing": (OFFLOADS, CHECKPOINTING),
}
OFFLOADED_BLOCKS = 3  # two refiners and a layer
UNSIMULATED = {
    **dict.fromkeys(("adamw8bit", "bnb_int8", "bnb_nf4"), "bitsandbytes' kernels want real memory"),
    **dict.fromkeys(("torchao_int8", "torchao_float8"), "a tensor class over another that is fake here"),
    "flux2_dev": "it is klein's code with another text encoder, and is told a guidance as FLUX.1 is",
    "xformers": "its kernels are not in a build for CPUs",
    "compile": "the compiler makes kernels for the GPU that it finds",
    "several processes, shard_base": "NCCL needs as many GPUs",
    "regularization_images.count": "what the base draws is written to files, and there is nothing to write",
    "export, verify": "a file is compared with what was trained, number by number",
    "self-tests of options and optimizers": "they compare with float32's numbers",
}
"""What only a GPU can try, and why: by names of the tables, of options, or of what a run does."""
TEXT = """
name = "pretended"
[base]
model = "none"
[data]
images = "{folder}/images"
trigger = "zwx style"
resolution = 64
[training]
steps = 2
batch_size = 2
warmup_steps = 1
"""
TOKENS = """
[[tokens]]
token = "vkq"
start = "a red ball"
keep_norm = {keep_norm}
learning_rate = {rate}
"""


@dataclass(frozen=True)
class Case:
    family: str
    kind: str
    dtype: str
    optimizer: str
    bundles: tuple[str, ...]
    device: str = "cuda"
    capability: tuple[int, int] = (8, 6)
    plans: bool = False  # the plan's memory is asked for, too
    offloaded: str = ""  # one of `OFFLOADED`; bytes are counted then

    @property
    def name(self) -> str:
        if self.offloaded:
            return self.offloaded
        parts = [self.family, self.kind, self.dtype, self.optimizer, "+".join(self.bundles), self.device]
        return "-".join([*parts, *["planned"] * self.plans])

    @property
    def times(self) -> bool:
        """Whether its plan tries out how long all takes: once for each kind of denoiser."""
        return self.plans and self.family in ("sd15", "z_image")

    def recipe(self, folder: Path) -> Recipe:
        """On the images that `write_images` put there."""
        text = TEXT.format(folder=folder)
        if "tokens" in self.bundles or self.kind == "none":
            keep, rate = self.optimizer != "schedule_free", 1.0 if self.optimizer == "prodigy" else 0.001
            text += TOKENS.format(keep_norm=str(keep).lower(), rate=rate)
        path = folder / "recipe.toml"
        path.write_text(text, "utf-8")
        own = BUNDLES | {"objective": FLOW_OBJECTIVE} if self.family in FLOW else BUNDLES
        bundled = [one for bundle in self.bundles for one in own[bundle]]
        changes = [*KINDS[self.kind], *OPTIMIZERS[self.optimizer], *bundled]
        if self.optimizer == "prodigy" and "text encoder" in self.bundles:
            changes.append("training.text_encoder_learning_rate=1")
        if self.kind == "none":
            changes = [one for one in changes if not one.startswith("training.learning_rate")]
        changes += [f"base.dtype={self.dtype}", f"training.optimizer={self.optimizer}"]
        changes += [f"machine.device={self.device}", *OFFLOADED.get(self.offloaded, ())]
        return load_recipe(path, changes=tuple(one.format(folder=folder) for one in changes))


def goes_together(kind: str, optimizer: str, bundle: str) -> bool:
    """Whether a recipe may ask for it: the product refuses the rest."""
    if bundle == "dropout" and (kind not in ("lora", "locon", "conv") or optimizer == "schedule_free"):
        return False
    if kind == "none" and bundle not in ("plain", "frugal", "objective", "shown"):
        return False
    if kind == "full" and bundle == "tokens":
        return False
    if optimizer == "schedule_free" and bundle == "frugal":
        return False  # it averages the weights itself
    return not (optimizer == "prodigy" and kind == "conv")  # it finds one rate for everything


# As SD1.5 or Z-Image in all but what a family says itself.
ALIKE = ("sd2", "sdxl", "flux1", "chroma", "sd3", "qwen_image", "flux2", "krea2", "lumina2", "anima")


def of_family(names: Iterable[str], family: str) -> list[str]:
    """Of kinds or bundles those that bases of this family can be trained with."""
    return [name for name in names if not (family in FLOW and name in NOT_OF_FLOW)]


@cache
def cases() -> tuple[Case, ...]:
    """All but the slow ones, always in the same order."""
    found = [case for family in FAMILIES if family not in ALIKE for case in _of_family(family)]
    for place, family in enumerate(ALIKE):
        found.append(Case(family, "lora", DTYPES[place % len(DTYPES)], "adamw", ("shown",), plans=True))
    met = {bundle for case in found if (case.kind, case.optimizer) == USUAL for bundle in case.bundles}
    left = [bundle for bundle in BUNDLES if bundle not in met]
    found.append(Case("sdxl", "lora", "float16", "adamw", tuple(left[1::2])))
    found.append(Case("sd15", "lora", "auto", "adamw", tuple(left[::2]), device="cuda:1", capability=(7, 5)))
    return tuple(dict.fromkeys(found))


def offloaded_cases() -> tuple[Case, ...]:
    return tuple(
        Case("z_image", *USUAL[:1], "bfloat16", *USUAL[1:], ("plain",), offloaded=name) for name in OFFLOADED
    )


@cache
def slow_cases() -> tuple[Case, ...]:
    """Of families that are alike every kind, optimizer and bundle."""
    return tuple(case for family in ALIKE for case in _of_family(family))


def _of_family(family: str) -> Iterator[Case]:
    """Every kind, optimizer and bundle at least once, each with the next of the others that go with it.

    LoRA with AdamW, as recipes have it that say nothing, and another bundle in each family; that is planned.
    """
    first = FAMILIES.index(family)
    bundles = _turned(of_family(BUNDLES, family), 2 * first % len(BUNDLES))
    optimizers = _turned([*OPTIMIZERS], first)
    new = {*optimizers, *bundles}
    for turn, kind in enumerate(of_family(KINDS, family)):
        pairs = [(one, other) for one in optimizers for other in bundles if goes_together(kind, one, other)]
        if usual := kind == USUAL[0]:
            pairs = [pair for pair in pairs if pair[0] == USUAL[1]]
        if kind == "locon" and family in FLOW:  # beside LoRA's the one that a transformer has for it
            pairs = [pair for pair in pairs if pair[1] == "dropout"]
        optimizer, bundle = max(pairs, key=lambda pair: len(new & {*pair}))  # the first of equals
        new -= {optimizer, bundle}
        yield Case(family, kind, DTYPES[(turn + first) % len(DTYPES)], optimizer, (bundle,), plans=usual)


def _turned(values: Sequence[str], by: int) -> list[str]:
    return [*values[by:], *values[:by]]


def write_images(folder: Path) -> None:
    """Captioned ones of 64x64, a mask for each, and two of what the base should keep."""
    for name in ("images", "masks", "class"):
        (folder / name).mkdir()
    for number in range(3):
        image = Image.effect_noise((64, 64), 30 + number).convert("RGB")
        image.save(folder / "images" / f"{number}.png")
        long = "very " * 90 * (number == 1)
        (folder / "images" / f"{number}.txt").write_text(f"a vkq, zwx style, {long}red", "utf-8")
        Image.linear_gradient("L").resize((64, 64)).save(folder / "masks" / f"{number}.png")
        image.save(folder / "class" / f"{number}.png")
        (folder / "class" / f"{number}.txt").write_text("a ball", "utf-8")
