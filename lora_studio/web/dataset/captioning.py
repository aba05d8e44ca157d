"""A captioner at work in a process of its own: `python -m lora_studio.web.dataset.captioning`.

Takes one argument, a JSON object: {"folder", "writer", "trigger", "class_words", "replace", "recursive"}.
Prints a JSON object a line: {"done", "total", "name", "fault"}, then {"written", "faults"}, or {"error"}.
"""

from __future__ import annotations

import json
import sys

from lora_studio.api import caption
from lora_studio.data.captioners.write import Captioned
from lora_studio.errors import StudioError
from lora_studio.text import printable
from lora_studio.web.dataset.watching import tell


def main(asked: str) -> int:
    """Exit 0, or 2 for what the user can mend."""
    said = json.loads(asked)
    try:
        outcome = caption(
            said["folder"],
            said["writer"],
            trigger=said["trigger"],
            class_words=said["class_words"],
            replace=said["replace"],
            recursive=said["recursive"],
            on_image=_say_progress,
        )
    except StudioError as error:
        tell({"error": str(error)})
        return 2
    tell({"written": outcome.written, "faults": [[printable(name), why] for name, why in outcome.faults]})
    return 0


def _say_progress(one: Captioned) -> None:
    tell({"done": one.done, "total": one.total, "name": printable(one.name), "fault": one.fault})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
