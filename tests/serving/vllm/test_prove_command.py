"""`gprune prove --engine vllm` as a process, each engine in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from gprune.serving.proof.claims import CLAIMS


def prove(*arguments: str) -> tuple[int, dict[str, Any]]:
    command = [str(Path(sys.executable).with_name("gprune")), "prove", "--engine", "vllm"]
    arguments = (*arguments, "--dtype", "float32", "--device", "cpu", "--json")
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    # Nothing but the result is on stdout, whatever the engines print.
    return done.returncode, json.loads(done.stdout)


def test_the_shipped_model_is_proven() -> None:
    code, values = prove()
    assert code == 0
    assert [result["claim"] for result in values["results"]] == list(CLAIMS)
    assert {result["verdict"] for result in values["results"]} == {"passed"}


def test_an_engine_that_does_not_start_gives_exit_code_1() -> None:
    code, values = prove("--engine-options", '{"max_num_seqs": -1}')
    assert code == 1
    (result,) = values["results"]
    assert result["verdict"] == "failed"
    assert result["detail"].startswith("stock vLLM failed: ")
