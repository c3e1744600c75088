"""``gprune methods``, ``families`` and ``doctor``."""

from __future__ import annotations

from pathlib import Path

import gprune
from gprune.cli.listings import METHOD_GROUPS
from gprune.pruners import RECOMMENDED
from tests.cli.calling import as_json, call


def test_methods():
    listed = as_json("methods")["methods"]
    assert [row["name"] for row in listed] == gprune.methods()
    assert listed[0]["options"] == {
        "threshold": 0.5,
        "temperature": 0.03,
        "iterations": 5,
        "backend": "torch",
        "degree": "float32",
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


def test_methods_are_grouped_and_the_recommended_one_is_marked(wide_console):
    listed = as_json("methods")["methods"]
    assert [row["name"] for row in listed if row["recommended"]] == [RECOMMENDED]
    reads = {row["name"]: row["reads"] for row in listed}
    assert set(reads.values()) == set(METHOD_GROUPS)
    assert reads["graph_cover"] == "projected features alone"
    assert reads["text_cover"] == "features and the question"
    assert reads["visionzip"].startswith("features, and attention or keys")
    assert reads["evs"] == "all frames of a video"
    assert reads["fastv"].startswith("attention, keys or hidden states of the language model")
    text = call("methods").stdout
    assert f"{RECOMMENDED} (recommended)" in text
    assert text.count("(recommended)") == 1
    assert [text.index(group) for group in METHOD_GROUPS] == sorted(
        text.index(group) for group in METHOD_GROUPS
    )
