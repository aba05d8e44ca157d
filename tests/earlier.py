"""A run's folder as versions wrote it that gave no digests to what a resume goes by."""

from __future__ import annotations

import json
from pathlib import Path


def without_digests(run: Path) -> None:
    for path in run.glob("checkpoints/*/state.json"):
        state = json.loads(path.read_text("utf-8"))
        state["sha256"].pop("state.json")
        path.write_text(json.dumps(state), "utf-8")
    inputs = json.loads((run / "inputs.json").read_text("utf-8"))
    kept = {key: value for key, value in inputs.items() if key in ("base.model", "training.lr_schedule")}
    (run / "inputs.json").write_text(json.dumps(kept), "utf-8")
    text = (run / "recipe.toml").read_text("utf-8")
    (run / "recipe.toml").write_text(text.partition("\n")[2], "utf-8")
