"""Every example runs, on a tiny random model where it has a `--tiny` mode."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gprune

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
# tests/serving runs the one that needs Ray and vLLM.
SCRIPTS = [name for name in NAMES if name not in ("__init__", "common", "ray_data")]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"examples.{name}", *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_example(name):
    done = run(name, *(() if name == "pipeline" else ("--tiny",)))
    assert done.returncode == 0, done.stderr
    assert "full: " in done.stdout
    assert "pruned: " in done.stdout
    assert " of " in done.stdout


def test_every_tier_1_family_has_one():
    assert {name for name, tier in gprune.families().items() if tier == 1} <= set(SCRIPTS)


def test_a_real_checkpoint_needs_a_picture():
    done = run("llava")
    assert done.returncode == 2
    assert "pass --image or --video" in done.stderr
