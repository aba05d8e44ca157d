"""Files and sessions of ONNX Runtime, which is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_studio.errors import CaptionError, reason_of

MODEL, TABLE = "model.onnx", "selected_tags.csv"


def tagger_files(model: str) -> tuple[Path, Path]:
    """The model and its table of tags, from a folder or the hub. Raises CaptionError if one is missing."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if missing := [name for name in (MODEL, TABLE) if not (folder / name).is_file()]:
            raise CaptionError(f"the folder {model} holds no {' and no '.join(missing)}; wd14 needs both.")
        return folder / MODEL, folder / TABLE
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, MODEL)), Path(hf_hub_download(model, TABLE))
    except Exception as error:  # of which HTTP library it is depends on the version of the hub's own one
        raise CaptionError(
            f"the model {model} cannot be loaded ({reason_of(error)}); "
            f"give --model a folder with {MODEL} and {TABLE}, or a hub id."
        ) from None


def open_session(model: Path, device: str) -> Any:
    """A session on a GPU if ONNX Runtime has one, else on the CPU. Raises CaptionError if there is none."""
    try:
        import onnxruntime
    except ImportError:
        raise CaptionError(
            "wd14 needs ONNX Runtime; install it with: pip install onnxruntime (or onnxruntime-gpu)."
        ) from None
    available = onnxruntime.get_available_providers()
    providers = [_provider(device, available)] if device else _best(available)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised anyway
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # its errors share no base class
        raise CaptionError(
            f"{model} is no ONNX model that can be run ({reason_of(error)[:200]}); download it again."
        ) from None
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or not isinstance(inputs[0].shape[1], int):
        raise CaptionError(f"{model} does not take pictures as [B, side, side, 3], so it is no WD tagger.")
    return session


def _provider(device: str, available: list[str]) -> str | tuple[str, dict[str, int]]:
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return "CPUExecutionProvider"
    if kind == "cuda" and "CUDAExecutionProvider" in available and (not number or number.isdigit()):
        return "CUDAExecutionProvider", {"device_id": int(number or 0)}
    raise CaptionError(
        f"ONNX Runtime cannot use --device {device!r} here; leave it out, or install onnxruntime-gpu."
    )


def _best(available: list[str]) -> list[str]:
    """Never the first of all: some builds put providers first that send the work elsewhere."""
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
