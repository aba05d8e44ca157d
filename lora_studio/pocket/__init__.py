"""The base that ships with the package, and what it is good for."""

import json
from functools import cache
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"


@cache
def pocket_note() -> str:
    """What whoever chooses it should know; its size is its configuration's."""
    unet, vae = (json.loads((WEIGHTS / part / "config.json").read_text("utf-8")) for part in ("unet", "vae"))
    side = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    drawn = f"it draws simple shapes at {side} x {side} pixels; photographs only try the way with it"
    return f"{drawn}: a real base, such as your UI's checkpoint, learns them"
