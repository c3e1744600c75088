"""The proof as an interface: what it returns, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.version import Version

from gprune import GraphCover, make
from gprune.errors import UnsupportedModelError
from gprune.layouts import families
from gprune.proof import CLAIMS, FamilyProof, Result, Verdict, claim_names, prove, prove_family
from gprune.proof.equality import Prompt, beams_are_right, masked_reference
from gprune.proof.families import specimen_case
from gprune.proof.prove import checked, trusted
from gprune.proof.results import Inapplicable, within
from gprune.proof.running import Noise, difference, greedy
from gprune.proof.sizes import judge_times
from gprune.proof.trace import changes, snapshot

OLDER = Version(transformers.__version__) < Version("5.24")


@pytest.mark.parametrize("name", list(families()))
def test_every_family(name):
    """All families are proven, but Llama 4 where transformers itself cannot run it."""
    proof = prove_family(name)
    assert isinstance(proof, FamilyProof)
    assert proof.name == name
    if name == "llama4" and not proof.passed:
        [failure] = proof.failures
        assert failure.startswith("model: without gprune: ")
        return
    assert proof.passed, proof.failures
    assert proof.failures == ()
    assert [result.name for result in proof.results] == claim_names(timed=False)
    expected = {"text turn", "image turn"} if name == "paligemma" else set()
    if OLDER and name in ("qwen3_5", "qwen3_5_moe", "llama4"):
        expected = {"beams"}  # transformers itself mixes up images
    assert {result.name for result in proof.results if not result.passed} <= expected


def test_it_is_deterministic():
    assert prove_family("internvl") == prove_family("internvl")


def test_it_leaves_torch_alone():
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            proof = prove_family("llava")
            assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(4), expected)
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert proof == prove_family("llava")  # the caller's settings do not change it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "gemma3", "mllama"])
def test_dtypes_and_attention_kernels(name, dtype, attention):
    proof = prove_family(name, dtype=dtype, attention=attention)
    assert proof.passed, proof.failures


# Claims that say nothing about a method.
IMAGE_TURN = {"image turn"}
NO_REFERENCE = {"masked reference", "text turn", "image turn"}


@pytest.mark.parametrize(
    ("method", "inapplicable"),
    [
        *((name, set()) for name in ("gprune", "weighted_cover", "tome", "visionzip", "random")),
        *((name, IMAGE_TURN) for name in ("fastv", "pyramiddrop", "sparsevlm", "dart")),
        ("downsampling", NO_REFERENCE),
        *((name, set()) for name in ("evs", "vidcom2")),
    ],
)
def test_methods(method, inapplicable):
    proof = prove_family("qwen2_vl", make(method, keep=0.36))
    assert proof.passed, proof.failures
    assert {result.name for result in proof.results if not result.passed} == inapplicable


def test_rows_that_move_have_no_reference():
    """In LLaVA, SparseVLM numbers positions anew and moves the rows that it appends."""
    proof = prove_family("llava", make("sparsevlm", keep=0.36))
    assert proof.passed, proof.failures
    assert {result.name for result in proof.results if not result.passed} == NO_REFERENCE


def test_merged_states_of_cross_attention():
    proof = prove_family("mllama", make("tome", keep=0.36))
    assert proof.passed, proof.failures


@pytest.mark.parametrize(("name", "method"), [("gemma3", "fastv"), ("llava", "evs")])
def test_what_does_not_apply(name, method):
    proof = prove_family(name, make(method, keep=0.36))
    assert [result.verdict for result in proof.results] == [Verdict.NOT_APPLICABLE]
    assert proof.failures == ()
    assert not proof.passed  # nothing was proven


def test_unknown_families_are_refused():
    with pytest.raises(ValueError, match="family 'lava' is unknown; choose from llava, "):
        prove_family("lava")


def test_unsupported_methods_are_refused_for_a_model():
    model, case = specimen_case("gemma3")
    with pytest.raises(UnsupportedModelError, match="fastv prunes inside the language model"):
        list(prove(model, case, make("fastv", keep=0.5)))


def test_results_are_reported_one_by_one():
    seen: list[Result] = []
    proof = prove_family("llava", report=seen.append)
    assert tuple(seen) == proof.results
    assert set(claim_names(timed=True)) - set(claim_names(timed=False)) == {"prefill"}
    assert claim_names(timed=True) == list(CLAIMS)


def test_an_exception_in_a_check_is_a_failed_check():
    def broken() -> Result:
        raise KeyError("no such\nlayer")

    def inapplicable() -> Result:
        raise Inapplicable("there are\n  no turns")

    failed = checked("beams", broken)
    assert (failed.name, failed.verdict) == ("beams", Verdict.FAILED)
    assert failed.detail.startswith("KeyError: ")
    assert "\n" not in failed.detail
    assert checked("turns", inapplicable).detail == "there are no turns"
    assert checked("turns", inapplicable).verdict == Verdict.NOT_APPLICABLE


def test_a_model_that_cannot_run_is_not_gprunes_failure():
    model, case = specimen_case("llava")
    model.get_decoder().register_forward_pre_hook(lambda *args: 1 / 0)
    [result] = prove(model, case, GraphCover(0.36), timed=False)
    assert result.verdict == Verdict.NOT_RUNNABLE
    assert result.detail == "without gprune: ZeroDivisionError: division by zero"


def test_a_comparison_that_cannot_tell_proves_nothing():
    model, case = specimen_case("llava")
    prompt = Prompt(model, GraphCover(0.36), case.batch)
    with pytest.raises(Inapplicable, match="the comparison proves nothing"):
        masked_reference(prompt, 100.0)
    with pytest.raises(Inapplicable, match="nothing was dropped"):
        masked_reference(Prompt(model, GraphCover(1.0), case.batch), 1e-5)


def test_bounds():
    assert within("x", 1.0, 1.0, "it is small").passed
    assert not within("x", float("nan"), 1.0, "it is small").passed
    assert not within("x", float("inf"), 1.0, "it is small").passed
    assert difference(torch.tensor([1.0, torch.nan]), torch.ones(2)) == float("inf")
    assert difference(torch.ones(2), torch.ones(3)) == float("inf")
    assert difference(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 0.0])) == 2.0


def test_noise_sets_the_tolerance_and_has_a_limit():
    epsilon = torch.finfo(torch.float32).eps
    noise = Noise(measured=1e-6, scale=2.0, epsilon=epsilon)
    assert noise.tolerance == pytest.approx(4e-6 + 4 * epsilon)
    assert trusted(noise).passed
    noisy = trusted(Noise(measured=0.01, scale=2.0, epsilon=epsilon))
    assert noisy.verdict == Verdict.FAILED
    assert "transformers contradicts itself" in noisy.detail
    assert not trusted(Noise(float("nan"), 2.0, epsilon)).passed
    half = torch.finfo(torch.bfloat16).eps
    assert trusted(Noise(0.19, 2.0, half)).passed
    assert not trusted(Noise(0.21, 2.0, half)).passed


class TestTimes:
    """Verdicts on measured times."""

    def test_faster(self):
        result = judge_times({"full": 100.0, "pruned": 68.0, "encoder": 20.0}, 2.0, 0.5)
        assert result.passed
        assert "can save 40.0 at best" in result.detail
        assert "80% of the ideal" in result.detail

    def test_slower(self):
        result = judge_times({"full": 200.0, "pruned": 210.0, "encoder": 20.0}, 2.0, 0.5)
        assert result.verdict == Verdict.FAILED
        result = judge_times({"full": 30.0, "pruned": 35.0, "encoder": 5.0}, 2.0, 0.5, "cuda")
        assert result.verdict == Verdict.FAILED

    @pytest.mark.parametrize(
        ("times", "noise", "reason"),
        [
            ({"full": 8.0, "pruned": 19.0, "encoder": 4.0}, 0.1, "too little to pay"),
            ({"full": 900.0, "pruned": 890.0, "encoder": 20.0}, 50.0, "within the noise"),
            ({"full": 900.0, "pruned": 910.0, "encoder": 20.0}, 50.0, "within the noise"),
            ({"full": 100.0, "pruned": 50.0, "encoder": 101.0}, 5.0, "save 0.0 at best"),
        ],
    )
    def test_undecided(self, times, noise, reason):
        with pytest.raises(Inapplicable, match=reason):
            judge_times(times, noise, 0.5)


def test_beams_of_a_model_that_mixes_up_images_are_not_compared():
    """The model itself gives beams the scores of another prompt."""
    model, case = specimen_case("llava")
    [(rows, batch), *_] = case.beams
    assert beams_are_right(model, rows, batch, 1e-5)
    assert not beams_are_right(model, [rows[1], rows[0], rows[2]], batch, 1e-5)
    assert not beams_are_right(model, rows, {**batch, "pixel_values": None}, 1e-5)


def test_forced_tokens_are_followed():
    model, case = specimen_case("llava")
    free = greedy(model, case.batch)
    other = torch.where(free.tokens == 7, 8, 7)
    forced = greedy(model, case.batch, forced=other)
    assert torch.equal(forced.tokens, other)
    assert torch.equal(forced.logits[:, 0], free.logits[:, 0])
    assert not torch.equal(forced.logits[:, 1], free.logits[:, 1])
    again = greedy(model, case.batch, forced=free.tokens)
    assert torch.equal(again.logits, free.logits)


def test_snapshots_see_what_changed():
    model, _ = specimen_case("llava")
    before = snapshot(model)
    assert changes(before, snapshot(model)) == []
    model.train()
    model.get_decoder().layers[0].forward = print
    model.config.text_config.use_cache = False
    handle = model.lm_head.register_forward_hook(print)
    found = changes(before, snapshot(model))
    handle.remove()
    assert "attribute model.language_model.layers.0.forward" in found
    assert "config" in found
    assert "hooks lm_head._forward_hooks" in found
    assert "mode of the model" in found
