"""Selection and prefill never synchronise an accelerator or mix it with the host."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from gprune import DART, CoverBudget, GPrune, VisualTokens, VLMPruner, make, methods
from gprune.device import pending_checks
from gprune.graph import MAX_DENSE_TOKENS
from gprune.hf import choice, rewrite
from gprune.proof.batches import make_batch
from gprune.proof.models import SPECIMENS
from gprune.pruners.base import Pruner

GROUPS = [name for name in methods() if make(name, keep=0.3).scope == "group"]
# Methods that take another path where a matrix of all pairs would be too large.
TILED = [
    *("gprune", "graph_cover", "weighted_cover", "weighted_gprune", "divprune", "todre"),
    *("tome", "cdpruner", "d2pruner", "visionzip", "prumerge", "holov"),
]
# These need a value on the host and synchronise: the text's length once per row, the parts of the
# prompt inside the language model, and the values that decide how a video's budget is divided.
TEXT = ["trim", "cdpruner", "text_cover"]
DECODER = [name for name in methods() if make(name, keep=0.3).scope == "decoder"]
VIDEOS = [name for name in methods() if make(name, keep=0.3).scope == "video"]
# Families whose own prefill reads no value.
QUIET = [
    *("llava", "llava_siglip", "internvl", "vipllava"),
    *("paligemma", "gemma3", "aya_vision", "cohere2_vision"),
]
SYNCHRONISES = (DataDependentOutputException, DynamicOutputShapeException)


def group(device, n: int, dtype: torch.dtype = torch.float32, d: int = 64, **fields):
    """Returns tokens with every signal that a method may read."""
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
        reduction = pruner.reduce(tokens)
        kept = reduction.positions(len(tokens))
        features = reduction.features(tokens.features)
    assert kept.shape == (k,)
    assert features.shape == (k, tokens.features.shape[1])
    assert kept.device == features.device == tokens.features.device


def test_reading_a_value_raises(device):
    x = device.empty(4)
    with device.mode:
        for read in (lambda: bool(x.sum() > 0), lambda: x[x > 0], x.tolist, x.nonzero):
            with pytest.raises(SYNCHRONISES):
                read()
        with pytest.raises(RuntimeError, match="devices"):
            x + torch.empty(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", GROUPS)
def test_selection(device, name, dtype):
    assert_kept(make(name, keep=0.25), device, group(device, 576, dtype), 144)


@pytest.mark.parametrize("n", [576, MAX_DENSE_TOKENS + 64])
def test_dart_before_the_language_model(device, n):
    assert_kept(DART(40, layer=0), device, group(device, n), 40)


def test_passes_of_vlm_pruner_read_values(device):
    with device.mode, pytest.raises(SYNCHRONISES):
        VLMPruner(0.25, layer=0).select(group(device, 576))


def test_selection_of_protected_tokens_reads_their_count(device):
    flags = device.empty(576, dtype=torch.bool)
    with device.mode, pytest.raises(SYNCHRONISES):
        GPrune(0.25).select(group(device, 576, protected=flags))


@pytest.mark.parametrize("name", TILED)
def test_selection_of_more_tokens_than_a_matrix_holds(device, name):
    assert_kept(make(name, keep=40), device, group(device, MAX_DENSE_TOKENS + 64, d=16), 40)


@pytest.mark.parametrize("name", VIDEOS)
def test_budgets_of_frames_synchronise(device, name):
    frames = [group(device, 96, kind="frame") for _ in range(4)]
    with device.mode, pytest.raises(SYNCHRONISES):
        make(name, keep=0.25).reduce_groups(frames)


def test_budgets_that_read_features_synchronise(device):
    groups = [group(device, 96) for _ in range(3)]
    with device.mode, pytest.raises(SYNCHRONISES):
        GPrune(CoverBudget(0.3, 0.2)).reduce_groups(groups)


@pytest.mark.parametrize("name", QUIET)
def test_prefill(device, name):
    assert_prefill(device, name, GPrune(keep=0.25), [1])


@pytest.mark.parametrize("name", [name for name in GROUPS if name not in TEXT])
def test_prefill_with_every_method(device, name):
    assert_prefill(device, "llava", make(name, keep=0.25), [1])


@pytest.mark.parametrize("name", [*TEXT, *DECODER])
def test_prefill_with_methods_that_synchronise(device, name):
    with pytest.raises(SYNCHRONISES):
        assert_prefill(device, "llava", make(name, keep=0.25), [1])


@pytest.mark.parametrize("images", [[2, 1], [1, 0, 1]])
@pytest.mark.parametrize("name", QUIET)
def test_a_batch_synchronises_once(device, monkeypatch, name, images):
    """The length that the rows are shortened to is a shape."""
    specimen, pruner = SPECIMENS[name], GPrune(keep=0.25)
    model = specimen.build()
    with torch.no_grad(), pruner(model):
        length = model(**make_batch(specimen, model, images).inputs).logits.shape[1]
    reads = []
    monkeypatch.setattr(torch.Tensor, "__int__", lambda value: reads.append(value) or length)
    for module in (choice, rewrite):
        monkeypatch.setattr(module, "raise_pending", lambda wait=True: None)
    assert_prefill(device, name, pruner, images)
    assert len(reads) == 1


@pytest.mark.parametrize("pruned_before", [True, False])
@pytest.mark.parametrize("name", [name for name in QUIET if SPECIMENS[name].turns])
def test_a_decoding_step_and_an_image_in_a_later_turn(device, name, pruned_before):
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
                pending_checks().clear()
    assert cache.get_seq_length() == ids.shape[1] > cache.get_query_offset()
    assert output.logits.device == mask.device


def assert_prefill(device, name: str, pruner: Pruner, images: list[int]) -> None:
    """Checks that a prefill reads no value and is shortened, on the device."""
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
                pending_checks().clear()  # leaving the block would wait for them
    assert short.logits.shape[1] < full.logits.shape[1]
    assert short.logits.device == full.logits.device
    assert pruned.kept_mask.shape == inputs["input_ids"].shape
