"""`python -m lora_studio`, and the program that an installation has."""

import os
import signal
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    """Nothing has begun, and an import may be deep in a library's own code."""
    os.write(2, b"\nstopped before anything was begun\n")
    os._exit(130)


def main() -> None:
    """Ctrl-C is answered from the first moment: importing takes seconds on a busy machine."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else ignored, as under nohup
        signal.signal(signal.SIGINT, _leave)
    from lora_studio import cli

    cli.main()


if __name__ == "__main__":
    main()
