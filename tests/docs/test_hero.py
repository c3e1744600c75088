"""The picture of the start page shows the scene that its rule names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.chdir(ROOT)
    import figures

    return figures


def test_the_typical_scene_is_nearest_to_the_mean(figures):
    shares = np.array([[[1.0, 1.0]], [[0.4, 0.6]], [[0.0, 0.2]], [[0.4, 0.6]]])
    assert figures.typical_scene(shares) == 1  # of two equals the first


def test_shares_are_those_of_the_questions_one_by_one(figures):
    board = figures.Board(figures.RESULTS)
    shares = figures.right_shares(board)
    assert shares.shape == (board.questions.scenes, len(figures.METHODS), len(figures.KEEPS))
    starts = np.cumsum([0, *map(len, board.questions.asked)])
    for scene in (0, 17, board.questions.scenes - 1):
        kinds = [board.questions.kinds[kind] for kind in board.questions.asked[scene]]
        for column, name in enumerate(figures.METHODS):
            for row, keep in enumerate(figures.KEEPS):
                right = [
                    seed[starts[scene] + place]
                    for seed in board.right[name, keep]
                    for place, kind in enumerate(kinds)
                    if kind in board.kinds
                ]
                assert shares[scene, column, row] == pytest.approx(sum(right) / len(right))


def test_the_recommended_methods_do_not_fall_behind_random_in_it(figures):
    shares = figures.right_shares(figures.Board(figures.RESULTS))
    shown = shares[figures.typical_scene(shares)]
    random = shown[figures.METHODS.index("random")]
    for name in ("weighted_cover", "graph_cover"):
        assert (shown[figures.METHODS.index(name)] >= random).all()
