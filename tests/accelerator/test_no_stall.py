"""Nothing that gprune does makes the host wait for an accelerator, or mixes the two."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from gprune import CoverBudget, GPrune, VisualTokens, checks, make, methods
from gprune.graph import WHOLE
from gprune.pruners.base import Pruner
from tests.hf.batches import make_batch
from tests.hf.models import SPECIMENS

GROUPS = [name for name in methods() if make(name, keep=0.3).scope == "group"]
# Methods that do otherwise where a matrix of all pairs would be too large.
LONG = [
    *("gprune", "graph_cover", "weighted_cover", "weighted_gprune", "divprune", "todre", "dart"),
    *("tome", "cdpruner", "d2pruner", "vlm_pruner", "visionzip", "prumerge", "holov"),
]
# Those that have to wait, since how many tokens there are has to be known on the host: the text's
# length is read once a row, inside the language model the prompt's parts are, and how a video's
# budget is dealt out depends on its values.
TEXT = ["trim", "cdpruner", "text_cover"]
INSIDE = [name for name in methods() if make(name, keep=0.3).scope == "decoder"]
VIDEOS = [name for name in methods() if make(name, keep=0.3).scope == "video"]
# Families whose own prefill asks for no value.
QUIET = [
    *("llava", "llava_siglip", "internvl", "vipllava"),
    *("paligemma", "gemma3", "aya_vision", "cohere2_vision"),
]
WAITS = (DataDependentOutputException, DynamicOutputShapeException)


def group(device, n: int, dtype: torch.dtype = torch.float32, d: int = 64, **fields):
    """Tokens with everything that a method may read."""
    return VisualTokens(
        device.empty(n, d, dtype=dtype),
        **{
            "grid": (n // 24, 24),
            "attention": device.empty(n),
            "object_attention": device.empty(n),
            "keys": device.empty(n, d, dtype=dtype),
            "text": device.empty(8, d, dtype=dtype),
            **fields,
        },
    )


def assert_kept(pruner: Pruner, device, tokens: VisualTokens, k: int) -> None:
    with device.mode:
        kept, features = pruner.reduce(tokens)
    assert kept.shape == (k,)
    assert features.shape == (k, tokens.features.shape[1])
    assert kept.device == features.device == tokens.features.device


def test_a_value_that_is_asked_for_is_noticed(device):
    x = device.empty(4)
    with device.mode:
        for ask in (lambda: bool(x.sum() > 0), lambda: x[x > 0], x.tolist, x.nonzero):
            with pytest.raises(WAITS):
                ask()
        with pytest.raises(RuntimeError, match="devices"):
            x + torch.empty(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", GROUPS)
def test_selection(device, name, dtype):
    assert_kept(make(name, keep=0.25), device, group(device, 576, dtype), 144)


def test_selection_of_protected_tokens_waits_for_how_many_they_are(device):
    flags = device.empty(576, dtype=torch.bool)
    with device.mode, pytest.raises(WAITS):
        GPrune(0.25).select(group(device, 576, protected=flags))


@pytest.mark.parametrize("name", LONG)
def test_selection_among_more_tokens_than_a_matrix_holds(device, name):
    assert_kept(make(name, keep=40), device, group(device, WHOLE + 64, d=16), 40)


@pytest.mark.parametrize("name", VIDEOS)
def test_budgets_of_frames_wait(device, name):
    frames = [group(device, 96, kind="frame") for _ in range(4)]
    with device.mode, pytest.raises(WAITS):
        make(name, keep=0.25).reduce_groups(frames)


def test_budgets_that_look_at_the_features_wait(device):
    groups = [group(device, 96) for _ in range(3)]
    with device.mode, pytest.raises(WAITS):
        GPrune(CoverBudget(0.3, 0.2)).reduce_groups(groups)


@pytest.mark.parametrize("name", QUIET)
def test_prefill(device, name):
    assert_prefill(device, name, GPrune(keep=0.25), [1])


@pytest.mark.parametrize("name", [name for name in GROUPS if name not in TEXT])
def test_prefill_with_every_method(device, name):
    assert_prefill(device, "llava", make(name, keep=0.25), [1])


@pytest.mark.parametrize("name", [*TEXT, *INSIDE])
def test_prefill_with_methods_that_wait(device, name):
    with pytest.raises(WAITS):
        assert_prefill(device, "llava", make(name, keep=0.25), [1])


@pytest.mark.parametrize("images", [[2, 1], [1, 0, 1]])
@pytest.mark.parametrize("name", QUIET)
def test_a_batch_waits_once(device, monkeypatch, name, images):
    """For the length that the rows are shortened to, which is a shape."""
    specimen, pruner = SPECIMENS[name], GPrune(keep=0.25)
    model = specimen.build()
    with torch.no_grad(), pruner(model):
        length = model(**make_batch(specimen, model, images).inputs).logits.shape[1]
    asked = []
    monkeypatch.setattr(torch.Tensor, "__int__", lambda value: asked.append(value) or length)
    monkeypatch.setattr(checks, "raise_pending", lambda wait=True: None)
    assert_prefill(device, name, pruner, images)
    assert len(asked) == 1


@pytest.mark.parametrize("pruned_before", [True, False])
@pytest.mark.parametrize("name", [name for name in QUIET if SPECIMENS[name].turns])
def test_a_step_and_a_picture_in_a_later_turn(device, name, pruned_before):
    specimen = SPECIMENS[name]
    model = specimen.build()
    first, second = (make_batch(specimen, model, [1], seed=seed) for seed in (1, 2))
    device.model(model)
    ids = torch.cat([first.inputs["input_ids"], torch.tensor([[7]])], 1)
    ids = torch.cat([ids, second.inputs["input_ids"]], 1)
    mask = device.tensor(torch.ones_like(ids))
    types = specimen.token_types(ids) if specimen.history else {}
    start = first.inputs["input_ids"].shape[1]
    calls = [
        {key: device.tensor(value) for key, value in batch.inputs.items()}
        for batch in (first, second)
    ]
    calls.insert(1, {"input_ids": device.tensor(ids[:, start : start + 1])})
    calls[1]["attention_mask"] = mask[:, : start + 1]
    calls[2] |= {"attention_mask": mask, **{k: device.tensor(v) for k, v in types.items()}}
    with device.mode, torch.no_grad():
        cache = None if pruned_before else model(**calls[0]).past_key_values
        with GPrune(keep=0.25)(model):
            try:
                for call in calls if pruned_before else calls[1:]:
                    output = model(**call, past_key_values=cache)
                    cache = output.past_key_values
            finally:
                checks._queue().clear()
    assert cache.get_seq_length() == ids.shape[1] > cache.get_query_offset()
    assert output.logits.device == mask.device


def assert_prefill(device, name: str, pruner: Pruner, images: list[int]) -> None:
    """A prefill asks for nothing and is shortened, on the device."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch = make_batch(specimen, model, images)
    device.model(model)
    inputs = {
        key: device.tensor(value) if isinstance(value, torch.Tensor) else value
        for key, value in batch.inputs.items()
    }
    with device.mode, torch.no_grad():
        full = model(**inputs)
        with pruner(model) as pruned:
            try:
                short = model(**inputs)
            finally:
                checks._queue().clear()  # which the end of the block waits for
    assert short.logits.shape[1] < full.logits.shape[1]
    assert short.logits.device == full.logits.device
    assert pruned.kept_mask.shape == inputs["input_ids"].shape
