"""Claim: with ``keep=1.0`` no logit and no token changes by a single bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gprune.proof.results import Inapplicable, Result, Verdict, within
from gprune.proof.running import STEPS, Inputs, difference, greedy
from gprune.pruners import Pruner

NAME = "identity"

# Options of `generate`: no beam ends early, and scores are mean log-probabilities.
BEAMS = {
    "num_beams": 3,
    "num_return_sequences": 2,
    "min_new_tokens": STEPS,
    "max_new_tokens": STEPS,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
}


@torch.no_grad()
def outputs_of(model: Any, inputs: Inputs, beams: Inputs | None) -> dict[str, Tensor]:
    """Calls a model in every way that is compared, and returns what came out.

    Args:
        model: the model.
        inputs: of the batch.
        beams: of a batch for beam search, or None.
    """
    devices = [] if model.device.type == "cpu" else [model.device]
    with torch.random.fork_rng(devices):
        torch.manual_seed(1)
        cached, uncached = greedy(model, inputs), greedy(model, inputs, use_cache=False)
        outputs = {
            "forward": model(**inputs).logits,
            "forward without cache": model(**inputs, use_cache=False).logits,
            "greedy tokens": cached.tokens,
            "greedy logits": cached.logits,
            "greedy logits without cache": uncached.logits,
            "sampled tokens": model.generate(**inputs, do_sample=True, max_new_tokens=STEPS),
        }
        if beams is not None:
            outputs["beams"] = model.generate(**beams, do_sample=False, **BEAMS)
        return outputs


def identity(model: Any, pruner: Pruner, inputs: Inputs, beams: Inputs | None) -> Result:
    """Checks that a method that keeps everything changes no bit of the model's outputs.

    Args:
        model: the model.
        pruner: the method; its budget is replaced by 1.0.
        inputs: of a batch.
        beams: of a batch for beam search; None leaves it out.

    Raises:
        Inapplicable: the unpruned model itself gives other bits on a second run.
    """
    untouched = outputs_of(model, inputs, beams)
    with replace(pruner, keep=1.0)(model) as pruned:
        through = outputs_of(model, inputs, beams)
        mask = pruned.kept_mask
        kept_all = mask is not None and mask.dtype == torch.bool and bool(mask.all())
    changed = [name for name, value in untouched.items() if not torch.equal(value, through[name])]
    if not kept_all:
        return Result(NAME, Verdict.FAILED, "keep=1.0 dropped positions")
    if changed:
        again = outputs_of(model, inputs, beams)
        if not all(torch.equal(again[name], untouched[name]) for name in changed):
            raise Inapplicable("the unpruned model itself gives other bits when it runs twice")
    largest = max(difference(value, through[name]) for name, value in untouched.items())
    detail = f"keep=1.0 gives the same bits: {', '.join(untouched)}"
    if changed:
        detail = f"keep=1.0 changes {', '.join(changed)}"
        largest = max(largest, torch.finfo(torch.float32).tiny)
    return within(NAME, largest, 0.0, detail)
