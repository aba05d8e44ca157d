"""What to do with what a run has made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_studio.text import command_of
from lora_studio.verify.uis import NO_BASE, NOT_AT_ALL, UiVerdict

if TYPE_CHECKING:
    from lora_studio.training.finish import Finished

_FOLDERS = {  # of the UIs that have one
    ("ComfyUI",): "models/loras",
    ("A1111", "Forge"): "models/Lora",
    ("InvokeAI",): "model manager",
}
_EMBEDDING_FOLDERS = "ComfyUI's models/embeddings, A1111's embeddings, or InvokeAI's model manager"


@dataclass(frozen=True)
class RunFacts:
    """What a recipe says that the next steps depend on."""

    triggers: tuple[str, ...]
    prompt: str  # of a preview
    on_pocket: bool


def next_steps(result: Finished, facts: RunFacts) -> list[tuple[str, str]]:
    """Titles and sentences, in the order in which they are done."""
    return [("next" if number == 0 else "", text) for number, text in enumerate(_sentences(result, facts))]


def _places(judged: Sequence[UiVerdict]) -> str:
    """The folders of those UIs that have bases of the file's kind, and load something of it."""
    without = {one.ui for one in judged if one.loads in (NO_BASE, NOT_AT_ALL)}
    found = []
    for uis, folder in _FOLDERS.items():
        if having := [f"{ui}'s" for ui in uis if ui not in without]:
            found.append(f"{' and '.join(having)} {folder}")
    return ", or ".join([", ".join(found[:-1]), found[-1]]) if len(found) > 1 else found[0]


def _sentences(result: Finished, facts: RunFacts) -> Iterable[str]:
    run, file = result.folder, result.lora_file
    is_base = file is not None and file.is_dir()
    if sheets := sorted((run / "previews").glob("step_*.png")):
        yield f"open {sheets[-1]}: the base on the left, tuned on the right"
    if not facts.on_pocket:
        if is_base:
            yield f"for UIs: {command_of('export', run, '--to', 'checkpoint')}"
        elif file is not None:
            yield f"copy {file} to {_places(result.report.uis)}"
        for path in result.embeddings.values():
            yield f"copy {path} to {_EMBEDDING_FOLDERS}"
    if facts.triggers:
        yield f"write into prompts: {', '.join(facts.triggers)}"
    measured = result.summary["validation"]
    if measured and measured["best_step"] != result.summary["steps"]:
        command = command_of(
            "export", run, "--to", "checkpoint" if is_base else "kohya", "--checkpoint", "best"
        )
        yield f"step {measured['best_step']} did best on the validation images: {command}"
    yield f"other prompts, strengths, seeds: {command_of('sample', run, '--prompt', facts.prompt)}"
    if facts.on_pocket:
        yield "no UI has the pocket base; your own images on a real one: lora-studio start"
