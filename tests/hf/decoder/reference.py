"""Methods that prune between layers, on a full-length model that hides what they drop."""

from __future__ import annotations

import math

import numpy as np
import torch

from gprune import DART, FastV, PyramidDrop, SparseVLM, VLMPruner, kept_count
from gprune.layouts import family_of
from gprune.proof.models import IMAGE, VIDEO
from gprune.pruners.decoder import DecoderPruner, DecoderTokens
from tests.hf.decoder.toys import AppendsAndMerges
from tests.hf.layerwise import Change, embedded

PRUNERS = [
    FastV(0.36),
    FastV(5, layer=1),
    PyramidDrop(0.2, layers=(1, 2)),
    SparseVLM(0.3, layers=(0, 1), recycle=0.6, clusters=0.3),
    SparseVLM(0.3, layers=(0, 1), recycle=0.6, clusters=0.3, form="paper", scale=6.0),
    DART(0.4, pivots=2, text_pivots=2),
    VLMPruner(0.4, layer=1, pivots=2),
    AppendsAndMerges(0.4),
]


def label(value):
    """Returns a name of a method and its settings for pytest."""
    if not isinstance(value, DecoderPruner):
        return None
    return f"{value.name}-paper" if getattr(value, "form", "") == "paper" else value.name


def top(scores, k):
    """Returns the indices of the k highest, ascending, ties to the lowest."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


def peaks(points, k):
    """Computes DPC-KNN from its definition; returns the members of each cluster."""
    n = len(points)
    scale = math.sqrt(points.shape[1])
    d = [[float(np.linalg.norm(a - b)) / scale for b in points] for a in points]
    density = [math.exp(-sum(x * x for x in sorted(row)[:k]) / k) for row in d]
    score = []
    for i in range(n):
        denser = [j for j in range(n) if (density[j], -j) > (density[i], -i)]
        away = min((d[i][j] for j in denser), default=max(map(max, d)))
        score.append(density[i] * away)
    centres = sorted(range(n), key=lambda i: (-score[i], i))[:k]
    clusters = {c: [] for c in centres}
    for i in range(n):
        home = i if i in clusters else min(centres, key=lambda c: (d[i][c], centres.index(c)))
        clusters[home].append(i)
    return list(clusters.values())


def cluster_count(pruner, dropped):
    """Returns how many clusters SparseVLM makes of dropped tokens."""
    recycled = min(dropped, math.floor(pruner.recycle * dropped) + 1) if dropped else 0
    return min(recycled, math.floor(pruner.clusters * recycled) + 1)


def table_count(pruner, stage, stages, left, total):
    """Returns how many tokens SparseVLM's table keeps."""
    settings = [0, 64, 96, 128, 192, 576]
    column = [
        [0, 66, 238, 303, 300, 576],
        [0, 30, 48, 110, 200, 576],
        [0, 17, 26, 36, 110, 576],
    ][3 - stages + stage]
    share = pruner.keep if isinstance(pruner.keep, float) else min(1, pruner.keep / total)
    own = np.interp(share * 576, settings, column) * total / 576
    return max(1, min(math.floor(own + 1e-9), left - 1))


def group_layouts(model, batch):
    """Returns for each row, by column, a token's row, column, raster and number of its group."""
    family, ids = family_of(model), batch.inputs["input_ids"]
    calls = [("image", IMAGE, {k: v for k, v in batch.pixels.items() if k not in batch.video})]
    calls += [("video", VIDEO, batch.video)] if batch.video else []
    layouts, number = [{} for _ in ids], 0
    for modality, token, pixels in calls:
        if not (ids == token).any():
            continue
        output = getattr(model.base_model, f"get_{modality}_features")(**pixels, return_dict=True)
        features = family.features(model, output)
        lengths = [len(rows) for rows in features]
        placeholder = ids == token
        grids = family.grids(model, batch.positions(model), placeholder, lengths)
        places = placeholder.nonzero().tolist()
        for rows, grid in zip(features, grids, strict=True):
            own, places = places[: len(rows)], places[len(rows) :]
            for group in family.groups(model, modality, rows, grid):
                for i, index in enumerate(group.rows.tolist()):
                    row, column = own[index]
                    where = (-1, -1, -1, -1)
                    if group.grid is not None:
                        where = (*divmod(i, group.grid[1]), *group.grid)
                    layouts[row][column] = (*where, number)
                number += 1
    return layouts


