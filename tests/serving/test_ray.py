"""The example of batch inference with Ray Data, on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytest.importorskip("ray")

import ray

import gprune
from examples.ray_data import QUESTION, answer
from gprune.serving.settings import ServerSettings
from gprune.tinyvlm.model import checkpoint_folder
from gprune.tinyvlm.scenes import make_scene
from gprune.tinyvlm.vocabulary import build_tokenizer
from tests.serving.vllm.checkpoints import tiny_vlm
from tests.serving.vllm.engines import Prompt, Reference, until_end

KEEP = 0.36


def test_a_folder_of_images_is_answered(tmp_path: Path, monkeypatch: Any) -> None:
    model = tiny_vlm(tmp_path / "model")
    images = tmp_path / "images"
    images.mkdir()
    asked = []
    for index in range(4):
        picture = make_scene("test", 0, index).draw()
        picture.save(images / f"{index}.png")
        asked.append(Prompt(f"<image>{QUESTION}", [picture]))
    expected = Reference(checkpoint_folder()).ask(asked, gprune.GPrune(KEEP), 32)
    # Ray starts its engines as processes.
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    # Ray reserves a CPU for every stage.
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        rows = answer(
            images,
            str(model),
            ServerSettings(KEEP, "gprune"),
            gpus=0,
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            kv_cache_memory_bytes=2**26,
        )
    finally:
        ray.shutdown()
    assert len(rows) == len(asked)
    for row in rows:
        one = expected[int(Path(row["path"]).stem)]
        text = build_tokenizer().decode(until_end(one), skip_special_tokens=True)
        # A digit that continues a number shows its mark where nothing stands before it.
        assert row["answer"] == text.removeprefix("##")
        assert row["prompt_tokens"] == one.prompt
