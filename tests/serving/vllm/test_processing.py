"""Processors, placeholders and positions of every served family, without an engine.

These run the Python of a vLLM whose compiled engine cannot be loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

import vllm
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs

import gprune
from gprune.proof.answers import Prompt
from gprune.proof.checkpoint import Checkpoint
from gprune.serving.families import SERVED
from gprune.serving.plan import ImagePlan
from gprune.serving.proof.engines import inspect_here, overridden
from gprune.serving.settings import REQUEST_KEY, ServerSettings
from gprune.serving.vllm import models
from gprune.serving.vllm.positions import fill_positions
from gprune.serving.vllm.processing import PLAN_FIELD
from tests.serving.vllm.checkpoints import FAMILIES, make_checkpoint
from tests.serving.vllm.engines import prompts

KEEP = 0.36
BY_NAME = {family.name: family for family in SERVED}


class Frontend:
    """The plugin's processor of a random checkpoint, and the same checkpoint in transformers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.family = BY_NAME[name]
        self.prompts = [one for one in prompts(FAMILIES[name].image) if one.images]
        self.checkpoint = Checkpoint(str(make_checkpoint(name, folder / name)))
        inspect_here(self.family)
        options = overridden(self.checkpoint.model.config, ServerSettings(KEEP, "gprune"), {})
        arguments = vllm.EngineArgs(str(folder / name), dtype="float32", seed=0, **options)
        self.processor = MULTIMODAL_REGISTRY.create_processor(arguments.create_model_config())

    def process(self, prompt: Prompt) -> Any:
        """Returns what the processor makes of a prompt."""
        ids = self.checkpoint.processor.tokenizer(prompt.text)["input_ids"]
        items = self.processor.info.parse_mm_data({"image": list(prompt.images)})
        kwargs = {} if prompt.keep is None else {REQUEST_KEY: prompt.keep}
        inputs = ProcessorInputs(ids, items, hf_processor_mm_kwargs=kwargs)
        return self.processor.apply(inputs, TimingContext())

    def pruned(self, prompt: Prompt) -> tuple[list[int], torch.Tensor, list[torch.Tensor]]:
        """Returns ids and positions [3, L] of a pruned prompt, and each image's kept rows.

        All are transformers'.
        """
        inputs = self.checkpoint.inputs(prompt)
        keep = KEEP if prompt.keep is None else prompt.keep
        positions = self.family.default_positions(self.checkpoint.model, dict(inputs), 0)
        positions = positions.reshape(-1, positions.shape[-1])[-3:].expand(3, -1)
        pruner = gprune.GPrune(keep)
        with torch.inference_mode(), pruner(self.checkpoint.model) as pruned:
            self.checkpoint.model(**inputs)
        stays = pruned.kept_mask[0]
        visual = inputs["input_ids"][0] == self.family.token_id(self.checkpoint.model, "image")
        plans = [plan_of(item) for item in self.process(prompt)["mm_kwargs"]["image"]]
        kept = stays[visual].split([plan.tokens for plan in plans])
        rows = [one.nonzero().squeeze(1) for one in kept]
        return inputs["input_ids"][0][stays].tolist(), positions[:, stays], rows


def plan_of(item: Any) -> ImagePlan:
    return ImagePlan.from_tensor(item[PLAN_FIELD].data)


@pytest.fixture(scope="module", params=list(FAMILIES))
def frontend(request: Any, tmp_path_factory: Any) -> Frontend:
    return Frontend(request.param, tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize("keep", [None, 0.1, 3, 1.0])
def test_placeholders_and_positions_are_those_of_transformers(
    frontend: Frontend, keep: Any
) -> None:
    for prompt in frontend.prompts:
        asked = replace(prompt, keep=keep)
        processed = frontend.process(asked)
        ids, positions, rows = frontend.pruned(asked)
        assert list(processed["prompt_token_ids"]) == ids
        items, places = processed["mm_kwargs"]["image"], processed["mm_placeholders"]["image"]
        assert [place.get_num_embeds() for place in places] == [len(one) for one in rows]
        features = [
            SimpleNamespace(data=item, mm_position=place)
            for item, place in zip(items, places, strict=True)
        ]
        model = SimpleNamespace(family=frontend.family)
        planned, offset = models.PruningModel.get_mrope_input_positions(model, ids, features)
        filled = fill_positions(planned, torch.cat(rows), 0)[:, : len(ids)]
        assert torch.equal(filled, positions)
        # The first generated token continues after the last of the unpruned prompt.
        assert len(ids) + offset > int(positions.max())


def test_hashes_depend_on_picture_and_budget(frontend: Frontend) -> None:
    prompt = frontend.prompts[0]
    other = replace(prompt, images=frontend.prompts[1].images)
    asked = [prompt, replace(prompt, keep=0.1), replace(prompt, keep=1.0), other]
    hashes = [tuple(frontend.process(one)["mm_hashes"]["image"]) for one in asked]
    assert len(set(hashes)) == len(hashes)
    again = replace(prompt, keep=KEEP)  # the server's budget, sent with the request
    assert tuple(frontend.process(again)["mm_hashes"]["image"]) == hashes[0]


@pytest.mark.parametrize("keep", [0, 1.5, "half", {"pixel": 0.5}, "adaptive"])
def test_invalid_budgets_are_refused(frontend: Frontend, keep: Any) -> None:
    with pytest.raises(ValueError, match="gprune_keep in mm_processor_kwargs: keep"):
        frontend.process(replace(frontend.prompts[0], keep=keep))
