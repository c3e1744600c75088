"""Engines with other options: chunked prefill, tensor parallelism; options that are refused."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import vllm

import gprune
from gprune.serving.families import SERVED
from gprune.serving.proof.engines import inspect_here
from gprune.tinyvlm.model import checkpoint_folder
from gprune.tinyvlm.scenes import Scene, make_scene
from tests.serving.vllm.checkpoints import FAMILIES, make_checkpoint, tiny_vlm
from tests.serving.vllm.engines import (
    Prompt,
    Reference,
    ask,
    assert_same,
    engine,
    prompts,
    until_end,
)

KEEP = 0.36
BY_NAME = {family.name: family for family in SERVED}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return make_checkpoint("llava", tmp_path_factory.mktemp("checkpoints") / "llava")


def model_config(
    folder: Path,
    settings: dict[str, Any],
    architecture: str = "GPruneLlavaForConditionalGeneration",
) -> Any:
    """Returns vLLM's config of a pruned model, without starting an engine."""
    inspect_here(BY_NAME["llava"])
    overrides = {"architectures": [architecture], "gprune": settings}
    return vllm.EngineArgs(model=str(folder), hf_overrides=overrides).create_model_config()


@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl"])
def test_chunks_smaller_than_an_image(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(name, tmp_path / name)
    asked = prompts(FAMILIES[name].image)
    options = {"max_num_batched_tokens": 8, "max_num_seqs": 4, "enable_chunked_prefill": True}
    with engine(folder, {"keep": 0.7}, **options) as llm:
        assert_same(ask(llm, asked), Reference(folder).ask(asked, gprune.GPrune(0.7)), 2e-3)


def test_two_processes_with_tensor_parallelism(folder: Path) -> None:
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    asked = prompts("<image>")
    with engine(folder, {"keep": KEEP, "method": "tome"}, **options) as llm:
        assert_same(ask(llm, asked), Reference(folder).ask(asked, gprune.ToMe(KEEP)), 2e-3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: Any) -> Path:
    return tiny_vlm(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.mark.parametrize(("method", "keep"), [("recommended", 0.25), ("gprune", 0.5)])
def test_the_tiny_vlm_answers_as_in_transformers(tiny: Path, method: str, keep: float) -> None:
    scenes: list[Scene] = [make_scene("test", 1, index) for index in range(12)]
    asked = [
        (Prompt(f"<image>{question.question}", [scene.draw()]), question.answer)
        for scene in scenes
        for question in scene.ask()[:3]
    ]
    asked_prompts = [prompt for prompt, _ in asked]
    # The shipped checkpoint; in the copy for vLLM only the names of the tower's weights differ.
    expected = Reference(checkpoint_folder()).ask(asked_prompts, gprune.make(method, keep=keep), 4)
    with engine(tiny, {"keep": keep, "method": method}) as llm:
        found = ask(llm, asked_prompts, 4)
    assert_same(found, expected, 2e-3)
    answers = [until_end(answer) for answer in found]
    from gprune.tinyvlm.vocabulary import build_tokenizer

    tokenizer = build_tokenizer()
    score = [
        tokenizer.decode(one) == answer for one, (_, answer) in zip(answers, asked, strict=True)
    ]
    assert sum(score) / len(score) > 0.6  # guessing without the picture gives less than 0.4


def test_the_start_logs_method_keep_and_version(
    folder: Path, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    settings = {"keep": 0.48, "method": "gprune", "options": {"threshold": 0.7}}
    with caplog.at_level(logging.INFO, "vllm"):
        model_config(folder, settings)
    line = f"gprune(threshold=0.7) gprune {gprune.__version__}, keep 0.48"
    assert any(line in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size > 1 has not been proven"),
        ({"video_pruning_rate": 0.5}, "prunes videos"),
        ({"mm_processor_kwargs": {"gprune_keep": 0.5}}, "into --hf-overrides"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "speculative_config has not been proven",
        ),
    ],
)
def test_untested_options_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), engine(folder, {"keep": 0.5}, **options):
        pass


def test_a_model_of_another_family_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="write 'GPruneLlavaForConditionalGeneration'"):
        model_config(folder, {"keep": 0.5}, "GPruneLlavaNextForConditionalGeneration")


def test_the_untested_runner_is_refused(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(ValueError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        model_config(folder, {"keep": 0.5})


def test_an_untested_vllm_refuses_pruned_architectures_only(folder: Path, monkeypatch: Any) -> None:
    from gprune.serving.vllm import models, plugin

    inspect_here(BY_NAME["llava"])
    monkeypatch.setattr(vllm, "__version__", "0.34.0")
    monkeypatch.delenv("GPRUNE_UNTESTED_VLLM", raising=False)
    with pytest.raises(gprune.UnsupportedVersionError, match=r"vllm 0\.34\.0 .*>=0\.32\.0"):
        model_config(folder, {"keep": 0.5})
    # If another version does not call the config hook, importing the models refuses.
    with pytest.raises(gprune.UnsupportedVersionError, match=r"vllm 0\.34\.0"):
        importlib.reload(models)
    hooks: dict[str, Any] = {}
    monkeypatch.setattr("vllm.model_executor.models.config.MODELS_CONFIG_MAP", hooks)
    registered = []
    monkeypatch.setattr(vllm.ModelRegistry, "register_model", lambda *args: registered.append(args))
    plugin.register()
    assert not hooks
    assert len(registered) == len(FAMILIES)
    monkeypatch.setenv("GPRUNE_UNTESTED_VLLM", "1")
    plugin.register()
    assert len(hooks) == len(FAMILIES)
