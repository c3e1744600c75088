"""EVS and VidCom2 against naive implementations, token by token, and their guarantees."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import EVS, VidCom2, VisualTokens, kept_count
from gprune.proof.batches import GREEDY, STEPS, add_video, make_batch, masked_greedy
from gprune.proof.models import SPECIMENS
from gprune.pruners.vidcom2 import rounded_counts

VIDEOS = {"t": st.integers(1, 6), "n": st.integers(1, 9), "seed": st.integers(0, 9999)}


def video(t, n, seed, d=6):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((t, n, d))).float()


def groups(frames, kind="frame"):
    return [VisualTokens(frame, kind=kind) for frame in frames]


def chosen(pruner, frames):
    return [found.kept.tolist() for found in pruner.reduce_groups(groups(frames))]


def cosine(x, y):
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


@given(**VIDEOS, keep=st.one_of(st.floats(0.05, 1), st.integers(1, 9)))
@settings(deadline=None)
def test_evs_keeps_what_changed_most(t, n, seed, keep):
    frames = video(t, n, seed)
    rows = frames.double().numpy()
    total = max(n, t * kept_count(n, keep))
    changed = {
        (f, i): 1 - cosine(rows[f, i], rows[f - 1, i]) if f else math.inf
        for f in range(t)
        for i in range(n)
    }
    order = sorted(changed, key=lambda token: (-changed[token], token))[:total]
    expected = [sorted(i for f, i in order if f == frame) for frame in range(t)]
    assert chosen(EVS(keep), frames) == expected


def test_evs_on_a_still_video_keeps_the_first_frame():
    frames = video(1, 8, 0).repeat(4, 1, 1)
    assert chosen(EVS(0.25), frames) == [list(range(8)), [], [], []]


def test_evs_follows_what_moves():
    frames = video(1, 8, 0).repeat(4, 1, 1)
    frames[2, 5] *= -1
    assert chosen(EVS(10 / 32), frames) == [list(range(8)), [], [], []]
    frames[3, 5] = -frames[2, 5]
    assert chosen(EVS(3), frames)[2:] == [[5], [5]]


@given(**VIDEOS, keep=st.one_of(st.floats(0.05, 1), st.integers(1, 9)))
@settings(deadline=None)
def test_vidcom2_follows_its_formula(t, n, seed, keep):
    frames = video(t, n, seed)
    rows = frames.double().numpy()
    spread = rows.reshape(t * n, -1).var(0)
    steady = sorted(sorted(range(6), key=lambda c: (spread[c], c))[:3])
    unit = rows[..., steady]
    unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    centre = unit.reshape(t * n, -1).mean(0)

    def resemblance(x, mean):
        squared = ((x - mean) ** 2).sum()
        return sum(math.exp(-squared / (2 * 2.0**power)) for power in range(-3, 2))

    whole = np.array([[resemblance(x, centre) for x in frame] for frame in unit])
    own = np.array([[resemblance(x, frame.mean(0)) for x in frame] for frame in unit])
    uniqueness = -whole.mean(1)
    softmax = np.exp((uniqueness - uniqueness.max()) / 0.01)
    softmax /= softmax.sum()
    total = t * kept_count(n, keep)
    shares = total / t * (1 + softmax - softmax.mean())
    kept = chosen(VidCom2(keep), frames)
    assert sum(map(len, kept)) == total
    for frame, picked in enumerate(kept):
        score = whole[frame] + own[frame]
        # In a frame of two tokens both are equally far from the mean: rounding decides such ties.
        left = [score[i] for i in range(n) if i not in picked]
        assert picked == sorted(set(picked))
        assert max(score[picked], default=0) <= min(left, default=np.inf) + 1e-6
    # Moving a token to another frame would not bring the counts nearer to the shares.
    counts = [len(picked) for picked in kept]
    for f, g in itertools.permutations(range(t), 2):
        if counts[f] > 1 and counts[g] < n:
            now = (counts[f] - shares[f]) ** 2 + (counts[g] - shares[g]) ** 2
            moved = (counts[f] - 1 - shares[f]) ** 2 + (counts[g] + 1 - shares[g]) ** 2
            assert moved >= now - 1e-6


def test_vidcom2_gives_the_odd_frame_more():
    frames = 1 + 0.05 * video(5, 16, 1)
    frames[3] = video(1, 16, 2)[0]
    counts = [len(kept) for kept in chosen(VidCom2(0.25), frames)]
    assert sum(counts) == 20
    assert counts[3] == max(counts) > 4


@given(
    shares=st.lists(st.floats(0, 12), min_size=1, max_size=8),
    most=st.integers(1, 10),
    part=st.floats(0, 1),
)
def test_rounded_counts_sum_to_the_total_within_bounds(shares, most, part):
    total = len(shares) + round(part * len(shares) * (most - 1))
    counts = rounded_counts(shares, most, total)
    assert sum(counts) == total
    assert all(1 <= count <= most for count in counts)


@pytest.mark.parametrize("method", [EVS, VidCom2])
def test_video_methods_check_their_frames(method):
    frames = video(2, 6, 0)
    with pytest.raises(ValueError, match=r"frames of a video.*'image'"):
        method(0.5).select(VisualTokens(frames[0]))
    uneven = [VisualTokens(frames[0], kind="frame"), VisualTokens(frames[1, :5], kind="frame")]
    with pytest.raises(ValueError, match="one size"):
        method(0.5).reduce_groups(uneven)
    assert chosen(method(1.0), frames) == [list(range(6))] * 2
    half = chosen(method(0.5), frames.bfloat16())
    assert half == chosen(method(0.5), frames.bfloat16().float())
    assert len(method(0.5).select(VisualTokens(frames[0], kind="frame"))) in (3, 6)


@pytest.mark.parametrize("method", [EVS, VidCom2])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_in_models(name, method):
    """Tokens are chosen among all frames, and the model answers as with a mask."""
    family = SPECIMENS[name]
    model = family.build()
    batch, frames = add_video(family, model, make_batch(family, model, [0]))
    pruner = method(0.4)
    with pruner(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
    with torch.no_grad():
        encoded = model.base_model.get_video_features(**batch.video, return_dict=True)
    features = encoded.pooler_output[0]
    size = len(features) // frames
    expected = chosen(pruner, features[: frames * size].view(frames, size, -1))
    assert [group.indices.tolist() for group in pruned.kept[0]] == expected
    tokens, logits = masked_greedy(model, batch, pruned.kept_mask, STEPS)
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5
