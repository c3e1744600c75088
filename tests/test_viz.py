"""Pictures of kept tokens, scores and graphs, and the files that they are written to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gprune import SimilarityGraph, viz

PICTURE = Image.fromarray(np.random.default_rng(0).integers(60, 250, (60, 100, 3), dtype=np.uint8))


def cell(picture, grid, index):
    return np.asarray(picture.crop(viz.cells(picture.size, grid)[index])).astype(int)


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (7, 4), (14, 14)])
def test_cells_cover_the_picture_once(grid):
    covered = np.zeros((60, 100), dtype=int)
    for left, top, right, bottom in viz.cells((100, 60), grid):
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("grid", [(3, 5), (6, 10)])
def test_overlay_dims_pruned_cells_only(grid):
    kept = torch.tensor([0, 4, 7])
    result = viz.overlay(PICTURE, kept, grid, outline=False)
    plain = viz.enlarged(PICTURE)
    for index in range(grid[0] * grid[1]):
        before, after = cell(plain, grid, index), cell(result, grid, index)
        if index in kept.tolist():
            assert (before == after).all()
        else:
            assert after.mean() < 0.45 * before.mean()


def test_overlay_refuses_another_grid():
    with pytest.raises(
        ValueError, match=r"kept has indices from 3 to 15, but grid=\(3, 5\) has 15"
    ):
        viz.overlay(PICTURE, [3, 15], (3, 5))


def test_score_map_is_brighter_where_the_score_is_higher():
    scores = torch.arange(15).float()
    scores[3] = -torch.inf
    result = viz.score_map(Image.new("RGB", (100, 60), (128, 128, 128)), scores, (3, 5))
    brightness = torch.tensor([cell(result, (3, 5), i).mean() for i in range(15)])
    assert torch.equal(brightness.argsort(), scores.argsort())
    with pytest.raises(ValueError, match="scores has 15 values"):
        viz.score_map(PICTURE, scores, (4, 4))


def test_graph_picture_marks_the_token_and_its_neighbours():
    features = torch.eye(15)
    features[9] = features[2]
    graph = SimilarityGraph.build(features, 0.5, 0.03)
    white = Image.new("RGB", (100, 60), (255, 255, 255))
    result = viz.graph_picture(white, graph, 2, (3, 5))
    touched = {i for i in range(15) if (cell(result, (3, 5), i) != 255).any()}
    assert {2, 9} <= touched  # and the cells that the line crosses
    assert not {0, 5, 10, 11, 12} & touched
    with pytest.raises(ValueError, match="token=15"):
        viz.graph_picture(white, graph, 15, (3, 5))
    with pytest.raises(ValueError, match="graph has 15 tokens"):
        viz.graph_picture(white, graph, 1, (4, 4))


def test_panel(tmp_path):
    figure = viz.panel([("one", PICTURE), ("two", PICTURE), ("three", PICTURE)], "title", columns=2)
    figure.savefig(tmp_path / "panel.png")
    with Image.open(tmp_path / "panel.png") as saved:
        assert saved.width > saved.height * 0.5


@pytest.mark.parametrize("name", ["kept.png", "kept.JPG", "kept.pdf", "kept.svg", "kept"])
def test_a_figure_is_written_to_the_path_that_is_reported(tmp_path, name):
    path = viz.figure_path(tmp_path / name)
    viz.panel([("one", PICTURE)]).savefig(path)
    assert list(tmp_path.iterdir()) == [path]


def test_figure_paths_without_suffix():
    assert viz.figure_path(Path("out/demo")) == Path("out/demo.png")
    assert viz.figure_path(Path("a.b/demo")) == Path("a.b/demo.png")


@pytest.mark.parametrize("suffix", ["txt", "pgf", "1"])
def test_figures_that_cannot_be_written_are_refused(suffix):
    with pytest.raises(ValueError, match=rf"has the suffix \.{suffix}, .* use \.png or another"):
        viz.figure_path(Path(f"out/demo.{suffix}"))


def test_a_folder_is_no_figure(tmp_path):
    (tmp_path / "kept.png").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        viz.figure_path(tmp_path / "kept")
