"""``gprune methods``, ``families`` and ``doctor``."""

from __future__ import annotations

from pathlib import Path

import gprune
from tests.cli.calling import as_json, call


def test_methods():
    listed = as_json("methods")["methods"]
    assert [row["name"] for row in listed] == gprune.methods()
    assert listed[0]["options"] == {
        "threshold": 0.5,
        "temperature": 0.03,
        "iterations": 5,
        "backend": "torch",
    }
    assert "uniform_grid" in call("methods").stdout
    reads = {row["name"]: row["signals"] for row in listed}
    assert reads["gprune"] == []
    assert reads["visionzip"] == ["attention", "keys"]


def test_every_method_with_signals_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "methods" / "peers.md").read_text()
    for row in as_json("methods")["methods"]:
        if row["signals"]:
            wanted = f"| `{row['name']}` | {', '.join(row['signals'])} |"
            assert wanted in page


def test_families():
    listed = as_json("families")["families"]
    assert {row["name"]: row["tier"] for row in listed} == gprune.families()
    assert "Qwen3-VL" in call("families").stdout


def test_the_documented_table_is_the_registry():
    page = Path(__file__).parents[2] / "docs" / "families.md"
    assert call("families", "--markdown").stdout in page.read_text()


def test_doctor():
    checks = {row["name"]: row for row in as_json("doctor")["checks"]}
    assert checks["transformers"]["good"]
    assert checks["gprune"]["found"] == gprune.__version__
    assert all(row["advice"] for row in checks.values() if not row["good"])
    shown = call("doctor").stdout
    assert "transformers" in shown
    for extra, name in (("app", "gradio"), ("vllm", "vllm"), ("eval", "lmms-eval")):
        assert checks[name]["good"] or f"gprune[{extra}]" in shown
