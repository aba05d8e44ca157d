"""Which layers are trained, and how each: its rank, alpha, learning rate and last step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import nn

from lora_studio.adapters import ADAPTERS
from lora_studio.errors import RecipeError

if TYPE_CHECKING:
    from lora_studio.recipe.adapter import LayersConfig

LayerPlace = tuple[str, str]  # part and canonical path


@dataclass(frozen=True)
class AdapterOptions:
    """What is injected: a kind of the table, its rank and alpha, and the seed of its first values."""

    kind: str
    rank: int
    alpha: float
    seed: int
    conv_rank: int | None = None  # of convolutions that look around themselves; None: as the others
    conv_alpha: float | None = None
    scaling: Literal["rank", "sqrt_rank"] = "rank"  # what alpha is divided by
    start: str = "default"
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    max_norm: float = 0.0  # of a layer's change; 0: any
    rules: Sequence[LayersConfig] = ()  # later ones win
    steps: int = 0  # of the run, by which rules say when a layer stops
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)  # part -> patterns of what is trained
    keep_base_on_device: bool = False  # beside layers that are trained themselves: every step asks the base

    @property
    def is_plain(self) -> bool:
        return self.start == "default" and not self.rank_dropout and not self.module_dropout


class LayerOptions(NamedTuple):
    """What the rules come to for one layer."""

    rank: int
    scale: float
    learning_rate: float | None = None  # None: the part's
    last_step: int | None = None  # it is trained to; None: the end

    @property
    def alpha(self) -> float:
        return self.scale * self.rank


def scale_of(alpha: float, rank: int, *, sqrt_rank: bool) -> float:
    """What a change is multiplied by: alpha / rank, or alpha / sqrt(rank) as in rsLoRA, arXiv 2312.03732."""
    return alpha / (rank**0.5 if sqrt_rank else rank)


def layer_options(part: str, path: str, module: nn.Module, options: AdapterOptions) -> LayerOptions | None:
    """Of the layer at a canonical path; None if it is not trained."""
    rules = _rules_about(part, (path,), options)
    if rules is None:
        return None
    sqrt_rank = options.scaling == "sqrt_rank"
    rank, scale = options.rank, scale_of(options.alpha, options.rank, sqrt_rank=sqrt_rank)
    wanted = [(rule.rank, rule.alpha) for rule in rules]
    if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
        wanted.insert(0, (options.conv_rank, options.conv_alpha))
    for new_rank, new_alpha in wanted:
        rank = new_rank or rank
        scale = scale_of(new_alpha, rank, sqrt_rank=sqrt_rank) if new_alpha else scale
    return LayerOptions(rank, scale, *_pace(rules, options.steps))


def tensor_options(part: str, path: str, end: str, options: AdapterOptions) -> LayerOptions | None:
    """Of one tensor of a layer that is trained itself; None if it is not trained."""
    rules = _rules_about(part, (path, f"{path}.{end}"), options)
    return None if rules is None else LayerOptions(0, 1.0, *_pace(rules, options.steps))


def _rules_about(part: str, names: Sequence[str], options: AdapterOptions) -> list[LayersConfig] | None:
    """Those that match one of these names of a layer, first its path; None: the layer stays as it is."""
    only = options.only.get(part)
    if only is not None and not any(_matches(pattern, part, names[0]) for pattern in only):
        return None
    found = [rule for rule in options.rules if any(_matches(rule.pattern, part, name) for name in names)]
    asked = [rule.train for rule in found if rule.train is not None]
    return found if not asked or asked[-1] else None


def _matches(pattern: str, part: str, path: str) -> bool:
    """Of a canonical path, with its part or alone."""
    return fnmatchcase(f"{part}.{path}", pattern) or fnmatchcase(path, pattern)


def _pace(rules: Sequence[LayersConfig], steps: int) -> tuple[float | None, int | None]:
    """Learning rate and last step: of each the last that is given."""
    rates = [rule.learning_rate for rule in rules if rule.learning_rate]
    stops = [rule.stops_after(steps) for rule in rules if rule.stop_at is not None]
    return rates[-1] if rates else None, stops[-1] if stops else None


def check_rules(
    options: AdapterOptions, layers: Sequence[LayerPlace], trained: int, *, inside: Sequence[LayerPlace] = ()
) -> None:
    """Raise RecipeError for a pattern without a layer, or a tensor `inside` one, or if nothing is trained."""
    faults = []
    for rule in options.rules:
        if not any(_matches(rule.pattern, part, path) for part, path in (*layers, *inside)):
            examples = ", ".join(".".join(layers[number]) for number in (0, len(layers) // 2, -1))
            faults.append(
                f"adapter.layers: the pattern {rule.pattern!r} matches none of the {len(layers)} layers; "
                f"they are called for example {examples}."
            )
    if not trained and not faults:
        faults.append(
            "adapter.layers and adapter.blocks leave no layer to train to the last step; "
            "take a train = false or a stop_at away."
        )
    if faults:
        raise RecipeError("\n".join(faults))


def check_options(options: AdapterOptions) -> None:
    """Raise RecipeError for what the kind cannot do, all of it at once."""
    kind, name = ADAPTERS[options.kind], options.kind
    able = {other: ADAPTERS[other] for other in ADAPTERS.names()}
    faults = []

    def refuse(option: str, fits: str) -> None:
        faults.append(f"adapter.{option} does not go with the kind {name!r}; {fits}.")

    def kinds(which: str) -> str:
        return "it is for " + ", ".join(other for other, one in able.items() if getattr(one, which))

    if options.rank_dropout and not kind.has_ranks:
        refuse(f"rank_dropout = {options.rank_dropout:g}", kinds("has_ranks"))
    if options.max_norm and not kind.is_product:
        refuse(f"max_norm = {options.max_norm:g}", kinds("is_product"))
    if options.max_norm and options.start != "default":
        faults.append(
            f"adapter.max_norm does not go with adapter.start {options.start!r}, whose factors are as large "
            "as the weight; leave one of them out."
        )
    if options.start not in kind.starts:
        refuse(f'start = "{options.start}"', f"it begins as {', '.join(map(repr, kind.starts))}")
    if faults:
        raise RecipeError("\n".join(faults))
