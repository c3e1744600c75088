"""The scenes: reproducible, apart by split, and their answers right by other means."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gprune.tinyvlm import QUESTION_TYPES, make_scene
from gprune.tinyvlm import scenes as module
from gprune.tinyvlm.scenes import (
    COLORS,
    GRID,
    HUES,
    KINDS,
    MARKS,
    PATTERNS,
    SHAPES,
    SIDES,
    TINTS,
)

SCENES = [make_scene("validation", 3, index) for index in range(200)]
SCALE = module.IMAGE_SIZE / module.SIDE  # pixels a unit


def test_the_same_triple_gives_the_same_picture():
    one, other = make_scene("test", 1, 7), make_scene("test", 1, 7)
    assert one == other
    assert one.draw().tobytes() == other.draw().tobytes()
    assert one.ask() == other.ask()
    assert one.ask(["count", "text"]) == [
        q for kind in ("count", "text") for q in one.ask() if q.kind == kind
    ]


def test_splits_and_seeds_are_apart():
    pictures = {
        make_scene(split, seed, index).draw().tobytes()
        for split in module.SPLITS
        for seed in (0, 1)
        for index in range(10)
    }
    assert len(pictures) == 60
    with pytest.raises(ValueError, match="split must be one of train, validation, test"):
        make_scene("dev", 0, 0)


def test_scenes_vary_widely():
    shares = [scene.foreground().mean() for scene in SCENES]
    assert min(shares) < 0.06
    assert max(shares) > 0.3
    assert {len(scene.objects) for scene in SCENES} == set(range(1, 10))
    assert 0.6 < np.mean([len(scene.texts) for scene in SCENES]) < 0.9
    crowded = [make_scene("train", 0, index, crowded=True) for index in range(30)]
    assert np.mean([len(scene.texts) for scene in crowded]) > 1.5


def test_objects_are_where_and_what_the_scene_says():
    for scene in SCENES[:50]:
        pixels = np.asarray(scene.draw()).astype(int)
        for item in scene.objects:
            if item.shape == "ring":  # its centre is open
                continue
            row, column = (int(place * SCALE) for place in (item.y, item.x))
            colour = pixels[row, column]
            assert np.abs(colour - COLORS[item.color]).max() <= 3


def test_nothing_overlaps():
    for scene in SCENES:
        boxes = [
            (o.x - o.radius, o.y - o.radius, o.x + o.radius, o.y + o.radius) for o in scene.objects
        ] + [text.box for text in scene.texts]
        for i, one in enumerate(boxes):
            assert min(one) >= 0
            assert max(one) <= module.SIDE
            for other in boxes[:i]:
                apart_x = one[2] <= other[0] or other[2] <= one[0]
                assert apart_x or one[3] <= other[1] or other[3] <= one[1]


def test_patch_labels_agree_with_the_picture():
    for scene in SCENES[:50]:
        kinds, hues = scene.patch_labels()
        assert kinds.shape == hues.shape == (GRID, GRID)
        for item in scene.objects:
            if item.shape == "ring":
                continue
            row, column = (int(place * SCALE) // 8 for place in (item.y, item.x))
            assert KINDS[kinds[row, column]] == item.shape
            assert HUES[hues[row, column]] == item.color
        background = {KINDS[k] for k in np.unique(kinds)} & set(PATTERNS)
        assert background <= set(scene.patterns)
        for text in scene.texts:
            shown = {KINDS[k] for k in np.unique(kinds)}
            assert set(text.signs) & shown


def test_patch_marks_order_digits_and_centre_objects():
    for scene in SCENES[:50]:
        marks = scene.patch_marks()
        for item in scene.objects:
            assert MARKS[marks[int(item.y * SCALE) // 8, int(item.x * SCALE) // 8]] == "centre"
        assert (marks == MARKS.index("centre")).sum() <= len(scene.objects)
        columns = [
            np.nonzero(marks == MARKS.index(name))[1] for name in ("first", "second", "third")
        ]
        if scene.texts:
            means = [found.mean() for found in columns if len(found)]
            assert len(means) >= 2
            assert means == sorted(means)
        else:
            assert not any(len(found) for found in columns)


def by_kind(kind):
    return [(scene, question) for scene in SCENES for question in scene.ask([kind], 3)]


def test_every_kind_is_asked():
    counts = Counter(q.kind for scene in SCENES for q in scene.ask())
    assert set(counts) == set(QUESTION_TYPES)
    assert min(counts.values()) > 10


def test_answers_to_exist():
    for scene, item in by_kind("exist"):
        words = item.question.rstrip("?").split()
        color, shape = words[-2:]
        assert words[2] == ("an" if color == "orange" else "a")
        there = any(o.color == color and o.shape == shape for o in scene.objects)
        assert item.answer == ("yes" if there else "no")


def test_answers_to_relation():
    for scene, item in by_kind("relation"):
        words = item.question.rstrip("?").split()
        first = next(o for o in scene.objects if [o.color, o.shape] == words[2:4])
        second = next(o for o in scene.objects if [o.color, o.shape] == words[-2:])
        relation = words[4]
        holds = {
            "left": first.x < second.x,
            "right": first.x > second.x,
            "above": first.y < second.y,
            "below": first.y > second.y,
        }[relation]
        assert item.answer == ("yes" if holds else "no")


def test_answers_to_color_and_shape_have_one_referent():
    for scene, item in by_kind("color"):
        shape = item.question.rstrip("?").split()[-1]
        assert [o.color for o in scene.objects if o.shape == shape] == [item.answer]
    for scene, item in by_kind("shape"):
        color = item.question.split()[-2]
        assert [o.shape for o in scene.objects if o.color == color] == [item.answer]


def test_answers_about_the_background_match_pixels():
    for scene, item in by_kind("background_color"):
        side = item.question.rstrip("?").split()[-1]
        pixels = np.asarray(scene.draw(2 * module.SIDE // 8)).astype(int)  # two a unit: unmixed
        edge = {
            "left": pixels[:, :16],
            "right": pixels[:, -16:],
            "top": pixels[:16],
            "bottom": pixels[-16:],
        }[side].reshape(-1, 3)
        # The tint itself is the brightest colour of its half; 8 units hold a whole stripe.
        brightest = edge[edge.sum(1).argmax()]
        nearest = min(TINTS, key=lambda name: np.abs(brightest - TINTS[name]).sum())
        assert nearest == item.answer
        assert side in SIDES[scene.layout]


def test_yes_and_no_are_balanced():
    for kind in ("exist", "relation"):
        answers = [item.answer for _, item in by_kind(kind)]
        assert 0.35 < answers.count("yes") / len(answers) < 0.65


def test_shapes_look_different():
    """Each pair of shapes of one size differs in a good part of its area."""
    from PIL import Image, ImageDraw

    masks = []
    for shape in SHAPES:
        canvas = Image.new("L", (80, 80))
        item = module.Object(shape, "red", 40, 40, 36)
        module.draw_shape(ImageDraw.Draw(canvas), item, 1, 1)
        masks.append(np.asarray(canvas).astype(bool))
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one ^ other).sum() / (one | other).sum() > 0.15


def named(scene, color, shape):
    return next(o for o in scene.objects if (o.color, o.shape) == (color, shape))


def test_scenes_write_letters_and_digits():
    written = [text.signs for scene in SCENES for text in scene.texts]
    letters = [signs for signs in written if signs.isalpha()]
    assert 0.35 < len(letters) / len(written) < 0.65
    assert all(signs.isdigit() for signs in set(written) - set(letters))
    for scene, item in by_kind("text"):
        assert item.answer == scene.texts[0].signs
        assert ("letters" in item.question) == item.answer.isalpha()


def test_boxes_are_what_is_drawn():
    """Against the pixels of each shape drawn alone and large."""
    from PIL import Image, ImageDraw

    for shape in SHAPES:
        canvas = Image.new("1", (1120, 1120))
        item = module.Object(shape, "red", 50.0, 60.0, 20.0)
        module.draw_shape(ImageDraw.Draw(canvas), item, 1, 10)
        left, top, right, bottom = canvas.getbbox()
        drawn = (left / 10, top / 10, right / 10, bottom / 10)
        assert module.overlap(item.box, drawn) > 0.98, shape


def test_answers_to_box():
    for scene, item in by_kind("box"):
        words = item.question.rstrip("?").split()
        target = named(scene, *words[-2:])
        told = module.box_of(item.answer)
        for edge, true in zip(told, target.box, strict=True):
            assert abs(edge - true) <= module.SIDE / module.BINS / 2 + 1e-6
        assert module.overlap(told, target.box) > 0.5  # a right answer is always found
    assert module.box_of("left3 top4 right7") is None
    assert module.box_of("a circle") is None


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),
        ((0, 0, 1, 1), (2, 2, 3, 3), 0.0),
        ((2, 2, 1, 1), (0, 0, 3, 3), 0.0),  # edges the wrong way round
    ],
)
def test_overlap(one, other, share):
    assert module.overlap(one, other) == pytest.approx(share)
    assert module.overlap(other, one) == pytest.approx(share)


def test_answers_to_bigger():
    answers = []
    for scene, item in by_kind("bigger"):
        words = item.question.rstrip("?").split()
        one, other = named(scene, *words[2:4]), named(scene, *words[-2:])
        assert item.answer == ("yes" if one.radius > other.radius else "no")
        assert max(one.radius / other.radius, other.radius / one.radius) >= module.SIZE_MARGIN
        answers.append(item.answer)
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_answers_to_same_color():
    answers = []
    for scene, item in by_kind("same_color"):
        words = item.question.split()
        one, other = (
            [o.color for o in scene.objects if o.shape == shape] for shape in (words[2], words[5])
        )
        assert len(one) == len(other) == 1
        assert item.answer == ("yes" if one == other else "no")
        answers.append(item.answer)
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_answers_to_object():
    for scene, item in by_kind("object"):
        assert [o.name for o in scene.objects] == [item.answer]


def test_asking_more_often_does_not_change_the_first_questions():
    for scene in SCENES[:30]:
        once, often = scene.ask(), scene.ask(times=3)
        assert len({q.question for q in often}) == len(often) >= len(once)
        for question in once:
            assert question == next(q for q in often if q.kind == question.kind)


@pytest.mark.parametrize("grid", [14, 16, 24])
def test_labels_follow_the_picture_at_any_size(grid):
    agreeing = labelled = 0
    for scene in SCENES[:20]:
        assert scene.draw(grid).size == (8 * grid, 8 * grid)
        kinds, hues = scene.patch_labels(grid)
        edges = scene.edges_of(scene.patch_owners(grid))
        assert kinds.shape == hues.shape == edges.shape[:2] == (grid, grid)
        shown = {(o.shape, o.color, *module.binned(o.box)) for o in scene.objects}
        for row, column in zip(*np.nonzero(edges[..., 0] >= 0), strict=True):
            found = tuple(edges[row, column].tolist())
            assert found in {one[2:] for one in shown}
            # Save where two objects meet, a patch has its kind, hue and box from one.
            kind, hue = KINDS[kinds[row, column]], HUES[hues[row, column]]
            agreeing += (kind, hue, *found) in shown
            labelled += kind in SHAPES
        assert scene.foreground(grid).sum() >= (edges[..., 0] >= 0).sum() * 0.8
    assert agreeing > 0.95 * labelled > 100
