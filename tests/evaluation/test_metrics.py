"""Metrics: against values computed by hand, by a loop, and against known accuracies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gprune.evaluation.metrics import (
    RESAMPLES,
    Record,
    Tally,
    begins_right,
    compression_groups,
    is_right,
    loyalty,
    mean_tally,
    overall_performance,
    tally_subset,
)


def records(*rows):
    return [
        Record(str(i), picture, kind, prediction, right)
        for i, (picture, kind, prediction, right) in rows
    ]


def test_metrics_by_hand():
    full = records(
        (0, ("p", "count", "3", True)),
        (1, ("p", "color", "red", True)),
        (2, ("q", "count", "2", True)),
        (3, ("q", "color", "blue", False)),
    )
    pruned = records(
        (0, ("p", "count", "3", True)),
        (1, ("p", "color", "Red.", True)),
        (2, ("q", "count", "5", False)),
        (3, ("q", "color", "blue", False)),
    )
    one, other = Tally.from_records(full), Tally.from_records(pruned)
    assert one.accuracy.tolist() == [100, 50]
    assert (one.macro, other.macro) == (75, 50)
    assert loyalty(full, pruned) == 75
    assert overall_performance(one, other) == pytest.approx(100 * np.sqrt((0.25 + 1) / 2))
    assert mean_tally([one, other]).macro == 62.5
    wrong = Tally.from_records(records((0, ("p", "count", "3", False))))
    assert overall_performance(wrong, wrong) is None
    low, high = one.interval
    assert 50 <= low <= 75 <= high <= 100
    # The samples are fixed: a run minus itself is zero in every sample.
    assert np.ptp(one.resampled() - one.resampled()) == 0


def test_compression_groups_by_hand():
    def answered(*outcomes):
        return [Record(str(i), str(i), "", "", right) for i, right in enumerate(outcomes)]

    full = answered(True, True, True, False, False)
    a, b = compression_groups(full, answered(True, False, False, True, False))
    assert (a, b) == ({"1", "2"}, {"0"})  # wrong with all tokens: in neither group
    assert tally_subset(answered(False, True, False, True, True), a).macro == 50
    a, b = compression_groups(full, answered(True, True))  # a reference with fewer questions
    assert (a, b) == (set(), {"0", "1"})


def test_type_intervals_equal_those_of_a_loop():
    """Counts each sample in a loop, over pictures with unequal numbers of questions."""
    rng = np.random.default_rng(1)
    pictures, kinds = 30, ["frequent", "rare", "absent"]
    total = np.stack(
        [rng.integers(1, 4, pictures), rng.random(pictures) < 0.1, np.zeros(pictures)], 1
    )
    right = np.floor(total * rng.random((pictures, 3)) + 0.5)
    intervals = Tally(kinds, right, total).type_intervals
    draws = np.random.default_rng(0).multinomial(pictures, [1 / pictures] * pictures, RESAMPLES)
    for kind in range(2):
        accuracies = []
        for times in draws:
            drawn = [picture for picture in range(pictures) for _ in range(times[picture])]
            if answered := sum(total[picture, kind] for picture in drawn):
                accuracies.append(100 * sum(right[picture, kind] for picture in drawn) / answered)
        assert intervals[kind] == pytest.approx(np.percentile(accuracies, [2.5, 97.5]))
    assert len(accuracies) < RESAMPLES  # some samples lack the rare type
    assert intervals[2] is None


def test_interval_covers_a_known_accuracy():
    """About 95 of 100 intervals contain the true accuracy."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        right = rng.random((80, 4)) < 0.7
        low, high = Tally(list("abcd"), right.astype(float), np.ones((80, 4))).interval
        inside += low <= 70 <= high
    assert 88 <= inside <= 100


@pytest.mark.parametrize(
    ("prediction", "right"),
    [("Red", True), (" a red.", True), ("blue", False), ("redder", False)],
)
def test_is_right(prediction, right):
    assert is_right(prediction, ["red"]) is right


@pytest.mark.parametrize(("prediction", "right"), [("A.", True), ("", False), ("the", False)])
def test_an_article_alone_is_an_answer(prediction, right):
    """Keeps the letter of a multiple choice: without it, an empty prediction would match."""
    assert is_right(prediction, ["a"]) is right


@pytest.mark.parametrize(
    ("prediction", "answers", "right"),
    [
        ("red red red", ["red"], True),
        ("The red, and blue", ["red"], True),
        ("red. blue", ["blue", "red"], True),
        ("blue red", ["red"], False),
        ("redder than red", ["red"], False),
        ("12.50 euro", ["12"], False),
        ("12. 50", ["12"], True),
        ("a dark red circle", ["Dark Red"], True),
        ("dark redcircle", ["dark red"], False),
        ("dark", ["dark red"], False),
        ("", ["red"], False),
    ],
)
def test_begins_right(prediction, answers, right):
    assert begins_right(prediction, answers) is right


VOCABULARY = ("red", "Red.", "dark", "the", "a", "12", "12.5", "?")
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=4)


@given(WORDS, WORDS, WORDS)
@example([], ["the"], [])
def test_right_predictions_are_leniently_right(first, answer, appended):
    """They stay leniently right whatever is appended."""
    prediction, answers = " ".join(first), [" ".join(answer)]
    if is_right(prediction, answers):
        assert begins_right(prediction, answers)
        if prediction:
            assert begins_right(" ".join([prediction, *appended]), answers)
    # Only a prefix that ends at the end of a word can match.
    prefixes = [prediction, *(prediction[:i] for i, char in enumerate(prediction) if char == " ")]
    assert begins_right(prediction, answers) is any(is_right(text, answers) for text in prefixes)
