"""Asks the methods inside the language model."""

from __future__ import annotations

import torch

from gprune import FastV, PyramidDrop, SparseVLM
from gprune.pruners.decoder import DecoderPruner, DecoderTokens
from tests.parity.vectors_io import Outcome, Vector


def reduced(pruner: DecoderPruner, tokens: DecoderTokens, stage: int, stages: int) -> list[int]:
    """Returns what a method keeps at a stage."""
    reduction = pruner.at_stage(stage, stages, tokens)
    return list(range(len(tokens))) if reduction is None else reduction.kept.tolist()


def fastv(vector: Vector) -> Outcome:
    start, n = vector.params["image_start"], vector.params["image_tokens"]
    attention = vector.tensors[vector.params["attention"]].mean(0, keepdim=True)
    tokens = DecoderTokens(torch.zeros(n, 1), attention[:, start : start + n], n)
    assert isinstance(vector.k, int)
    kept = reduced(FastV(vector.k), tokens, 0, 1)
    text = [*range(start), *range(start + n, attention.shape[1])]
    return Outcome(kept, facts={"sequence": sorted([*text, *(start + i for i in kept)])})


def pyramiddrop(vector: Vector) -> Outcome:
    shares, stage = vector.params["ratios"], vector.params["stage"]
    attention = vector.tensors[vector.params["attention"]].mean(0, keepdim=True)
    total = vector.params["image_tokens"]
    tokens = DecoderTokens(torch.zeros(attention.shape[1], 1), attention, total)
    pruner = PyramidDrop(shares[-1], shares=tuple(shares[:-1]))
    assert pruner.planned(stage, len(shares), total) == vector.k
    return Outcome(reduced(pruner, tokens, stage, len(shares)))


def sparsevlm(vector: Vector) -> Outcome:
    params, tensors = vector.params, vector.tensors
    if vector.variant == "raters":
        visual, text = tensors[params["visual"]], tensors[params["text"]]
        return Outcome(SparseVLM(192).raters(visual, text).tolist())
    hidden, attention = tensors[params["hidden"]], tensors[params["attention"]].mean(0)
    stage = int(vector.variant.split()[-1])
    tokens = DecoderTokens(hidden, attention, 576)
    reduction = SparseVLM(params["retain"]).at_stage(stage, 3, tokens)
    assert reduction is not None
    assert len(reduction) == vector.k
    return Outcome(reduction.kept.tolist(), extra=reduction.appended_features(hidden))


METHODS = {"fastv": fastv, "pyramiddrop": pyramiddrop, "sparsevlm": sparsevlm}
