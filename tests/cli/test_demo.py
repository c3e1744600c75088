"""``gprune demo``."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from gprune.pruners import METHODS, RECOMMENDED, RECOMMENDED_REASON, SparseVLM
from tests.cli.calling import as_json, call


def test_demo_as_json(tmp_path):
    out = tmp_path / "new" / "demo.png"
    result = as_json("demo", "--out", out)
    assert set(result) == {
        *("model", "method", "keep", "question", "expected", "answer_full", "answer_pruned"),
        *("visual_tokens", "kept_tokens", "flops_full", "flops_pruned", "flops_saved"),
        *("prefill_ms_full", "prefill_ms_pruned", "overlay"),
        *("recommended_method", "answer_recommended"),
    }
    assert result["method"] == "gprune"
    assert result["recommended_method"] == RECOMMENDED
    assert (result["visual_tokens"], result["kept_tokens"]) == (256, 92)
    assert result["answer_full"] == result["expected"]
    assert 0.5 < result["flops_saved"] < 0.7
    assert result["flops_saved"] == 1 - result["flops_pruned"] / result["flops_full"]
    with Image.open(result["overlay"]) as drawn:
        assert Path(result["overlay"]) == out
        assert drawn.width > 600


@pytest.mark.parametrize(
    "method", [name for name, kind in METHODS.items() if kind.scope != "video"]
)
def test_demo_with_every_method(tmp_path, method):
    out = tmp_path / "demo.png"
    result = as_json("demo", "--method", method, "--keep", "64", "--seed", "3", "--out", out)
    assert result["method"] == method
    # SparseVLM's budget names a setting, whose last layer has fewer tokens.
    expected = SparseVLM(64).schedule(256, 5)[-1] if method == "sparsevlm" else 64
    assert result["kept_tokens"] == expected
    assert out.is_file()
    assert result["answer_recommended"] is None


def test_demo_keeping_everything_answers_the_same(tmp_path):
    result = as_json("demo", "--keep", "1", "--out", tmp_path / "demo.png")
    assert result["kept_tokens"] == 256
    assert result["answer_full"] == result["answer_pruned"]
    assert result["flops_saved"] == 0


def test_demo_with_an_image_and_a_question_of_the_user(tmp_path, picture):
    out = tmp_path / "demo.png"
    question = "how many shapes are there?"
    result = call("demo", "--image", picture, "--question", question, "--out", out)
    assert result.exit_code == 0
    assert "92 of 256 tokens" in result.stdout
    assert "prefill" in result.stdout


def row_of(output: str, label: str) -> list[str]:
    """The cells of a table's row."""
    line = next(line for line in output.splitlines() if line.startswith(f"│ {label} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_demo_compares_gprune_with_the_recommended_method(tmp_path, wide_console):
    result = call("demo", "--out", tmp_path / "demo.png")
    assert result.exit_code == 0
    heads = next(line for line in result.stdout.splitlines() if line.startswith("┃"))
    names = [head.strip() for head in heads.strip("┃").split("┃")]
    assert names == ["question", "expected", "all tokens", "gprune", RECOMMENDED]
    number = row_of(result.stdout, "what number is written in the image?")
    assert number[1:] == ["556", "556", "556", "556"]
    # G-Prune miscounts the shapes of this scene.
    counted = row_of(result.stdout, "how many shapes are there?")
    assert counted[1:] == ["5", "5", "8", "5"]
    right = row_of(result.stdout, "right answers")
    assert right[1:] == ["10", "10", "9", "10"]
    assert RECOMMENDED_REASON in " ".join(result.stdout.split())


def test_demo_with_one_method_shows_it_alone(tmp_path, wide_console):
    result = call("demo", "--method", "random", "--out", tmp_path / "demo.png")
    assert result.exit_code == 0
    heads = next(line for line in result.stdout.splitlines() if line.startswith("┃"))
    names = [head.strip() for head in heads.strip("┃").split("┃")]
    assert names == ["question", "expected", "all tokens", "random"]


def test_demo_with_gprune_alone_answers_as_beside_the_recommended_method(tmp_path):
    """The fields of JSON do not depend on the second method."""
    both = as_json("demo", "--out", tmp_path / "demo.png")
    alone = as_json("demo", "--method", "gprune", "--out", tmp_path / "demo.png")
    varying = {"prefill_ms_full", "prefill_ms_pruned", "answer_recommended"}
    assert {key: both[key] for key in both.keys() - varying} == {
        key: alone[key] for key in alone.keys() - varying
    }
    recommended = as_json("demo", "--method", "recommended", "--out", tmp_path / "demo.png")
    assert recommended["method"] == RECOMMENDED
    assert recommended["answer_pruned"] == both["answer_recommended"]


@pytest.mark.parametrize(("name", "written"), [("kept", "kept.png"), ("kept.JPG", "kept.JPG")])
def test_demo_reports_the_file_that_it_wrote(tmp_path, name, written):
    result = as_json("demo", "--out", tmp_path / "new" / name)
    assert Path(result["overlay"]) == tmp_path / "new" / written
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / written]
    people = call("demo", "--question", "how many shapes are there?", "--out", tmp_path / name)
    assert f"picture {tmp_path / written}\n" in people.stdout
    assert (tmp_path / written).is_file()
