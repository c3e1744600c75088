"""`gprune prove --engine vllm` on every served family, and on servers broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from transformers import AutoConfig, AutoProcessor

from gprune.proof.answers import difference
from gprune.proof.checkpoint import reply_in_transformers
from gprune.serving.proof.claims import CHUNK_OPTION, CLAIMS, Evidence, answers_of, check
from gprune.serving.proof.prove import collect, make_job
from gprune.serving.proof.runs import run_here, run_stock
from gprune.serving.settings import ServerSettings
from tests.serving.vllm.checkpoints import FAMILIES, make_checkpoint
from tests.serving.vllm.engines import prompts

KEEP = 0.36


def evidence_of(name: str, folder: Path) -> Evidence:
    """Asks stock vLLM, pruned vLLM and transformers about a random checkpoint of a family."""
    model = str(make_checkpoint(name, folder / name))
    config, processor = AutoConfig.from_pretrained(model), AutoProcessor.from_pretrained(model)
    asked = prompts(FAMILIES[name].image)
    settings = ServerSettings(KEEP, "gprune")
    job = make_job(
        *(model, config, processor, asked, settings, "float32"), keeps=(0.1, 3, 0.5, 1.0)
    )
    return collect(job, "float32", "cpu", reply_in_transformers, run_here)


def failed(evidence: Evidence) -> dict[str, str]:
    """Returns the claims that do not hold, with their details."""
    return {result.name: result.detail for result in check(evidence) if not result.passed}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_claim_holds(name: str, tmp_path: Path) -> None:
    evidence = evidence_of(name, tmp_path)
    assert not failed(evidence)
    assert [result.name for result in check(evidence)] == list(CLAIMS)
    stock, pruned, replies = evidence.stock, evidence.pruned, evidence.replies
    # In float32 every greedy token is the same, and differences are far below what a wrong position
    # or a wrong token makes.
    for found, expected, tolerance in (
        (pruned.whole, stock.batch, 1e-5),
        (answers_of(pruned.asked), answers_of(replies.asked), 2e-3),
        (answers_of(pruned.own), answers_of(replies.own), 2e-3),
        (pruned.together, answers_of([*pruned.asked, *pruned.own]), 2e-3),
    ):
        compared = difference(found, expected)
        assert compared.same == compared.steps == len(found) * evidence.job.steps
        assert compared.largest <= tolerance
        assert not compared.prompts
    assert max(evidence.between_batches, evidence.between_engines) <= 2e-3
    # Pruning changes the answers; otherwise the comparisons above would show nothing.
    assert difference(answers_of(pruned.asked), stock.alone).largest > 0.05
    # Chunks are shorter than the images of the first prompt, and its prefill takes several.
    assert evidence.job.options[CHUNK_OPTION] < pruned.asked[0].answer.prompt


@pytest.fixture(scope="module")
def sound(tmp_path_factory: Any) -> Evidence:
    """A proof that holds, of which a broken server changes a part."""
    return evidence_of("qwen2_5_vl", tmp_path_factory.mktemp("sound"))


def broken(sound: Evidence) -> Evidence:
    """Asks the pruned server and transformers again; stock vLLM is not affected."""

    def run(function: Callable[..., Any], *args: Any) -> Any:
        return sound.stock if function is run_stock else function(*args)

    return collect(sound.job, "float32", "cpu", reply_in_transformers, run)


def test_compact_positions_are_found(sound: Evidence, monkeypatch: Any) -> None:
    from gprune.serving.vllm.positions import PromptImage

    # The text after an image continues after its kept tokens, as if the others had not been there.
    monkeypatch.setattr(PromptImage, "advance", property(lambda self: len(self.placeholders)))
    assert {"answers", "request keeps"} <= failed(broken(sound)).keys()


def test_positions_shifted_by_one_are_found(sound: Evidence, monkeypatch: Any) -> None:
    from gprune.serving.vllm import models

    fill = models.fill_positions
    monkeypatch.setattr(
        models, "fill_positions", lambda positions, rows, done: fill(positions, rows + 1, done)
    )
    assert {"keep 1", "answers", "request keeps"} <= failed(broken(sound)).keys()


def test_an_ignored_budget_of_a_request_is_found(sound: Evidence, monkeypatch: Any) -> None:
    from gprune.serving.plan import encode_keep
    from gprune.serving.vllm.processing import PruningProcessor

    monkeypatch.setattr(
        PruningProcessor, "encoded_keep", lambda self, kwargs: encode_keep(self.settings.keep)
    )
    found = failed(broken(sound))
    assert {"keep 1", "choice", "request keeps", "refusals"} <= found.keys()
    assert "gprune_keep=1.5 was answered" in found["refusals"]
    assert "answers" not in found


def test_another_choice_is_found(sound: Evidence, monkeypatch: Any) -> None:
    other = ServerSettings(KEEP, "uniform_grid")
    monkeypatch.setattr(
        ServerSettings, "pruner", lambda self, encoded: other_pruner(other, encoded)
    )
    found = failed(broken(sound))
    # Transformers is asked with the method that the job names.
    assert "choice" in found
    assert "are kept by only one of vLLM and transformers" in found["choice"]


def other_pruner(settings: ServerSettings, encoded: tuple[int, ...]) -> Any:
    from gprune.serving.settings import cached_pruner

    return cached_pruner(settings.method, (), encoded)


def test_features_of_other_tokens_are_found(sound: Evidence, monkeypatch: Any) -> None:
    from gprune.serving.vllm import models

    split = models.split_row_numbers

    def reversed_features(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, rows = split(embeddings)
        return features.flip(0), rows

    monkeypatch.setattr(models, "split_row_numbers", reversed_features)
    found = failed(broken(sound))
    assert {"keep 1", "answers", "request keeps"} <= found.keys()
    assert "choice" not in found


def test_a_cache_that_mixes_budgets_is_found(sound: Evidence, monkeypatch: Any) -> None:
    from gprune.serving.vllm import processing

    hashes = processing.PruningProcessor._get_mm_hashes

    def without_budget(self: Any, inputs: Any) -> Any:
        kwargs = processing.without_keep(inputs.hf_processor_mm_kwargs)
        return hashes(self, replace(inputs, hf_processor_mm_kwargs=kwargs))

    monkeypatch.setattr(processing.PruningProcessor, "_get_mm_hashes", without_budget)
    found = failed(broken(sound))
    assert {"choice", "request keeps", "prefix cache"} <= found.keys()
    assert "a request with another budget took 128 tokens from the cache" in found["prefix cache"]


def test_a_plugin_that_changes_the_model_is_found(sound: Evidence, monkeypatch: Any) -> None:
    from gprune.serving.vllm.models import PruningModel

    embed = PruningModel.embed_multimodal

    def scaled(self: Any, **kwargs: Any) -> Any:
        pruned = embed(self, **kwargs)
        return [torch.cat([one[:, :-2] * 1.01, one[:, -2:]], 1) for one in pruned]

    monkeypatch.setattr(PruningModel, "embed_multimodal", scaled)
    assert {"keep 1", "answers"} <= failed(broken(sound)).keys()
