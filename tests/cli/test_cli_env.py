"""The verb env."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from lora_studio import cli

pytestmark = pytest.mark.filterwarnings("ignore")  # what the quantisers' libraries say when imported


def test_env_says_what_the_machine_is_and_what_works_on_it() -> None:
    words = ["env", "--device", "cpu", "--quick"]
    said = CliRunner().invoke(cli.app, [*words, "--json"], env={"COLUMNS": "200"})
    assert said.exit_code == 0, said.output
    facts = json.loads(said.stdout)
    assert facts["device"] == "cpu" and facts["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert facts["versions"].keys() >= {"lora-studio", "diffusers", "peft", "bitsandbytes", "xformers"}
    works = {one["option"]: one["works"] for one in facts["options"]}
    assert works['base.dtype = "bfloat16"'] and not works["machine.tf32 = true"]
    shown = CliRunner().invoke(cli.app, words, env={"COLUMNS": "200"}).output
    assert all(f"{option}: {'works' if yes else 'does not work: '}" in shown for option, yes in works.items())


def test_a_device_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.guarded(lambda: cli.app(["env", "--device", "cuda:99"], standalone_mode=False))
    assert code == 2
    assert "--device is 'cuda:99', which this machine does not have" in capsys.readouterr().err