class Reference:
    """The methods, on attention weights of the eager kernel and keys that layers cached.

    FastV, PyramidDrop and SparseVLM are implemented here once more; other methods are asked, with
    what they read computed here.

    Attributes:
        compact: whether layers number tokens without gaps.
        changes: what has happened before each layer of a stage, in the first run. Later runs, which
            have more text, repeat it.
    """

    def __init__(self, model, pruner, batch, positions=None):
        self.model, self.pruner = model, pruner
        mrope = family_of(model).multimodal_positions
        positions = positions or ("original" if mrope else pruner.default_positions)
        self.compact = positions == "compact"
        self.stages = pruner.stages(len(model.get_decoder().layers))
        ids = batch.inputs["input_ids"]
        self.real = batch.inputs["attention_mask"].bool()
        self.length = ids.shape[1]
        embeds = embedded(model, batch)
        self.visual = (ids == IMAGE) | (ids == VIDEO)
        newline = getattr(model.base_model, "image_newline", None)
        visual = self.visual
        inside = visual if newline is None else visual & (embeds != newline).any(-1)
        self.inside, self.totals = inside, inside.sum(1).tolist()
        # For each row the places of its remaining visual tokens, and the columns they came from.
        self.places = [row.nonzero().squeeze(1).tolist() for row in inside]
        self.origin = [list(row) for row in self.places]
        self.raters = [
            self.rating_columns(*row) for row in zip(embeds, ids, visual, inside, strict=True)
        ]
        self.layouts = group_layouts(model, batch) if "groups" in pruner.reads else None
        self.changes = {}

    def rating_columns(self, embeds, ids, visual, inside):
        if not isinstance(self.pruner, SparseVLM) or not inside.any():
            return [self.length - 1]
        after = [c for c in range(self.length) if c > max(visual.nonzero())]
        x, y = embeds[inside].double().numpy(), embeds[after].double().numpy()
        share = np.exp(x @ y.T)
        share = (share / share.sum(1, keepdims=True)).mean(0)
        return [c for c, value in zip(after, share, strict=True) if value > share.mean()]

    def choose(self, stage, row, hidden, reader):
        """Returns which of the remaining tokens stay, their new rows, and the appended rows."""
        own = hidden[row, self.places[row]]
        if not isinstance(self.pruner, FastV | PyramidDrop | SparseVLM):
            tokens = self.tokens(row, hidden, reader)
            reduction = self.pruner.at_stage(stage, len(self.stages), tokens)
            kept = reduction.kept.tolist()
            rows = own[kept] if reduction.weights is None else reduction.weights @ own
            appended = own[:0] if reduction.appended is None else reduction.appended @ own
            return kept, rows, appended
        weights = reader.attention(isinstance(self.pruner, PyramidDrop))[row].mean(0)
        attention = weights[self.raters[row]][:, self.places[row]].numpy()
        if isinstance(self.pruner, SparseVLM):
            return self.recycle(stage, row, own, attention)
        count = kept_count(self.totals[row], self.pruner.keep)
        if isinstance(self.pruner, PyramidDrop):
            share = self.pruner.keep ** ((stage + 1) / len(self.stages))
            count = max(1, math.floor(round(share, 6) * self.totals[row] + 1e-9))
        kept = top(attention.mean(0), min(count, len(own)))
        return kept, own[kept], own[:0]

    def recycle(self, stage, row, own, attention):
        """Implements SparseVLM; returns as `choose`."""
        n, scores, stages = len(own), attention.mean(0), len(self.stages)
        if self.pruner.form == "released":
            k = table_count(self.pruner, stage, stages, n, self.totals[row])
            rows = k + cluster_count(self.pruner, n - k)
        else:
            rows = kept_count(self.totals[row], self.pruner.keep)
            if stage + 1 < stages:
                rank = np.linalg.matrix_rank(attention)
                rows = max(rows, int(self.pruner.scale * rank))
            fits = [k for k in range(1, n) if k + cluster_count(self.pruner, n - k) <= rows]
            k = max(fits, default=1)
        if rows >= n:
            return list(range(n)), own, own[:0]
        means = min(rows - k, cluster_count(self.pruner, n - k))
        stay = top(scores, k)
        dropped = sorted(set(range(n)) - set(stay), key=lambda i: (-scores[i], i))
        count = min(len(dropped), math.floor(self.pruner.recycle * len(dropped)) + 1)
        recycled = sorted(dropped[:count])
        clusters = peaks(own[recycled].double().numpy(), means) if means else []
        appended = [own[[recycled[i] for i in members]].mean(0) for members in clusters]
        return stay, own[stay], torch.stack(appended) if appended else own[:0]

    def tokens(self, row, hidden, reader):
        """Returns what the method reads."""
        places, origin = self.places[row], self.origin[row]
        after = range(int(self.visual[row].nonzero().max()) + 1, self.length)
        text = [c for c in after if self.real[row, c]]
        norm = self.model.get_decoder().norm
        attention = reader.attention(self.pruner.ranks_ahead)[row].mean(0)[[self.length - 1]]
        keys = reader.keys()[row].transpose(0, 1).flatten(1)  # [L, kv heads * head_dim]
        fields = {
            "attention": attention[:, places],
            "keys": keys[places],
            "text_keys": keys[text],
            "text_hidden": hidden[row, text],
            "normed": norm(hidden[row, places]),
            "normed_text": norm(hidden[row, text]),
            "columns": torch.tensor(origin) - int((~self.real[row]).sum()),
        }
        if self.layouts is not None:
            layout = torch.tensor([self.layouts[row][column] for column in origin])
            fields |= {"coordinates": layout[:, :2], "rasters": layout[:, 2:4]}
            fields["groups"] = layout[:, 4]
        read = {name: fields[name] for name in self.pruner.reads}
        return DecoderTokens(
            hidden[row, places], read.pop("attention", None), self.totals[row], **read
        )

    def __call__(self, index, hidden, reader):
        length = hidden.shape[1]
        if index in self.stages and index not in self.changes:
            self.changes[index] = self.first(index, hidden, reader)
        hide, order = torch.zeros(hidden.shape[:2], dtype=torch.bool), torch.arange(length)
        order = order.repeat(len(hidden), 1)
        hidden = hidden.clone()
        for row, gone, rows, arranged in self.changes.get(index, []):
            hide[row, gone] = True
            order[row, : self.length] = torch.tensor(arranged)
            for place, value in rows.items():
                hidden[row, place] = value
        return Change(hide, hidden, order if self.compact else None)

    def first(self, index, hidden, reader):
        """Drops tokens; returns for each row the places that it hides, rows by place, and order."""
        changes = []
        for row, places in enumerate(self.places):
            if not places:
                continue
            stage = self.stages.index(index)
            kept, rows, appended = self.choose(stage, row, hidden, reader)
            dropped = [i for i in range(len(places)) if i not in kept]
            borrowed = dropped[len(dropped) - len(appended) :]
            order = list(range(self.length))
            if self.compact and borrowed:
                last = int(self.visual[row].nonzero().max())
                moved = [places[i] for i in borrowed]
                order = [c for c in range(last + 1) if c not in moved] + moved
                order += range(last + 1, self.length)
            new = {places[i]: x for i, x in zip(kept, rows, strict=True)}
            new |= {places[i]: x for i, x in zip(borrowed, appended, strict=True)}
            gone = [places[i] for i in dropped if i not in borrowed]
            changes.append((row, gone, new, order))
            stays = sorted(kept + borrowed, key=lambda i: order.index(places[i]))
            self.places[row] = [order.index(places[i]) for i in stays]
            self.origin[row] = [self.origin[row][i] for i in stays]
        return changes

    def kept_mask(self):
        mask = self.real.clone()
        for row, total in enumerate(self.totals):
            if total:
                mask[row, self.inside[row]] = False
                mask[row, self.origin[row]] = True
        return mask
