"""Stores what every method keeps and what every family answers, and compares with what was stored.

For changes that must change nothing:

    python -m tests.golden store out/golden.json
    python -m tests.golden compare out/golden.json

Numbers are compared exactly, so both runs have to be on one machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gprune
from gprune import CoverBudget, GPrune, GraphCover, ThumbnailGuided, VisualTokens
from gprune.ask.prompts import prepare
from gprune.proof.batches import add_video, make_batch
from gprune.proof.mllama import mllama
from gprune.proof.models import EXPERIMENTAL, SPECIMENS
from gprune.pruners import METHODS
from gprune.tinyvlm import load, make_scene
from tests.pruners.signals import with_signals

KEEPS = (1.0, 0.5, 0.36, 0.1, 7)
Record = tuple[str, Any]


def clustered(n: int, d: int, seed: int) -> Tensor:
    """Noisy copies of n / 8 directions, [n, d]."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, n // 8), d, generator=generator)
    which = torch.randint(0, len(centres), (n,), generator=generator)
    return centres[which] + 0.5 * torch.randn(n, d, generator=generator)


def reduced(pruner: Any, groups: list[VisualTokens]) -> list[Any]:
    """Kept indices and features of each group."""
    found = []
    for tokens, reduction in zip(groups, pruner.reduce_groups(groups), strict=True):
        features = reduction.features(tokens.features)
        found.append([reduction.kept.tolist(), features.float().tolist()])
    return found


