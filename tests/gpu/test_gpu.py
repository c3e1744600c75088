"""What only a GPU can show: that it selects and answers as the CPU does, and does not stall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gprune
from gprune import GPrune, VisualTokens, checks, make, methods
from gprune.ask.answers import answer, load_model
from gprune.evaluation.bench import clustered
from gprune.tinyvlm.scenes import make_scene
from tests.hf.batches import make_batch
from tests.hf.models import SPECIMENS

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
    """Tokens with everything that a method may read."""
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
    x = clustered(576, 256).to(dtype)
    pruner = make(name, keep=0.36)
    assert torch.equal(pruner.select(group(x.to(device))).cpu(), pruner.select(group(x)))


@pytest.mark.parametrize("name", GROUPS)
def test_selects_without_a_stall(cuda, name):
    tokens, pruner = group(clustered(576, 256).to(cuda)), make(name, keep=0.36)
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
    for [(expected, _)], [(kept, _)] in zip(plain, ours, strict=True):
        assert torch.equal(kept, expected)


def group_of(count: int, device: torch.device, dtype: torch.dtype) -> VisualTokens:
    return VisualTokens(clustered(count, 1024, seed=count).to(device, dtype))


@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, method) for name in FAMILIES for method in ("gprune", "graph_cover")),
        *(("llava", method) for method in ("weighted_cover", "visionzip", "tome", "fastv")),
    ],
)
def test_prefill_as_on_the_cpu(device, name, method, images):
    """Where the CPU was compared with a model at full length whose dropped tokens are masked."""
    specimen, pruner = SPECIMENS[name], make(method, keep=0.3)
    model = specimen.build()
    inputs = make_batch(specimen, model, images).inputs
    results = []
    for place in (torch.device("cpu"), device):
        with torch.no_grad(), pruner(model.to(place)) as pruned:
            logits = model(**moved(inputs, place)).logits
        results.append((logits.cpu(), pruned.kept_mask.cpu()))
    (expected, mask), (logits, other) = results
    assert torch.equal(other, mask)
    assert (logits - expected).abs().max() < 1e-4


def moved(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in inputs.items()
    }


def test_a_prefill_does_not_stall(cuda, recwarn):
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
    for place in ("cpu", str(device)):
        model, processor = load_model("tinyvlm", place, "float32")
        told = []
        for index in range(5):
            scene = make_scene("test", 0, index)
            picture = scene.draw()
            for question in scene.ask()[:6]:
                outcome = answer(
                    model, processor, make(method, keep=0.36), [picture], question.question
                )
                told.append((outcome.answer_full, outcome.answer_pruned))
        answers.append(told)
    assert answers[0] == answers[1]


def test_a_long_video_stays_within_two_gigabytes(cuda):
    tokens = VisualTokens(clustered(32768, 1024).to(cuda))
    torch.cuda.reset_peak_memory_stats(cuda)
    before = torch.cuda.memory_allocated(cuda)
    GPrune(0.25).select(tokens)
    assert torch.cuda.max_memory_allocated(cuda) - before < 2 * 2**30


def test_bad_values_are_reported_at_the_latest_when_asked(device):
    x = clustered(64, 16)
    x[3, 3] = torch.nan

    def select() -> None:
        GPrune(0.5).select(VisualTokens(x.to(device)))
        checks.raise_pending()

    with pytest.raises(ValueError, match="NaN or infinite"):
        select()
