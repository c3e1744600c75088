"""The claims about a served model, on made-up answers: each fails where it should. No vLLM."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gprune.proof.answers import Answer, Choice, Prompt, Reply, difference
from gprune.proof.results import Verdict
from gprune.serving.proof.claims import CHUNK_OPTION, CLAIMS, Evidence, Replies, check
from gprune.serving.proof.prompts import PromptLength, picture, several, write_prompt
from gprune.serving.proof.prove import Job, StepError, collect, engine_options, prove_served
from gprune.serving.proof.runs import Asked, CacheRun, PrunedRun, Refused, StockRun, run_stock
from gprune.serving.settings import ServerSettings

PICTURE = picture(0, 8, 8)
KEPT = np.array([True, False, True, False])


def answer(*logprobs: float, prompt: int = 20, cached: int = 0, path: Any = ()) -> Answer:
    """Makes an answer whose step i has the likeliest token i and, less likely, token 99."""
    top = tuple({index: value, 99: value - 3} for index, value in enumerate(logprobs))
    return Answer(tuple(range(len(logprobs))), top, prompt, path, cached=cached)


def evidence(**changes: Any) -> Evidence:
    """Makes evidence of which every claim holds; ``changes`` replace fields of the pruned run."""
    prompts = [Prompt("one <image>", [PICTURE]), Prompt("two")]
    job = Job("model", ServerSettings(0.5), {CHUNK_OPTION: 7}, prompts, keeps=(0.25,))
    own = [Asked(replace(prompts[0], keep=0.25), answer(-0.3, -0.4), Choice(KEPT, ()))]
    asked = [
        Asked(prompt, answer(-0.1, -0.2), Choice(KEPT if prompt.images else KEPT[:0], ()))
        for prompt in prompts
    ]
    whole = [answer(-0.5, -0.6), answer(-0.1, -0.2)]
    cache = CacheRun(
        answer(-0.1, -0.2),
        answer(-0.1, -0.2, cached=16),
        answer(-0.3, -0.4, cached=2),
        answer(-0.3, -0.4),
        2,
    )
    refused = [Refused("gprune_keep=0", "keep=0 must be at least 1")]
    pruned = PrunedRun(
        whole, asked, own, [one.answer for one in asked + own], cache, refused, [], asked[0].answer
    )
    pruned = replace(pruned, **changes)
    replies = Replies(
        [reply(one, np.ones(4, dtype=np.bool_)) for one in whole],
        [reply(one.answer, one.choice.kept) for one in asked],
        [reply(one.answer, one.choice.kept) for one in own],
    )
    return Evidence(job, torch.float32, StockRun(whole, whole), pruned, replies)


def reply(one: Answer, kept: Any) -> Reply:
    return Reply(replace(one, path=one.tokens, cached=0), kept, 1e-6)


def failed(given: Evidence) -> list[str]:
    return [result.name for result in check(given) if result.verdict == Verdict.FAILED]


def test_every_claim_can_hold() -> None:
    results = list(check(evidence()))
    assert [result.name for result in results] == list(CLAIMS)
    assert all(result.passed for result in results)
    details = {result.name: result.detail for result in results}
    assert "prefill in chunks of 7 tokens" in details["answers"]
    assert "kept 4 of 8 visual tokens in 3 requests" in details["choice"]


OTHER = answer(-0.11, -0.2)
LONGER = answer(-0.1, -0.2, prompt=21)
CHOICE = Choice(~KEPT, ())
SHORTER = Choice(KEPT[:3], ())


@pytest.mark.parametrize(
    ("changes", "claims"),
    [
        ({"whole": [answer(-0.51, -0.6), answer(-0.1, -0.2)]}, ["keep 1"]),
        ({"whole": [answer(-0.5, -0.6, prompt=9), answer(-0.1, -0.2)]}, ["keep 1"]),
        ({"asked": [Asked(Prompt("x"), OTHER, Choice(KEPT, ()))] * 2}, ["choice", "answers"]),
        ({"own": [Asked(Prompt("x"), LONGER, Choice(KEPT, ()))]}, ["request keeps", "one batch"]),
        ({"own": [Asked(Prompt("x"), answer(-0.3, -0.4), CHOICE)]}, ["choice"]),
        ({"own": [Asked(Prompt("x"), answer(-0.3, -0.4), SHORTER)]}, ["choice"]),
        ({"together": [OTHER, answer(-0.1, -0.2), answer(-0.3, -0.4)]}, ["one batch"]),
        ({"after": answer(math.nan, -0.2)}, ["refusals"]),
        ({"after": LONGER}, ["refusals"]),
        ({"refused": [Refused("a video", None)]}, ["refusals"]),
        ({"refused": [Refused("a video", "")]}, ["refusals"]),
    ],
)
def test_each_claim_can_fail(changes: dict[str, Any], claims: list[str]) -> None:
    assert set(claims) <= set(failed(evidence(**changes)))


def test_a_prefix_cache_that_is_not_used_or_mixes_budgets_fails() -> None:
    sound = evidence().pruned.cache
    for cache, message in (
        (replace(sound, again=sound.first), "took none from the cache"),
        (replace(sound, changed=replace(sound.changed, cached=3)), "only 2 come before the image"),
        (replace(sound, again=replace(OTHER, cached=16)), "differs by"),
        (replace(sound, changed=OTHER), "differs by"),
    ):
        (result,) = [one for one in check(evidence(cache=cache)) if one.name == "prefix cache"]
        assert result.verdict == Verdict.FAILED
        assert message in result.detail


def test_engines_that_differ_without_gprune_fail() -> None:
    sound = evidence()
    other = [reply(answer(-0.6, -0.7), KEPT), sound.replies.stock[1]]
    assert "engines" in failed(replace(sound, replies=replace(sound.replies, stock=other)))


def test_other_features_fail() -> None:
    sound = evidence()
    asked = [replace(one, feature_error=0.01) for one in sound.replies.asked]
    assert failed(replace(sound, replies=replace(sound.replies, asked=asked))) == ["features"]


def test_a_choice_in_other_processes_is_not_checked() -> None:
    given = evidence(own=[Asked(Prompt("x"), answer(-0.3, -0.4), None)])
    verdicts = {result.name: result.verdict for result in check(given)}
    assert verdicts.pop("choice") == verdicts.pop("features") == Verdict.NOT_APPLICABLE
    assert set(verdicts.values()) == {Verdict.PASSED}


def test_differences_between_answers() -> None:
    one = answer(-0.1, -0.2)
    assert difference([one], [one]).largest == 0
    assert difference([one], [answer(-0.1, -0.25)]).largest == pytest.approx(0.05)
    # A token that only one lists is at most as likely as the other's least likely one.
    listed = replace(one, top=({0: -0.1, 99: -3.1, 5: -2.0}, one.top[1]))
    assert difference([listed], [one]).largest == pytest.approx(1.1)
    assert difference([one], [listed]).largest == pytest.approx(1.1)
    unlikely = replace(one, top=({0: -0.1, 99: -3.1, 5: -9.0}, one.top[1]))
    assert difference([unlikely], [one]).largest == 0
    nan = difference([answer(math.nan, -0.2)], [one])
    assert nan.largest == math.inf


def test_steps_after_another_token_are_not_compared() -> None:
    one = answer(-0.1, -0.2, -0.3)
    other = replace(one, tokens=(0, 99, 2), top=(one.top[0], one.top[1], {2: -7.0, 99: -8.0}))
    found = difference([one], [other])
    assert (found.same, found.steps, found.largest) == (1, 2, 0)
    # A reference that follows the first one's tokens is compared at every step.
    followed = difference([one], [replace(other, path=one.tokens)])
    assert followed.steps == 3
    assert followed.largest > 6


def test_prompts_of_different_lengths_are_named() -> None:
    found = difference([answer(-0.1), answer(-0.1, prompt=7)], [answer(-0.1), answer(-0.1)])
    assert found.prompts == ("prompt 1 has 7 tokens instead of 20",)


def test_several_pictures_are_different() -> None:
    pictures = several([picture(0, 12, 30)], 5)
    assert len({(one.size, one.tobytes()) for one in pictures}) == 5
    own = [picture(seed, 8, 8) for seed in range(7)]
    assert several(own, 5) == own[:5]
    with pytest.raises(ValueError, match="1 images give fewer than 5 different pictures"):
        several([Image.new("RGB", (8, 8))], 5)


class Processor:
    image_token = "<image>"
    chat_template = "something"

    def apply_chat_template(self, turns: Any, add_generation_prompt: bool) -> str:
        (turn,) = turns
        assert add_generation_prompt
        return "|".join(part.get("text", part["type"]) for part in turn["content"])


def test_prompts_are_written_in_the_chat_format() -> None:
    processor = Processor()
    assert write_prompt(processor, ["who?", None]) == "who?|image"
    processor.chat_template = ""
    assert write_prompt(processor, ["who?", None]) == "who? <image>"


def test_the_length_after_pruning() -> None:
    length = PromptLength(100, 64)
    assert length.pruned(0.25) == 52
    assert length.pruned(10) == 46
    assert length.pruned({"tile": 0.1}) == 68


def test_engine_options_give_chunks_shorter_than_an_image() -> None:
    from transformers import LlavaConfig

    lengths = [PromptLength(100, 64), PromptLength(30, 0), PromptLength(700, 576)]
    options = engine_options(LlavaConfig(), "bfloat16", lengths, 0.25, 6)
    assert options[CHUNK_OPTION] == (100 - 64 + 16) // 3
    assert options["max_model_len"] >= 700 + 6
    # LLaVA-1.5-7B: half a megabyte for each token, room for eight requests.
    assert options["kv_cache_memory_bytes"] == 2**19 * options["max_model_len"] * 8


def test_an_engine_that_fails_is_a_failed_claim() -> None:
    sound = evidence()

    def run(function: Any, *args: Any) -> Any:
        if function is run_stock:
            return sound.stock
        raise RuntimeError("out of memory\nin the middle")

    with pytest.raises(StepError, match="vLLM with pruned images failed: RuntimeError: out of"):
        collect(sound.job, "float32", "cpu", lambda *args: [], run)
    (result,) = prove_served(sound.job, "float32", "cpu", lambda *args: [], run)
    assert (result.name, result.verdict) == ("engines", Verdict.FAILED)
    assert result.detail.endswith("RuntimeError: out of memory")


def test_each_engine_runs_in_a_process_of_its_own() -> None:
    import os

    from gprune.serving.proof.runs import run_apart

    assert run_apart(os.getpid) != os.getpid()
    assert run_apart(os.getenv, "VLLM_ENABLE_V1_MULTIPROCESSING") == "0"
    # A proof is there for untested versions too.
    assert run_apart(os.getenv, "GPRUNE_UNTESTED_VLLM") == "allow"
    with pytest.raises(RuntimeError):
        run_apart(os._exit, 3)
