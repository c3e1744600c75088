"""`gprune serve`, and the `vllm serve` command that it runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gprune.cli import app
from gprune.tinyvlm.model import checkpoint_folder

TINY = str(checkpoint_folder())


def shown(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, ["serve", *arguments, "--show"])
    assert result.exit_code == 0, result.output
    return shlex.split(result.output)


def overrides(command: list[str]) -> Any:
    return json.loads(command[command.index("--hf-overrides") + 1])


def test_show_prints_the_vllm_command() -> None:
    command = shown(TINY, "--method", "graph_cover", "--keep", "0.25", "--port", "9000", "-tp", "2")
    assert command[:3] == ["vllm", "serve", TINY]
    assert overrides(command) == {
        "architectures": ["GPruneLlavaForConditionalGeneration"],
        "gprune": {"method": "graph_cover", "keep": 0.25},
    }
    assert command[5:] == ["--port", "9000", "-tp", "2"]


@pytest.mark.parametrize("form", [["--hf-overrides", '{"a": 1}'], ['--hf-overrides={"a": 1}']])
def test_overrides_of_the_user_are_merged(form: list[str]) -> None:
    command = shown(TINY, *form, "--seed", "1")
    assert overrides(command)["a"] == 1
    assert overrides(command)["gprune"] == {"method": "recommended", "keep": 0.36}
    assert sum(part.startswith("--hf-overrides") for part in command) == 1


def test_a_count_and_one_as_everything() -> None:
    assert overrides(shown(TINY, "--keep", "64"))["gprune"]["keep"] == 64
    assert overrides(shown(TINY, "--keep", "1"))["gprune"]["keep"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TINY, "--keep", "1.5"], "keep=1.5"),
        ([TINY, "--method", "gprun"], "did you mean 'gprune'"),
        (["no/such-folder"], "no readable config"),
        ([TINY, "--hf-overrides", "{"], "is no JSON"),
        ([TINY, "--hf-overrides", '{"gprune": {}}'], "which gprune serve writes"),
        ([TINY, "--hf-overrides"], "has no value"),
    ],
)
def test_bad_use_prints_a_message_and_exits_with_code_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["serve", "--show", *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_other_families_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "paligemma"}))
    result = CliRunner().invoke(app, ["serve", str(tmp_path), "--show"])
    assert result.exit_code == 2
    assert "paligemma" in result.output
    assert "qwen2_5_vl" in result.output


def test_the_error_without_vllm_names_the_package(monkeypatch: Any) -> None:
    from gprune.serving import command

    monkeypatch.setattr(command.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["serve", TINY])
    assert result.exit_code == 2
    assert "pip install 'vllm>=0.32.0,<0.34.0'" in result.output
