"""The scenes: reproducible, disjoint by split, and with answers that a second method confirms."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gprune.tinyvlm import QUESTION_TYPES, make_scene
from gprune.tinyvlm.boxes import BINS, SIDE, bin_edges, iou, parse_box
from gprune.tinyvlm.contents import (
    COLORS,
    GRID,
    IMAGE_SIZE,
    PATTERNS,
    SHAPES,
    SIDES,
    TINTS,
    Object,
)
from gprune.tinyvlm.drawing import draw_shape
from gprune.tinyvlm.questions import SIZE_MARGIN
from gprune.tinyvlm.scenes import SPLITS
from gprune.training.labels import (
    PATCH_HUES,
    PATCH_KINDS,
    PATCH_MARKS,
    foreground,
    patch_edges,
    patch_labels,
    patch_marks,
    patch_owners,
)

SCENES = [make_scene("validation", 3, index) for index in range(200)]
SCALE = IMAGE_SIZE / SIDE  # pixels per scene unit


def test_the_same_triple_gives_the_same_picture():
    one, other = make_scene("test", 1, 7), make_scene("test", 1, 7)
    assert one == other
    assert one.draw().tobytes() == other.draw().tobytes()
    assert one.ask() == other.ask()
    assert one.ask(["count", "text"]) == [
        q for kind in ("count", "text") for q in one.ask() if q.kind == kind
    ]


def test_splits_and_seeds_differ():
    pictures = {
        make_scene(split, seed, index).draw().tobytes()
        for split in SPLITS
        for seed in (0, 1)
        for index in range(10)
    }
    assert len(pictures) == 60
    with pytest.raises(ValueError, match="split must be one of train, validation, test"):
        make_scene("dev", 0, 0)


def test_scenes_vary_widely():
    shares = [foreground(scene).mean() for scene in SCENES]
    assert min(shares) < 0.06
    assert max(shares) > 0.3
    assert {len(scene.objects) for scene in SCENES} == set(range(1, 10))
    assert 0.6 < np.mean([len(scene.texts) for scene in SCENES]) < 0.9
    crowded = [make_scene("train", 0, index, crowded=True) for index in range(30)]
    assert np.mean([len(scene.texts) for scene in crowded]) > 1.5


def test_objects_are_drawn_at_their_centres():
    for scene in SCENES[:50]:
        pixels = np.asarray(scene.draw()).astype(int)
        for item in scene.objects:
            if item.shape == "ring":  # shows the background at its centre
                continue
            row, column = (int(centre * SCALE) for centre in (item.y, item.x))
            colour = pixels[row, column]
            assert np.abs(colour - COLORS[item.color]).max() <= 3


def test_nothing_overlaps():
    for scene in SCENES:
        boxes = [
            (o.x - o.radius, o.y - o.radius, o.x + o.radius, o.y + o.radius) for o in scene.objects
        ] + [text.box for text in scene.texts]
        for i, one in enumerate(boxes):
            assert min(one) >= 0
            assert max(one) <= SIDE
            for other in boxes[:i]:
                apart_x = one[2] <= other[0] or other[2] <= one[0]
                assert apart_x or one[3] <= other[1] or other[3] <= one[1]


def test_patch_labels_agree_with_the_picture():
    for scene in SCENES[:50]:
        kinds, hues = patch_labels(scene)
        assert kinds.shape == hues.shape == (GRID, GRID)
        for item in scene.objects:
            if item.shape == "ring":
                continue
            row, column = (int(centre * SCALE) // 8 for centre in (item.y, item.x))
            assert PATCH_KINDS[kinds[row, column]] == item.shape
            assert PATCH_HUES[hues[row, column]] == item.color
        background = {PATCH_KINDS[k] for k in np.unique(kinds)} & set(PATTERNS)
        assert background <= set(scene.patterns)
        for text in scene.texts:
            shown = {PATCH_KINDS[k] for k in np.unique(kinds)}
            assert set(text.signs) & shown


def test_patch_marks_order_digits_and_centre_objects():
    for scene in SCENES[:50]:
        marks = patch_marks(scene)
        for item in scene.objects:
            row, column = (int(centre * SCALE) // 8 for centre in (item.y, item.x))
            assert PATCH_MARKS[marks[row, column]] == "centre"
        assert (marks == PATCH_MARKS.index("centre")).sum() <= len(scene.objects)
        columns = [
            np.nonzero(marks == PATCH_MARKS.index(name))[1] for name in ("first", "second", "third")
        ]
        if scene.texts:
            means = [found.mean() for found in columns if len(found)]
            assert len(means) >= 2
            assert means == sorted(means)
        else:
            assert not any(len(found) for found in columns)


def questions_of(kind):
    """Returns all questions of a type with their scenes."""
    return [(scene, question) for scene in SCENES for question in scene.ask([kind], 3)]


def test_every_kind_is_asked():
    counts = Counter(q.kind for scene in SCENES for q in scene.ask())
    assert set(counts) == set(QUESTION_TYPES)
    assert min(counts.values()) > 10


def test_answers_to_exist():
    for scene, item in questions_of("exist"):
        words = item.question.rstrip("?").split()
        color, shape = words[-2:]
        assert words[2] == ("an" if color == "orange" else "a")
        there = any(o.color == color and o.shape == shape for o in scene.objects)
        assert item.answer == ("yes" if there else "no")


def test_answers_to_relation():
    for scene, item in questions_of("relation"):
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
    for scene, item in questions_of("color"):
        shape = item.question.rstrip("?").split()[-1]
        assert [o.color for o in scene.objects if o.shape == shape] == [item.answer]
    for scene, item in questions_of("shape"):
        color = item.question.split()[-2]
        assert [o.shape for o in scene.objects if o.color == color] == [item.answer]


def test_answers_about_the_background_match_pixels():
    for scene, item in questions_of("background_color"):
        side = item.question.rstrip("?").split()[-1]
        pixels = np.asarray(scene.draw(2 * SIDE // 8)).astype(int)  # two per unit: no averaging
        edge = {
            "left": pixels[:, :16],
            "right": pixels[:, -16:],
            "top": pixels[:16],
            "bottom": pixels[-16:],
        }[side].reshape(-1, 3)
        # The tint is the brightest colour of its half, and 8 units contain a whole stripe.
        brightest = edge[edge.sum(1).argmax()]
        nearest = min(TINTS, key=lambda name: np.abs(brightest - TINTS[name]).sum())
        assert nearest == item.answer
        assert side in SIDES[scene.layout]


def test_yes_and_no_are_balanced():
    for kind in ("exist", "relation"):
        answers = [item.answer for _, item in questions_of(kind)]
        assert 0.35 < answers.count("yes") / len(answers) < 0.65


def test_shapes_look_different():
    """Compares the masks of all pairs of shapes of one size."""
    from PIL import Image, ImageDraw

    masks = []
    for shape in SHAPES:
        canvas = Image.new("L", (80, 80))
        item = Object(shape, "red", 40, 40, 36)
        draw_shape(ImageDraw.Draw(canvas), item, 1, 1)
        masks.append(np.asarray(canvas).astype(bool))
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one ^ other).sum() / (one | other).sum() > 0.15


def find_object(scene, color, shape):
    return next(o for o in scene.objects if (o.color, o.shape) == (color, shape))


def test_scenes_write_letters_and_digits():
    texts = [text.signs for scene in SCENES for text in scene.texts]
    letters = [signs for signs in texts if signs.isalpha()]
    assert 0.35 < len(letters) / len(texts) < 0.65
    assert all(signs.isdigit() for signs in set(texts) - set(letters))
    for scene, item in questions_of("text"):
        assert item.answer == scene.texts[0].signs
        assert ("letters" in item.question) == item.answer.isalpha()


def test_boxes_are_those_of_the_drawn_shapes():
    """Compares with the pixels of each shape, drawn alone and large."""
    from PIL import Image, ImageDraw

    for shape in SHAPES:
        canvas = Image.new("1", (1120, 1120))
        item = Object(shape, "red", 50.0, 60.0, 20.0)
        draw_shape(ImageDraw.Draw(canvas), item, 1, 10)
        left, top, right, bottom = canvas.getbbox()
        drawn = (left / 10, top / 10, right / 10, bottom / 10)
        assert iou(item.box, drawn) > 0.98, shape


def test_answers_to_box():
    for scene, item in questions_of("box"):
        words = item.question.rstrip("?").split()
        target = find_object(scene, *words[-2:])
        answer = parse_box(item.answer)
        for edge, true in zip(answer, target.box, strict=True):
            assert abs(edge - true) <= SIDE / BINS / 2 + 1e-6
        assert iou(answer, target.box) > 0.5  # the exact answer always counts as found
    assert parse_box("left3 top4 right7") is None
    assert parse_box("a circle") is None


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),
        ((0, 0, 1, 1), (2, 2, 3, 3), 0.0),
        ((2, 2, 1, 1), (0, 0, 3, 3), 0.0),  # right edge before the left one
    ],
)
def test_iou(one, other, share):
    assert iou(one, other) == pytest.approx(share)
    assert iou(other, one) == pytest.approx(share)


def test_answers_to_bigger():
    answers = []
    for scene, item in questions_of("bigger"):
        words = item.question.rstrip("?").split()
        one, other = find_object(scene, *words[2:4]), find_object(scene, *words[-2:])
        assert item.answer == ("yes" if one.radius > other.radius else "no")
        assert max(one.radius / other.radius, other.radius / one.radius) >= SIZE_MARGIN
        answers.append(item.answer)
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_answers_to_same_color():
    answers = []
    for scene, item in questions_of("same_color"):
        words = item.question.split()
        one, other = (
            [o.color for o in scene.objects if o.shape == shape] for shape in (words[2], words[5])
        )
        assert len(one) == len(other) == 1
        assert item.answer == ("yes" if one == other else "no")
        answers.append(item.answer)
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_answers_to_object():
    for scene, item in questions_of("object"):
        assert [o.name for o in scene.objects] == [item.answer]


def test_first_questions_do_not_depend_on_times():
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
        kinds, hues = patch_labels(scene, grid)
        edges = patch_edges(scene, patch_owners(scene, grid))
        assert kinds.shape == hues.shape == edges.shape[:2] == (grid, grid)
        shown = {(o.shape, o.color, *bin_edges(o.box)) for o in scene.objects}
        for row, column in zip(*np.nonzero(edges[..., 0] >= 0), strict=True):
            found = tuple(edges[row, column].tolist())
            assert found in {one[2:] for one in shown}
            # Kind, hue and box belong to one object, except where two objects share a patch.
            kind, hue = PATCH_KINDS[kinds[row, column]], PATCH_HUES[hues[row, column]]
            agreeing += (kind, hue, *found) in shown
            labelled += kind in SHAPES
        assert foreground(scene, grid).sum() >= (edges[..., 0] >= 0).sum() * 0.8
    assert agreeing > 0.95 * labelled > 100
