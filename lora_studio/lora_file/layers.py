"""A layer of a finished file, of whatever kind: its change of weight, and that as plain LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_studio.adapters.loha import LOHA
from lora_studio.adapters.lokr import LOKR
from lora_studio.errors import StudioError
from lora_studio.families.layer_names.spellings import LayerPlace
from lora_studio.lora_file.plain import Plain, factorise, shaped


@dataclass(frozen=True)
class FileLayer:
    """What a file has of one layer, by names of ours: `down`, `up`, `w1_a`, `diff` and so on."""

    place: LayerPlace
    key: str  # what the file calls it
    kind: str  # lora, loha, lokr, full, oft
    tensors: Mapping[str, Tensor]
    alpha: float | None

    @property
    def needs_base(self) -> bool:
        """Whether the frozen weight is part of what its change is."""
        return self.kind == "oft" or "magnitude" in self.tensors

    def plain(self, weight: Tensor | None = None) -> Plain:
        """Exact where that takes no more ranks than the weight has itself; else cut as `factorise` cuts.

        `weight` is the base's. Raises StudioError if that is needed and not there.
        """
        if self.needs_base:
            return self._of_change(weight)
        values = {end: tensor.float() for end, tensor in self.tensors.items()}
        if self.kind == "lora":
            return _plain_lora(self.tensors, self._scale(len(self.tensors["down"])))
        if self.kind == "loha" and "t1" not in values:
            exact = LOHA.factors(_flat(values), self._scale(values["w1_b"].shape[0]))
            if exact is not None:
                return Plain(*exact, 1.0)
        return self._of_change(weight)

    def _of_change(self, weight: Tensor | None) -> Plain:
        change = self.delta(weight)
        if not change.isfinite().all():
            raise StudioError(f"the change of {self.key} has numbers beyond float32; the file is damaged.")
        return shaped(factorise(change.flatten(1)), change.shape)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Its change in float32, [out, in, k, k] or, where the file does not tell k, [out, in * k * k]."""
        if self.needs_base and weight is None:
            raise StudioError(
                f"the change of {self.key} depends on the base's weight; name the base that it is for."
            )
        values = {end: tensor.float() for end, tensor in self.tensors.items()}
        frozen = None if weight is None else weight.detach().float()
        change = CHANGES[self.kind](self, values, frozen)
        return change if "magnitude" not in values else _decomposed(change, frozen, values["magnitude"])

    def _scale(self, rank: int) -> float:
        return 1.0 if self.alpha is None else self.alpha / rank


def _flat(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {end: tensor.flatten(1) for end, tensor in values.items()}


def _plain_lora(tensors: Mapping[str, Tensor], scale: float) -> Plain:
    """Of a convolution in three parts the first two are made one: that is exact."""
    down, up = tensors["down"], tensors["up"]
    if "mid" in tensors:
        mid = tensors["mid"].float()
        down = torch.einsum("rshw,si->rihw", mid, down.float().flatten(1))
    if down.ndim == 4 and up.ndim == 2:
        up = up[:, :, None, None]
    return Plain(down, up, scale)


def _lora(layer: FileLayer, values: Mapping[str, Tensor], weight: Tensor | None) -> Tensor:
    down, up, scale, _ = _plain_lora(values, layer._scale(len(values["down"])))
    return (scale * up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])


def _decomposed(change: Tensor, weight: Tensor | None, magnitude: Tensor) -> Tensor:
    """DoRA: W + change with the norms `magnitude`, of the outputs or, in LyCORIS before 3.2, the inputs."""
    assert weight is not None
    whole = weight + change.reshape(weight.shape)
    by_inputs = magnitude.ndim > 1 and magnitude.shape[0] == 1 != len(weight)
    rows = whole.transpose(0, 1) if by_inputs else whole
    norms = rows.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).eps)
    share = (magnitude.flatten() / norms).view(-1, *(1 for _ in rows.shape[1:]))
    turned = rows * share
    return (turned.transpose(0, 1) if by_inputs else turned) - weight


def _loha(layer: FileLayer, values: Mapping[str, Tensor], weight: Tensor | None) -> Tensor:
    scale = layer._scale(values["w1_b"].shape[0])
    if "t1" not in values:
        return LOHA.change(_flat(values), scale)
    return scale * _tucker(values, "1") * _tucker(values, "2")


def _tucker(values: Mapping[str, Tensor], one: str) -> Tensor:
    """t [r, r, k, k], a [r, out] and b [r, in] -> [out, in, k, k]"""
    change = torch.einsum("ijhw,jq,ip->pqhw", values[f"t{one}"], values[f"w{one}_b"], values[f"w{one}_a"])
    return change.contiguous()


def _lokr(layer: FileLayer, values: Mapping[str, Tensor], weight: Tensor | None) -> Tensor:
    """alpha counts against the rank of the last factor that has one; whole factors have no scale."""
    w1 = values["w1"] if "w1" in values else values["w1_a"] @ values["w1_b"]
    ranks = [values[end].shape[0] for end in ("w1_b", "w2_b") if end in values]
    scale = layer._scale(ranks[-1]) if ranks else 1.0
    w2 = values["w2"] if "w2" in values else _tucker(values, "2") if "t2" in values else None
    tensors = {"w1": w1} | ({"w2": w2} if w2 is not None else {e: values[e] for e in ("w2_a", "w2_b")})
    change = LOKR.change(tensors, scale)
    return change if w2 is None or w2.ndim == 2 else change.view(len(change), -1, *w2.shape[2:])


def _full(layer: FileLayer, values: Mapping[str, Tensor], weight: Tensor | None) -> Tensor:
    return values["diff"]


def _oft(layer: FileLayer, values: Mapping[str, Tensor], weight: Tensor | None) -> Tensor:
    """LyCORIS' diagonal OFT, which turns the outputs; alpha bounds how far."""
    assert weight is not None
    blocks = values["oft_blocks"]
    skew = blocks - blocks.transpose(1, 2)
    most = (layer.alpha or 0.0) * len(weight)
    if most > 0 and (size := skew.norm() + 1e-8) > most:
        skew = skew * most / size
    one = torch.eye(blocks.shape[-1])
    turn = (one + skew) @ torch.linalg.inv(one - skew)
    grouped = weight.reshape(len(blocks), blocks.shape[-1], -1)
    turned = torch.einsum("knm,kni->kmi", turn, grouped).reshape(weight.shape)
    if "rescale" in values:
        turned = turned * values["rescale"].reshape(-1, *(1 for _ in weight.shape[1:]))
    return turned - weight


CHANGES: dict[str, Callable[[FileLayer, Mapping[str, Tensor], Tensor | None], Tensor]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
    "oft": _oft,
}
REQUIRED: dict[str, tuple[tuple[str, ...], ...]] = {  # kind -> what there must be, one of each
    "lora": (("down",), ("up",)),
    "loha": (("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",)),
    "lokr": (
        ("lokr_w1", "lokr_w1_a"),
        ("lokr_w1", "lokr_w1_b"),
        ("lokr_w2", "lokr_w2_a"),
        ("lokr_w2", "lokr_w2_b"),
    ),
    "full": (("diff",),),
    "oft": (("oft_blocks",),),
}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "lora": ("mid", "magnitude"),
    "loha": ("hada_t1", "hada_t2", "magnitude"),
    "lokr": ("lokr_t2", "magnitude"),
    "full": (),
    "oft": ("rescale",),
}
