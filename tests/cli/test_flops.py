"""``gprune flops``."""

from __future__ import annotations

import pytest

from tests.cli.calling import TINY, as_json, call

SIZES = ("--hidden-size", 4096, "--intermediate-size", 11008, "--layers", 32)


@pytest.mark.parametrize(("kept", "tera"), [(192, 0.976), (128, 0.649), (64, 0.323)])
def test_flops_of_llava_7b(kept, tera):
    result = as_json(
        "flops", *SIZES, "--visual-tokens", 576, "--keep", kept, "--convention", "fastv"
    )
    assert round(result["flops_full"] / 1e12, 3) == 2.986
    assert round(result["flops_pruned"] / 1e12, 3) == tera
    assert result["kept_tokens"] == kept
    assert result["kv_bytes_full"] == 2 * 32 * 4096 * 2 * 576
    assert result["kv_bytes_pruned"] == 2 * 32 * 4096 * 2 * kept


def test_flops_with_text_and_a_target():
    sizes = ("--hidden-size", 4096, "--intermediate-size", 14336, "--layers", 32)
    llama = (*sizes, "--heads", 32, "--kv-heads", 8)
    result = as_json(
        *("flops", *llama, "--visual-tokens", 2880, "--text-tokens", 60),
        *("--target-saving", 0.6357, "--convention", "linear"),
    )
    assert result["flops_saved"] >= 0.6357
    assert result["kept_tokens"] == pytest.approx(2880 - 0.6357 * 2940, abs=1)
    both = call("flops", *SIZES, "--visual-tokens", 9, "--keep", 3, "--target-saving", 0.5)
    assert both.exit_code == 2
    assert "either --keep or --target-saving" in both.stderr


def test_flops_inside_the_language_model():
    options = ["flops", *SIZES, "--visual-tokens", 576, "--convention", "fastv"]
    full, before, inside, after_two = (
        as_json(*options, "--keep", keep, *more)["flops_pruned"]
        for keep, more in (
            ("1.0", []),
            ("192", ["--method", "gprune"]),
            ("192", ["--method", "fastv"]),
            ("192", []),
        )
    )
    assert before == after_two
    assert inside == (2 * full + 30 * before) // 32
    both = call(*options, "--target-saving", 0.5, "--method", "fastv")
    assert both.exit_code == 2
    assert "pass --keep" in both.stderr


def test_flops_of_a_checkpoint():
    result = as_json("flops", TINY, "--keep", "0.36")
    assert result["visual_tokens"] == 256
    assert result["vision_tower_flops"] > 0
    people = call("flops", TINY, "--keep", "0.36")
    assert "92 of 256 visual tokens" in people.stdout
