"""EVS and VidCom2 against naive implementations, token by token, and their guarantees."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import EVS, VidCom2, VisualTokens
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


def asked(t, n, keep):
    """How many of t frames' tokens are asked for: a share of all, or a count of each."""
    return t * min(n, keep) if isinstance(keep, int) else t * n * round(keep * 10**6) // 10**6


@given(**VIDEOS, keep=st.one_of(st.floats(0.05, 1), st.integers(1, 9)))
@settings(deadline=None)
def test_evs_keeps_what_changed_most(t, n, seed, keep):
    frames = video(t, n, seed)
    rows = frames.double().numpy()
    total = max(n, asked(t, n, keep))
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
    """Token 5 differs in frame 2, from the frame before and from the one after."""
    frames = video(1, 8, 0).repeat(4, 1, 1)
    frames[2, 5] *= -1
    first = list(range(8))
    assert chosen(EVS(8 / 32), frames) == [first, [], [], []]
    assert chosen(EVS(9 / 32), frames) == [first, [], [5], []]
    assert chosen(EVS(10 / 32), frames) == [first, [], [5], [5]]
    assert chosen(EVS(3), frames)[2:] == [[5], [5]]


def test_evs_rounds_once_for_the_whole_video():
    """Each of 8 frames alone would keep 2 of 9 tokens; the video keeps ⌊72 · 0.3⌋ = 21."""
    frames = video(8, 9, 1)
    assert sum(map(len, chosen(EVS(0.3), frames))) == 21
    assert sum(map(len, chosen(EVS(2), frames))) == 16
    one = chosen(EVS({"frame": 0.3}), frames)
    assert one == chosen(EVS(0.3), frames)
    # Budgets of frames that differ are summed before they are rounded: 4 · 2 + 4 · 9 · 0.3 = 18.8.
    mixed = EVS(lambda groups: [2] * 4 + [0.3] * 4)
    assert sum(map(len, chosen(mixed, frames))) == 18


@given(t=st.integers(1, 40), n=st.integers(1, 50), dropped=st.integers(0, 99))
@settings(deadline=None)
def test_evs_counts_in_floating_point_as_vllm(t, n, dropped):
    q = dropped / 100
    frames = torch.ones(t, n, 1)
    counted = sum(map(len, chosen(EVS(1 - q, float_count=True), frames)))
    assert counted == max(n, int(t * n * (1 - q)))
    whole = sum(map(len, chosen(EVS(1 - q), frames)))
    assert whole == max(n, t * n * (100 - dropped) // 100)
    assert counted <= whole <= counted + 1


def test_evs_in_floating_point_can_keep_one_less():
    """1 - 0.8 is a little below 0.2."""
    frames = video(10, 36, 2)
    assert sum(map(len, chosen(EVS(0.2), frames))) == 72
    assert sum(map(len, chosen(EVS(0.2, float_count=True), frames))) == 71


def vidcom2_scores(frames):
    """Resemblance to the video and to the frame of each token, and each frame's factor."""
    t, n, d = frames.shape
    rows = frames.double().numpy()
    spread = rows.reshape(t * n, -1).var(0)
    steady = sorted(sorted(range(d), key=lambda c: (spread[c], c))[: d // 2])
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
    return whole + own, 1 + softmax - softmax.mean()


def assert_least(kept, score):
    """Checks that the tokens kept of each frame have the lowest scores."""
    for frame, picked in enumerate(kept):
        # In a frame of two tokens both are equally far from the mean: rounding decides such ties.
        left = [value for i, value in enumerate(score[frame]) if i not in picked]
        assert picked == sorted(set(picked))
        assert max(score[frame][picked], default=0) <= min(left, default=np.inf) + 1e-6


@given(**VIDEOS, keep=st.one_of(st.floats(0.05, 0.99), st.integers(1, 9)))
@settings(deadline=None)
def test_vidcom2_rounds_each_frame_by_itself(t, n, seed, keep):
    frames = video(t, n, seed)
    score, factor = vidcom2_scores(frames)
    kept = chosen(VidCom2(keep), frames)
    assert_least(kept, score)
    ratio = min(n, keep) / n if isinstance(keep, int) else round(keep * 10**6) / 10**6
    if ratio == 1:
        assert kept == [list(range(n))] * t
        return
    for picked, share in zip(kept, ratio * factor, strict=True):
        wanted = min(1, share) * n
        if abs(wanted % 1 - 0.5) > 1e-4:  # rounding decides nothing
            assert len(picked) == max(1, round(wanted))
        assert abs(len(picked) - max(1, wanted)) <= 0.5 + 1e-4


def test_vidcom2_can_miss_the_budget():
    """Equal frames of 9 tokens round 9 · 0.5 = 4.5 down and 9 · 0.4 = 3.6 up, each of them."""
    frames = video(1, 9, 0).repeat(6, 1, 1)
    assert [len(kept) for kept in chosen(VidCom2(0.5), frames)] == [4] * 6
    assert [len(kept) for kept in chosen(VidCom2(0.4), frames)] == [4] * 6
    assert sum(len(kept) for kept in chosen(VidCom2(0.5, exact=True), frames)) == 27
    assert sum(len(kept) for kept in chosen(VidCom2(0.4, exact=True), frames)) == 21
    assert [len(kept) for kept in chosen(VidCom2(0.01), frames)] == [1] * 6
    assert [len(kept) for kept in chosen(VidCom2(0.01, exact=True), frames)] == [1] * 6


@given(**VIDEOS, keep=st.one_of(st.floats(0.05, 1), st.integers(1, 9)))
@settings(deadline=None)
def test_exact_vidcom2_sums_to_the_budget(t, n, seed, keep):
    frames = video(t, n, seed)
    score, factor = vidcom2_scores(frames)
    total = max(t, asked(t, n, keep))
    share = min(n, keep) if isinstance(keep, int) else n * round(keep * 10**6) / 10**6
    shares = share * factor
    kept = chosen(VidCom2(keep, exact=True), frames)
    assert sum(map(len, kept)) == total
    assert_least(kept, score)
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
    for exact in (False, True):
        counts = [len(kept) for kept in chosen(VidCom2(0.25, exact=exact), frames)]
        assert counts[3] == max(counts) > 4
    assert sum(counts) == 20


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
