"""Runs many cases of hostile input: python -m tests.fuzz --core 100000 --edges 10000

Every case must be answered correctly or refused with a sentence. Stops at the first case that is
not, with an error and the smallest failing case.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz import core, edges

CHECKS: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "groups": (core.selection_cases(), core.check_selection),
    "videos": (core.video_cases(), core.check_video),
    "decoder": (core.decoder_cases(), core.check_decoder),
    "rasters": (core.rasters(), core.check_raster),
    "images": (edges.image_files(), edges.check_image),
    "jsonl": (edges.jsonl_files(), edges.check_jsonl),
    "links": (edges.QUERIES, edges.check_link),
    "commands": (edges.command_lines(), edges.check_command),
    "keeps": (edges.WORDS, edges.check_keep),
    "serving": (edges.SERVING, edges.check_serving),
}
# Shares of the cases of the selection core, and of those of the edges.
CORE_SHARES = {"groups": 0.84, "videos": 0.08, "decoder": 0.06, "rasters": 0.02}
EDGE_SHARES = {"images": 0.5, "jsonl": 0.15, "links": 0.1, "commands": 0.15, "keeps": 0.03}
EDGE_SHARES["serving"] = 0.07
# Cases per Hypothesis search: a search keeps its cases in memory, so several small ones need less.
BATCH = 2000


def run(kind: str, count: int, first_seed: int) -> int:
    """Runs at least ``count`` cases of a kind; returns the number of cases run."""
    strategy, check = CHECKS[kind]
    done = 0

    def counted(case: Any) -> None:
        nonlocal done
        done += 1
        check(case)

    batch = first_seed
    while done < count:
        search = settings(
            max_examples=min(BATCH, count - done),
            deadline=None,
            database=None,
            derandomize=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        search(seed(batch)(given(strategy)(counted)))()
        batch += 1
    return done


def main(
    core_cases: Annotated[int, typer.Option("--core", help="Cases of the selection core.")] = 1000,
    edge_cases: Annotated[int, typer.Option("--edges", help="Cases of the edges.")] = 1000,
    first_seed: Annotated[int, typer.Option("--seed", help="Seed of the first batch.")] = 0,
) -> None:
    """Fuzz the selection core and the edges."""
    torch.set_num_threads(1)
    counts = {kind: round(core_cases * share) for kind, share in CORE_SHARES.items()}
    counts |= {kind: round(edge_cases * share) for kind, share in EDGE_SHARES.items()}
    for kind, count in counts.items():
        start = time.monotonic()
        done = run(kind, count, first_seed)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = time.monotonic() - start
        print(f"{kind}: {done} cases, {seconds:.0f} s, at most {memory:.0f} MiB", flush=True)


if __name__ == "__main__":
    typer.run(main)