def selections() -> Iterator[Record]:
    """Every method that chooses from features and signals, on fixed groups."""
    cases: dict[str, VisualTokens] = {
        "clusters": with_signals(clustered(64, 16, 0), (8, 8), 1),
        "noise": with_signals(clustered(60, 12, 2).bfloat16(), (6, 10), 3),
        "no grid": with_signals(clustered(33, 24, 4), None, 5),
    }
    copies = clustered(36, 16, 6)
    copies[::3] = copies[0]
    copies[5] = 0
    cases["copies"] = with_signals(copies, (6, 6), 7)
    protected = torch.zeros(64, dtype=torch.bool)
    protected[[3, 40]] = True
    cases["protected"] = VisualTokens(
        **{
            name: getattr(cases["clusters"], name)
            for name in ("features", "grid", "attention", "object_attention", "keys", "text")
        },
        protected=protected,
    )
    for name, method in METHODS.items():
        if method.scope == "group":
            for case, tokens in cases.items():
                for keep in KEEPS:
                    yield f"select {name} {case} {keep}", reduced(method(keep), [tokens])
        elif method.scope == "video":
            frames = [
                VisualTokens(clustered(36, 16, seed // 2), grid=(6, 6), kind="frame")
                for seed in range(4)
            ]
            for keep in KEEPS:
                yield f"select {name} {keep}", reduced(method(keep), frames)
    canvas = [
        VisualTokens(clustered(36, 16, 8), grid=(6, 6), kind="thumbnail"),
        VisualTokens(clustered(120, 16, 9), grid=(10, 12), kind="canvas"),
    ]
    for method in ("gprune", "graph_cover", "tome", "weighted_cover"):
        pruner = gprune.make(method, keep=ThumbnailGuided(0.25))
        yield f"thumbnail {method}", reduced(pruner, canvas)
    groups = [cases["clusters"], cases["no grid"], cases["copies"]]
    budget = CoverBudget.calibrated(0.3, groups)
    yield "cover budget", [budget.radius, reduced(GraphCover(keep=budget), groups)]
    large = VisualTokens(clustered(900, 32, 10), grid=(30, 30))
    for name, method in METHODS.items():
        if method.scope == "group" and not method.signals:
            yield f"select {name} large", method(0.2).select(large).tolist()


def kept_of(pruned: Any) -> Any:
    """What a model under pruning says of its latest prefill."""
    groups = [
        [[g.indices.tolist(), g.size, g.grid, g.kind, g.image, g.modality] for g in row]
        for row in pruned.kept
    ]
    return [pruned.kept_mask.tolist(), groups, pruned.visual_by_layer]


@torch.inference_mode()
def answers() -> Iterator[Record]:
    """Every method on scenes of both tiny VLMs."""
    for model_name in ("tinyvlm", "tinyvlm-siglip"):
        model, processor = load(model_name)
        for name, method in METHODS.items():
            if method.scope == "video":
                continue
            for keep in (0.36, 0.1):
                for index in range(3):
                    scene = make_scene("test", 0, index)
                    question = scene.ask()[index].question
                    inputs = prepare(model, processor, [([scene.draw()], question)])
                    key = f"tiny {model_name} {name} {keep} {index}"
                    try:
                        with method(keep)(model) as pruned:
                            said = model.generate(**inputs, do_sample=False)
                            yield key, [said.tolist(), kept_of(pruned)]
                    except (ValueError, TypeError) as error:
                        yield key, type(error).__name__


@torch.no_grad()
def families() -> Iterator[Record]:
    """Every family's tiny random model, pruned by methods of each kind."""
    methods = (
        "gprune",
        "tome",
        "weighted_cover",
        "fastv",
        "sparsevlm",
        "downsampling",
        "visionzip",
    )
    for name, specimen in {**SPECIMENS, **EXPERIMENTAL}.items():
        model = specimen.build()
        for method in methods:
            for images in ([1], [2, 0, 1]):
                if name == "glm4v" and len(images) > 1:
                    images = [1, 0, 1]
                key = f"family {name} {method} {images}"
                try:
                    batch = make_batch(specimen, model, images, seed=3)
                    with gprune.make(method, keep=0.3)(model) as pruned:
                        output = model.generate(
                            **batch.inputs,
                            do_sample=False,
                            max_new_tokens=4,
                            return_dict_in_generate=True,
                            output_logits=True,
                        )
                        logits = [step.tolist() for step in output.logits]
                        yield key, [output.sequences.tolist(), logits, kept_of(pruned)]
                except (ValueError, TypeError) as error:
                    yield key, type(error).__name__
        if specimen.video is not None:
            batch, _ = add_video(specimen, model, make_batch(specimen, model, [1], seed=3))
            for method in ("gprune", "weighted_cover", "fastv"):
                key = f"video {name} {method}"
                try:
                    with gprune.make(method, keep=0.3)(model) as pruned:
                        said = model.generate(**batch.inputs, do_sample=False, max_new_tokens=4)
                        yield key, [said.tolist(), kept_of(pruned)]
                except (ValueError, TypeError, StopIteration) as error:
                    yield key, type(error).__name__
    model = mllama()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 1, 4, 3, 32, 32, generator=generator)
    ids = torch.tensor([[1, 3, 10, 11, 12]])
    mask = torch.ones(1, 5, 1, 4, dtype=torch.long)
    with GPrune(0.3)(model) as pruned:
        said = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            aspect_ratio_ids=torch.tensor([[4]]),
            aspect_ratio_mask=torch.ones(1, 1, 4, dtype=torch.long),
            cross_attention_mask=mask,
            do_sample=False,
            max_new_tokens=4,
        )
        yield "family mllama", [said.tolist(), kept_of(pruned)]


def main(action: str, path: str) -> None:
    """Stores or compares."""
    found = {}
    for part in (selections, answers, families):
        found |= dict(part())
        print(f"{part.__name__}: {len(found)} records so far", flush=True)
    found = json.loads(json.dumps(found))
    if action == "store":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(found))
        return
    stored = json.loads(Path(path).read_text())
    different = sorted(
        key for key in stored.keys() | found.keys() if stored.get(key) != found.get(key)
    )
    if different:
        sys.exit(f"{len(different)} of {len(stored)} records differ: {', '.join(different[:20])}")
    print(f"all {len(stored)} records are identical")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("store", "compare"):
        sys.exit("usage: python -m tests.golden store|compare FILE")
    main(*sys.argv[1:])
