"""Prunes and generates in one process for a long time: python benchmarks/soak.py --minutes 30

Cases mix methods, budgets, greedy decoding, beam search, batches of prompts of different lengths,
prefill alone, and ``with`` blocks left by an exception. Exits with an error if memory grows, the
answer to a repeated case changes, or a hook remains.
"""

from __future__ import annotations

import gc
import itertools
import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import Progress, TimeElapsedColumn

import gprune
from gprune.ask.loading import quiet_transformers
from gprune.ask.prompts import prepare
from gprune.costs.clock import machine_name
from gprune.tinyvlm import load, make_scene

KEEPS = (0.5, 0.25, 0.1, 7)
MODES = ("greedy", "beams", "batch", "prefill", "failure")
SCENES = range(3)
# The tiny model takes no videos.
METHODS = [name for name, method in gprune.pruners.METHODS.items() if method.scope != "video"]
# Allowed growth of memory from the second quarter to the last: allocators keep some memory.
MAX_GROWTH_MB = 30.0


@dataclass(frozen=True)
class Case:
    """One call: a method, a budget, a mode and a scene."""

    method: str
    keep: float | int
    mode: str
    scene: int


def cases() -> Iterator[Case]:
    """Yields random cases in the same order on every run; every second one is a repetition."""
    combinations = list(itertools.product(METHODS, KEEPS, MODES, SCENES))
    rng = random.Random(0)
    seen: list[Case] = []
    while True:
        seen.append(Case(*rng.choice(combinations)))
        yield seen[-1]
        yield rng.choice(seen)


def perform(model: Any, processor: Any, case: Case) -> list[Any]:
    """Runs a case; returns its output and the kept tokens, which must be the same every time."""
    pruner = gprune.make(case.method, case.keep)
    scene = make_scene("test", 0, case.scene)
    questions = [item.question for item in scene.ask()[: 3 if case.mode == "batch" else 1]]
    inputs = prepare(model, processor, [([scene.draw()], question) for question in questions])
    options: dict[str, Any] = {"num_beams": 3} if case.mode == "beams" else {}
    if case.mode == "failure":
        with suppress(RuntimeError), pruner(model):
            model(**inputs, logits_to_keep=1)
            raise RuntimeError("raised on purpose inside the with block")
        return []
    with torch.inference_mode(), pruner(model) as pruned:
        if case.mode == "prefill":
            output = model(**inputs, logits_to_keep=1).logits.argmax(-1)
        else:
            output = model.generate(**inputs, do_sample=False, **options)
        kept = [group.indices.tolist() for row in pruned.kept for group in row]
    return [output.tolist(), kept]


def resident_mb() -> float:
    """Returns the resident memory of this process in MB.

    Raises:
        OSError: there is no /proc, as outside Linux.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmRSS")


def soak(model: Any, processor: Any, seconds: float) -> dict[str, Any]:
    """Runs cases for some seconds; returns counts, changed cases and 40 samples of memory."""
    first: dict[Case, list[Any]] = {}
    changed: list[Case] = []
    memory: list[float] = []
    start = time.monotonic()
    count = 0
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as progress:
        bar = progress.add_task("soaking", total=seconds)
        for case in cases():
            elapsed = time.monotonic() - start
            if elapsed >= seconds:
                break
            answer = perform(model, processor, case)
            if first.setdefault(case, answer) != answer:
                changed.append(case)
            count += 1
            if elapsed >= len(memory) * seconds / 40:
                gc.collect()
                memory.append(resident_mb())
            progress.update(bar, completed=elapsed)
    return {"cases": count, "different": len(first), "changed": changed, "memory_mb": memory}


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="Duration.")] = 30,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON.")] = None,
) -> None:
    """Run random cases, print a summary and fail if anything is not stable."""
    quiet_transformers()
    model, processor = load()
    processor.tokenizer.padding_side = "left"
    result = soak(model, processor, 60 * minutes)
    quarter = max(1, len(result["memory_mb"]) // 4)
    early, late = result["memory_mb"][quarter : 2 * quarter], result["memory_mb"][-quarter:]
    growth = sum(late) / len(late) - sum(early) / len(early)
    repeated = result["cases"] - result["different"]
    print(
        f"{result['cases']} cases, {repeated} of them repeated, {len(result['changed'])} answers "
        f"changed; memory {min(early):.0f} to {max(late):.0f} MB, {growth:+.1f} MB from the second "
        "quarter to the last"
    )
    if out is not None:
        changed = [str(case) for case in result["changed"]]
        row = {**result, "changed": changed, "minutes": minutes, "growth_mb": growth}
        out.write_text(json.dumps({"machine": machine_name(model.device), **row}, indent=2) + "\n")
    hooks = len(model._forward_pre_hooks) + len(model._forward_hooks)
    if result["changed"] or growth > MAX_GROWTH_MB or hooks:
        raise SystemExit(
            f"not stable: {result['changed'][:3]}, {growth:.1f} MB, {hooks} hooks left"
        )


if __name__ == "__main__":
    typer.run(main)
