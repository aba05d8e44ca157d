"""NVIDIA's cards, as far as a plan asks about them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

import torch

from lora_studio.errors import RecipeError
from lora_studio.processes import BFLOAT16_FROM, half_precision

ANY = "cuda"  # a card of which nothing but its memory is said
_MOST_GIB = 10_000
SAME_MEMORY = 1.0  # GiB: an A100 of 80 GB has 79.2


@dataclass(frozen=True)
class Card:
    """A graphics card; the rates are its peak ones, None where they are not known."""

    name: str
    memory_gib: float
    capability: tuple[int, int]
    bandwidth_gbs: float | None = None
    matrix_tflops: float | None = None  # dense, of half precision added up in float32
    float32_tflops: float | None = None

    @property
    def precision(self) -> torch.dtype:
        """What "auto" chooses there."""
        return half_precision(self.capability)


@cache
def known_cards() -> dict[str, Card]:
    """By name, from NVIDIA's data sheets and whitepapers; the sources stand in cards.toml."""
    rows = tomllib.loads(files(__package__).joinpath("cards.toml").read_text("utf-8"))
    return {
        name: Card(
            name,
            row["memory"],
            tuple(row["capability"]),
            bandwidth_gbs=row["bandwidth"],
            matrix_tflops=row["matrix"],
            float32_tflops=row["float32"],
        )
        for name, row in rows.items()
    }


def memory_bytes(gib: float) -> int:
    """Of GiB, as they are given to `plan`. Raises RecipeError for what no machine has."""
    if not 0 < gib <= _MOST_GIB:
        raise RecipeError(f"--memory is {gib:g}; it must be above 0 and at most {_MOST_GIB} (GiB).")
    return round(gib * 2**30)


def find_card(name: str, *, memory_gib: float | None = None) -> Card:
    """The card called `name`, whose spelling may leave out NVIDIA's series; "cuda" is any with `memory_gib`.

    Of a card that there is with several sizes of memory, the one with `memory_gib`. Raises RecipeError for an
    unknown one, with the nearest names.
    """
    if _plain(name) == ANY:
        if memory_gib is None:
            raise RecipeError(
                "--for cuda says nothing of the memory; give it as --memory 8 (GiB), or a card's name."
            )
        return Card(ANY, memory_gib, BFLOAT16_FROM)
    asked = _plain(name)
    found = [card for known, card in known_cards().items() if asked in _spellings(known)]
    if memory_gib is not None and len(found) > 1:
        found = [card for card in found if abs(card.memory_gib - memory_gib) <= SAME_MEMORY] or found
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(f'"{card.name}"' for card in found)
        raise RecipeError(f"--for {name!r} may be {names}; name one of them.")
    near = [*_containing(asked), *get_close_matches(asked, [*map(_plain, known_cards())], n=3, cutoff=0.5)]
    by_spelling = {_plain(known): known for known in known_cards()}
    listed = ", ".join(dict.fromkeys(by_spelling[one] for one in near[:4])) or "RTX 3060 12GB, RTX 4090, T4"
    raise RecipeError(
        f"--for {name!r} is no card that is known here; the nearest are {listed}. For another one give its "
        "memory: --for cuda --memory 8."
    )


def _plain(name: str) -> str:
    """ "NVIDIA GeForce RTX 4060 Ti 8 GB" -> "rtx4060ti8gb"."""
    return re.sub(r"nvidia|geforce|tesla|quadro|[^a-z0-9]", "", name.lower())


def _spellings(name: str) -> set[str]:
    """Of a known card: whole, and without its size of memory, its form, or what its series is called."""
    short = re.sub(r" (\d+GB|SXM|PCIe)$", "", name)
    return {_plain(one.removeprefix(series)) for one in (name, short) for series in ("", "RTX ", "GTX ")}


def _containing(asked: str) -> list[str]:
    number = re.search(r"\d{2,}", asked)
    return [one for one in map(_plain, known_cards()) if number and number[0] in one]
