"""A command of lora-studio, run in this process as a user would."""

from __future__ import annotations

import pytest

from lora_studio import cli


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    try:
        code = cli.guarded(lambda: cli.app(arguments))
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
