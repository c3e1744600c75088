"""The command itself: bad use, help, completion, and what it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gprune
from gprune.budget import parse_keep
from tests.cli.calling import TINY, call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--keep", "0"], "keep=0"),
        (["demo", "--keep", "1.5"], "keep=1.5"),
        (["demo", "--keep", "nan"], "keep=nan"),
        (["demo", "--keep", "much"], "keep='much' is no number"),
        (["demo", "--method", "nosuch"], "method 'nosuch' is unknown; choose one of gprune"),
        (["demo", "--question", "where is my dog?"], "does not know: my, dog"),
        (["demo", "--out", "kept.xyz"], "out='kept.xyz' has the suffix .xyz, which cannot be"),
        (["demo", "--out", "kept.pgf"], "use .png or another of"),
        (
            ["run", "nosuch", "--prompt", "x", "--image", "PICTURE", "--out", "a.b/kept.1"],
            "out='a.b/kept.1' has the suffix .1",
        ),
        (["run", TINY, "--prompt", "x", "--image", "PICTURE", "--device", "warp"], "device='warp'"),
        (["run", TINY, "--prompt", "x", "--image", "PICTURE", "--device", "cuda:77"], "device="),
        (["run", TINY, "--prompt", "x", "--image", "PICTURE", "--dtype", "int8"], "dtype='int8'"),
        (["flops"], "sizes are missing"),
        (["flops", "--hidden-size", "8"], "sizes are missing"),
    ],
)
def test_bad_use(arguments, message, picture):
    result = call(*[picture if argument == "PICTURE" else argument for argument in arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    "command",
    ["demo", "run", "eval", "app", "bench", "doctor", "methods", "families", "flops", "serve"],
)
def test_help_has_an_example(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"Example: gprune {command}" in " ".join(result.stdout.split())


def test_keep_as_text():
    assert parse_keep("0.36") == 0.36
    assert parse_keep("64") == 64
    assert isinstance(parse_keep("64"), int)
    assert parse_keep("1") == 1.0
    assert isinstance(parse_keep("1"), float)


def test_the_installed_command():
    environment = {**os.environ, "COLUMNS": "80"}
    command = [str(Path(sys.executable).parent / "gprune"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"gprune {gprune.__version__}\n"


def test_the_shell_completes_commands_and_methods():
    """The command is called as bash does when the tab key is pressed."""

    def completions(line: str) -> list[str]:
        words = line.split(" ")
        asked = {"_GPRUNE_COMPLETE": "complete_bash", "COMP_WORDS": line}
        environment = {**os.environ, **asked, "COMP_CWORD": str(len(words) - 1)}
        command = [str(Path(sys.executable).parent / "gprune")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        return done.stdout.split()

    assert completions("gprune de") == ["demo"]
    assert completions("gprune demo --method gr") == ["graph_cover"]
    assert "recommended" in completions("gprune bench --method ")


@pytest.mark.parametrize("module", ["gprune", "gprune.cli"])
def test_importing_is_light(module):
    code = (
        f"import sys, {module}; heavy = {{'transformers', 'matplotlib', 'vllm', 'gradio'}};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
