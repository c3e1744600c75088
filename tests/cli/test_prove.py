"""``gprune prove``: tables, JSON, exit codes, and bad use."""

from __future__ import annotations

import json

import pytest

from gprune.hf import cache
from gprune.layouts import families
from gprune.proof import claim_names
from tests.cli.calling import TINY, as_json, call
from tests.folders import save_llava_next


def without_traceback(result):
    assert "Traceback" not in result.output
    return result


def test_a_model_and_your_own_image(picture):
    result = as_json("prove", TINY, "--images", picture, "--keep", "0.3")
    assert result["passed"]
    assert result["keep"] == 0.3
    assert result["attention"] == "sdpa"
    assert set(result["versions"]) == {"gprune", "torch", "transformers", "python"}
    assert [one["claim"] for one in result["results"]] == claim_names(timed=True)
    verdicts = {one["claim"]: one["verdict"] for one in result["results"]}
    # The clock of a busy machine may not decide.
    assert verdicts.pop("prefill") in ("passed", "not applicable")
    assert set(verdicts.values()) == {"passed"}
    identity = result["results"][1]
    assert identity["measured"] == identity["bound"] == 0
    reference = result["results"][2]
    assert 0 < reference["measured"] <= reference["bound"] < 1e-3


def test_a_model_in_another_dtype_and_kernel(wide_console):
    result = call("prove", "tinyvlm", "--dtype", "bfloat16", "--attention", "eager")
    assert "graph_cover keep 0.36 on cpu, bfloat16, eager" in result.stdout
    assert "masked reference" in result.stdout
    assert "tinyvlm: 1" in result.stdout
    assert result.exit_code == 0, result.output


def test_a_checkpoint_without_chat_template(tmp_path):
    save_llava_next(tmp_path)
    result = as_json("prove", tmp_path, "--method", "weighted_cover")
    assert result["method"] == "weighted_cover"
    assert result["passed"]


def test_families(wide_console):
    result = call("prove", "--family", "llava", "--family", "llama4")
    assert result.exit_code == 0, result.output
    assert "11 passed" in result.stdout
    # transformers itself may be unable to run it: no failure of gprune, but said plainly.
    assert "1 of 2 families proven" in result.stdout or "2 of 2" in result.stdout
    if "1 of 2" in result.stdout:
        assert "not runnable here: model of llama4: without gprune: " in result.stdout
        assert result.stdout.rstrip().endswith("not runnable here: llama4")


def test_families_as_json():
    result = as_json("prove", "--family", "qwen2_vl", "--family", "paligemma")
    assert result["model"] is None
    assert [family["name"] for family in result["families"]] == ["qwen2_vl", "paligemma"]
    assert all(family["passed"] for family in result["families"])
    reasons = {
        one["claim"]: one["detail"]
        for one in result["families"][1]["results"]
        if one["verdict"] == "not applicable"
    }
    assert reasons.keys() == {"text turn", "image turn"}


def test_a_failed_claim_is_exit_code_1(monkeypatch, wide_console):
    monkeypatch.setattr(cache.HookedCache, "reorder_cache", lambda self, beam_idx: None)
    result = without_traceback(call("prove", "--family", "llava"))
    assert result.exit_code == 1
    assert "failed: beams of llava: differs by" in result.stdout
    assert "0 of 1 families proven; failed: llava" in result.stdout
    result = call("prove", TINY, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["passed"]
    assert [one["claim"] for one in found["results"] if one["verdict"] == "failed"] == ["beams"]


def test_an_exception_in_a_check_is_a_failed_claim(monkeypatch, wide_console):
    def broken(self, beam_idx):
        raise IndexError("no such row")

    monkeypatch.setattr(cache.HookedCache, "reorder_cache", broken)
    result = without_traceback(call("prove", "--family", "llava"))
    assert result.exit_code == 1
    assert "IndexError: no such row" in result.stdout


def test_nothing_proven_is_exit_code_1():
    result = call("prove", "--family", "gemma3", "--method", "fastv")
    assert result.exit_code == 1
    assert "0 of 1 families proven; not applicable: gemma3" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "lava"], f"family 'lava' is unknown; choose from {', '.join(families())}"),
        (["--images", "cat.png"], "--images needs MODEL"),
        ([TINY, "--family", "llava"], "--family needs no MODEL"),
        ([TINY, "--images", "cat.png"], "does not exist"),
        ([TINY, "--method", "nosuch"], "method 'nosuch' is unknown"),
        ([TINY, "--keep", "2.5"], "keep"),
        ([TINY, "--attention", "nosuch"], "nosuch"),
        ([TINY, "--method", "evs"], "video"),
        (["--family", "llava", "--device", "nosuch"], "device='nosuch'"),
        (["--family", "llava", "--dtype", "int8"], "dtype='int8'"),
        (["no/such/model"], "cannot be loaded"),
    ],
)
def test_bad_use(arguments, message):
    result = without_traceback(call("prove", *arguments))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert message in result.stderr
