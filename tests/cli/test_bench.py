"""``gprune bench``."""

from __future__ import annotations

from gprune.pruners import group_methods
from tests.cli.calling import as_json, call


def test_bench(monkeypatch):
    """On a smaller model: the fields, not the times."""
    from gprune.evaluation import bench

    monkeypatch.setattr(
        bench, "SHAPE", {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    )
    options = ["--sizes", "64", "--width", 32, "--repeats", 1]
    result = as_json("bench", *options, "--method", "uniform_grid")
    assert set(group_methods()) < set(result["selection"][0]["milliseconds"])
    assert result["method"] == "uniform_grid"
    assert [row["keep"] for row in result["prefill"]] == [1.0, 0.5, 0.36, 0.25, 0.1]
    assert result["prefill"][0]["ideal"] == 1
    ideals = [row["ideal"] for row in result["prefill"]]
    assert ideals == sorted(ideals)
    assert all(row["speedup"] > 0 for row in result["prefill"])
    assert "matrix_power" in call("bench", *options).stdout
    bad = call("bench", "--sizes", "many")
    assert bad.exit_code == 2
    assert "sizes='many'" in bad.stderr
    blind = call("bench", *options, "--method", "visionzip")
    assert blind.exit_code == 2
    assert "reads attention and keys of a vision encoder" in blind.stderr
    text = as_json("bench", *options, "--method", "trim")
    assert text["method"] == "trim"
