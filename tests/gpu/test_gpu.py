"""What only a GPU can show: same selections and answers as on the CPU, and no synchronisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gprune
from gprune import GPrune, VisualTokens, make, methods
from gprune.ask.answers import answer
from gprune.ask.loading import load_model
from gprune.device import raise_pending
from gprune.evaluation.bench import clustered_features
from gprune.proof.batches import make_batch
from gprune.proof.models import SPECIMENS
from gprune.tinyvlm.scenes import make_scene

GROUPS = [name for name in methods() if make(name, keep=0.3).scope == "group"]
FAMILIES = [
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "gemma3",
]


def group(x: torch.Tensor) -> VisualTokens:
    """Returns tokens with every signal that a method may read."""
    return VisualTokens(
        x,
        grid=(24, len(x) // 24),
        attention=x[:, 0].float().softmax(0),
        object_attention=x[:, -1].float().softmax(0),
        keys=x,
        text=x[:8],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", GROUPS)
def test_selects_as_on_the_cpu(device, name, dtype):
    x = clustered_features(576, 256).to(dtype)
    pruner = make(name, keep=0.36)
    assert torch.equal(pruner.select(group(x.to(device))).cpu(), pruner.select(group(x)))


@pytest.mark.parametrize("name", GROUPS)
def test_selects_without_synchronising(cuda, name):
    tokens, pruner = group(clustered_features(576, 256).to(cuda)), make(name, keep=0.36)
    pruner.select(tokens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pruner.select(tokens)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("counts", [[31], [576] * 4, [64, 1000, 576], [2880]])
def test_kernels_select_as_the_torch_form(cuda, counts, dtype):
    images = [[group_of(count, cuda, dtype)] for count in counts]
    plain = GPrune(0.36).reduce_images(images)
    ours = GPrune(0.36, backend="triton").reduce_images(images)
    for [expected], [reduction] in zip(plain, ours, strict=True):
        assert torch.equal(reduction.kept, expected.kept)


def group_of(count: int, device: torch.device, dtype: torch.dtype) -> VisualTokens:
    return VisualTokens(clustered_features(count, 1024, seed=count).to(device, dtype))


@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, method) for name in FAMILIES for method in ("gprune", "graph_cover")),
        *(("llava", method) for method in ("weighted_cover", "visionzip", "tome", "fastv")),
    ],
)
def test_prefill_as_on_the_cpu(device, name, method, images):
    """The CPU itself is compared with a masked full-length model in tests/hf."""
    specimen, pruner = SPECIMENS[name], make(method, keep=0.3)
    model = specimen.build()
    inputs = make_batch(specimen, model, images).inputs
    results = []
    for target in (torch.device("cpu"), device):
        with torch.no_grad(), pruner(model.to(target)) as pruned:
            logits = model(**moved(inputs, target)).logits
        results.append((logits.cpu(), pruned.kept_mask.cpu()))
    (expected, mask), (logits, other) = results
    assert torch.equal(other, mask)
    assert (logits - expected).abs().max() < 1e-4


def moved(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in inputs.items()
    }


def test_a_prefill_does_not_synchronise(cuda, recwarn):
    specimen, pruner = SPECIMENS["llava"], GPrune(keep=0.3)
    model = specimen.build()
    inputs = moved(make_batch(specimen, model, [1]).inputs, cuda)
    model.to(cuda)
    with torch.no_grad(), pruner(model):
        model(**inputs)
        recwarn.clear()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            model(**inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    ours = str(Path(gprune.__file__).parent)
    assert not [warning for warning in recwarn if warning.filename.startswith(ours)]


@pytest.mark.parametrize("method", ["gprune", "graph_cover", "weighted_cover", "fastv"])
def test_the_tiny_model_answers_as_on_the_cpu(device, method):
    answers = []
    for target in ("cpu", str(device)):
        model, processor = load_model("tinyvlm", target, "float32")
        own = []
        for index in range(5):
            scene = make_scene("test", 0, index)
            picture = scene.draw()
            for question in scene.ask()[:6]:
                outcome = answer(
                    model, processor, make(method, keep=0.36), [picture], question.question
                )
                own.append((outcome.answer_full, outcome.answer_pruned))
        answers.append(own)
    assert answers[0] == answers[1]


def test_a_long_video_stays_within_two_gigabytes(cuda):
    tokens = VisualTokens(clustered_features(32768, 1024).to(cuda))
    torch.cuda.reset_peak_memory_stats(cuda)
    before = torch.cuda.memory_allocated(cuda)
    GPrune(0.25).select(tokens)
    assert torch.cuda.max_memory_allocated(cuda) - before < 2 * 2**30


def test_bad_values_are_reported_by_raise_pending_at_the_latest(device):
    x = clustered_features(64, 16)
    x[3, 3] = torch.nan

    def select() -> None:
        GPrune(0.5).select(VisualTokens(x.to(device)))
        raise_pending()

    with pytest.raises(ValueError, match="NaN or infinite"):
        select()
