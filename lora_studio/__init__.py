"""LoRA Studio: a folder of images becomes a verified LoRA file.

    import lora_studio

    lora_studio.doctor("photos")
    result = lora_studio.train("photos.toml", set={"training.steps": 800})
    print(result.lora_file, result.report.ok)

docs/python.md has all of it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from lora_studio.quiet import paused_collector
from lora_studio.version import __version__

if TYPE_CHECKING:
    from lora_studio.api import (
        caption,
        compare,
        doctor,
        evaluate,
        export,
        load_recipe,
        plan,
        plan_for,
        queue,
        sample,
        sweep,
        train,
        verify,
    )
    from lora_studio.data.captioners import WriterOptions
    from lora_studio.data.captioners.write import CaptioningResult
    from lora_studio.data.captions.wording import Wording
    from lora_studio.data.doctor import DoctorOptions
    from lora_studio.data.doctor.finding import DoctorReport
    from lora_studio.errors import Interrupted, StudioError
    from lora_studio.evaluate.result import Evaluation
    from lora_studio.jobs import Job
    from lora_studio.recipe import Recipe
    from lora_studio.sweep.result import SweepResult
    from lora_studio.tools.compare import Comparison
    from lora_studio.tools.evaluate import EvaluationRequest
    from lora_studio.tools.sample import Sampled, SampleRequest
    from lora_studio.training.events import StopTraining
    from lora_studio.training.finish import Finished
    from lora_studio.training.finish.export import Exported
    from lora_studio.training.planning import RunPlan
    from lora_studio.training.planning.for_card import CardPlan
    from lora_studio.verify import VerifyReport

__all__ = [
    "CaptioningResult",
    "CardPlan",
    "Comparison",
    "DoctorOptions",
    "DoctorReport",
    "Evaluation",
    "EvaluationRequest",
    "Exported",
    "Finished",
    "Interrupted",
    "Job",
    "Recipe",
    "RunPlan",
    "SampleRequest",
    "Sampled",
    "StopTraining",
    "StudioError",
    "SweepResult",
    "VerifyReport",
    "Wording",
    "WriterOptions",
    "__version__",
    "caption",
    "compare",
    "doctor",
    "evaluate",
    "export",
    "load_recipe",
    "plan",
    "plan_for",
    "queue",
    "sample",
    "sweep",
    "train",
    "verify",
]

_MODULES = {
    "CaptioningResult": "data.captioners.write",
    "CardPlan": "training.planning.for_card",
    "Comparison": "tools.compare",
    "DoctorOptions": "data.doctor",
    "DoctorReport": "data.doctor.finding",
    "Evaluation": "evaluate.result",
    "EvaluationRequest": "tools.evaluate",
    "Exported": "training.finish.export",
    "Finished": "training.finish",
    "Interrupted": "errors",
    "Job": "jobs",
    "Recipe": "recipe",
    "RunPlan": "training.planning",
    "SampleRequest": "tools.sample",
    "Sampled": "tools.sample",
    "StopTraining": "training.events",
    "StudioError": "errors",
    "SweepResult": "sweep.result",
    "VerifyReport": "verify",
    "Wording": "data.captions.wording",
    "WriterOptions": "data.captioners",
}


def __getattr__(name: str) -> object:
    """The public names, imported when they are asked for: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with paused_collector():
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


class _Package(ModuleType):
    """Where `verify` and `export` are the functions, also once the rooms of these names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in __all__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
