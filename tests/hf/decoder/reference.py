"""Methods that prune between layers, implemented as in their papers on a full-length model."""

from __future__ import annotations

import math

import numpy as np
import torch

from gprune import FastV, PyramidDrop, SparseVLM, kept_count
from gprune.proof.models import IMAGE, VIDEO
from tests.hf.layerwise import embedded

PRUNERS = [
    FastV(0.36),
    FastV(5, layer=1),
    PyramidDrop(0.2, layers=(1, 2)),
    SparseVLM(0.3, layers=(1, 2), scale=6.0, recycle=0.6, clusters=0.3),
]


def label(value):
    return value.name if isinstance(value, FastV | PyramidDrop | SparseVLM) else None


def top(scores, k):
    """Returns the indices of the k highest, ascending, ties to the lowest."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


def peaks(points, k):
    """Computes DPC-KNN from its definition; returns centres, and the centre of each point."""
    n = len(points)
    scale = math.sqrt(points.shape[1])
    d = [[float(np.linalg.norm(a - b)) / scale for b in points] for a in points]
    density = [math.exp(-sum(x * x for x in sorted(row)[:k]) / k) for row in d]
    score = []
    for i in range(n):
        denser = [j for j in range(n) if (density[j], -j) > (density[i], -i)]
        away = min((d[i][j] for j in denser), default=max(map(max, d)))
        score.append(density[i] * away)
    centres = top(score, k)
    return centres, [
        i if i in centres else min(centres, key=lambda c: (d[i][c], c)) for i in range(n)
    ]


class Reference:
    """The methods as in their papers, on attention weights of the eager kernel."""

    def __init__(self, model, pruner, batch):
        self.pruner = pruner
        self.stages = pruner.stages(len(model.get_decoder().layers))
        ids = batch.inputs["input_ids"]
        self.real = batch.inputs["attention_mask"].bool()
        self.length = ids.shape[1]
        embeds = embedded(model, batch)
        visual = (ids == IMAGE) | (ids == VIDEO)
        newline = getattr(model.base_model, "image_newline", None)
        inside = visual if newline is None else visual & (embeds != newline).any(-1)
        self.candidates = [row.nonzero().squeeze(1).tolist() for row in inside]
        self.remaining = [list(row) for row in self.candidates]
        self.raters = [
            self.rating_columns(*row) for row in zip(embeds, ids, visual, inside, strict=True)
        ]
        self.stage_choices = {}

    def rating_columns(self, embeds, ids, visual, inside):
        if not isinstance(self.pruner, SparseVLM) or not inside.any():
            return [self.length - 1]
        after = [c for c in range(self.length) if c > max(visual.nonzero())]
        x, y = embeds[inside].double().numpy(), embeds[after].double().numpy()
        share = np.exp(x @ y.T)
        share = (share / share.sum(1, keepdims=True)).mean(0)
        return [c for c, value in zip(after, share, strict=True) if value >= share.mean()]

    def count(self, stage, total, left, attention):
        final = kept_count(total, self.pruner.keep)
        if isinstance(self.pruner, PyramidDrop):
            return round(total * (final / total) ** ((stage + 1) / len(self.stages)))
        if isinstance(self.pruner, SparseVLM) and stage + 1 < len(self.stages):
            rank = np.linalg.matrix_rank(attention)
            return min(left, max(final, int(self.pruner.scale * rank)))
        return min(final, left)

    def choose(self, stage, row, hidden, weights):
        """Returns the columns that stay, and the clusters that are averaged."""
        left = self.remaining[row]
        attention = weights[row].mean(0)[self.raters[row]][:, left].numpy()
        scores = attention.mean(0)
        k = self.count(stage, len(self.candidates[row]), len(left), attention)
        means = 0
        if isinstance(self.pruner, SparseVLM) and k < len(left):
            share = self.pruner.clusters * self.pruner.recycle
            means = max(0, min(k - 1, math.ceil(share * (len(left) - k))))
        stay = top(scores, k - means)
        if not means:
            return [left[i] for i in stay], {}
        dropped = sorted(set(range(len(left))) - set(stay), key=lambda i: (-scores[i], i))
        recycled = sorted(dropped[: max(means, round(self.pruner.recycle * len(dropped)))])
        points = hidden[row, [left[i] for i in recycled]].double().numpy()
        centres, centre_of = peaks(points, means)
        clusters = {
            left[recycled[c]]: [
                left[r] for r, home in zip(recycled, centre_of, strict=True) if home == c
            ]
            for c in centres
        }
        return sorted([left[i] for i in stay] + list(clusters)), clusters

    def __call__(self, index, hidden, read_attention):
        hidden_columns = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        if index not in self.stages:
            return hidden_columns, hidden
        if index not in self.stage_choices:
            stage = self.stages.index(index)
            weights = read_attention(isinstance(self.pruner, PyramidDrop))
            rows = [row for row, columns in enumerate(self.candidates) if columns]
            chosen = {row: self.choose(stage, row, hidden, weights) for row in rows}
            self.stage_choices[index] = chosen, [list(columns) for columns in self.remaining]
            for row, (stay, _) in chosen.items():
                self.remaining[row] = stay
        chosen, before = self.stage_choices[index]
        hidden = hidden.clone()
        for row, (stay, clusters) in chosen.items():
            hidden_columns[row, sorted(set(before[row]) - set(stay))] = True
            means = {c: hidden[row, members].mean(0) for c, members in clusters.items()}
            for centre, mean in means.items():
                hidden[row, centre] = mean
        return hidden_columns, hidden

    def kept_mask(self):
        mask = self.real.clone()
        for row, columns in enumerate(self.candidates):
            mask[row, columns] = False
            mask[row, self.remaining[row]] = True
        return mask
