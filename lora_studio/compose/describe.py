"""What a file made of other files says about itself: nothing of machines and folders, and no clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lora_studio import __version__
from lora_studio.compose.files import PlainFile
from lora_studio.compose.writing import Result
from lora_studio.export.metadata import base_keys
from lora_studio.families.base import FileTraits

# What stays true of a result if all the files that it is made of say the same.
_KEPT = (
    *("ss_v2", "ss_base_model_version", "ss_sd_model_name", "ss_resolution", "ss_clip_skip"),
    *("modelspec.architecture", "modelspec.implementation", "modelspec.prediction_type"),
    *("modelspec.resolution", "lora_studio.base", "lora_studio.base_fingerprint"),
)


def metadata_of(files: Sequence[PlainFile], result: Result, path: Path, *, how: str) -> dict[str, str]:
    """Of a file made of others; `how` is what was done, in a few words."""
    metadata = {
        key: files[0].metadata[key]
        for key in _KEPT
        if all(key in file.metadata for file in files) and len({file.metadata[key] for file in files}) == 1
    }
    triggers = list(dict.fromkeys(file.trigger for file in files if file.trigger))
    if triggers:
        metadata["modelspec.trigger_phrase"] = ", ".join(triggers)
        # tags, not sentences: the way A1111 and Forge learn the trigger
        metadata["ss_tag_frequency"] = json.dumps({"trigger": dict.fromkeys(triggers, 1)})
    titles = [file.metadata.get("modelspec.title") or file.path.stem for file in files]
    return metadata | _of_result(result, path, how) | {"modelspec.merged_from": ", ".join(titles)}


def metadata_of_base(traits: FileTraits, result: Result, path: Path, *, how: str) -> dict[str, str]:
    """Of a file that was made of whole bases."""
    return base_keys(traits) | _of_result(result, path, how)


def _of_result(result: Result, path: Path, how: str) -> dict[str, str]:
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(result.ranks.values())),
        "ss_network_alpha": f"{result.alpha:g}",
        "ss_network_args": "{}",
        "ss_output_name": path.stem,
        "ss_training_comment": how,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": path.stem,
        "lora_studio.version": __version__,
    }
