"""Tasks: JSONL files are read or refused by line, and boxes are matched by overlap."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gprune.evaluation.metrics import begins_right, is_right
from gprune.evaluation.tasks import box_is_right, load_tasks, read_jsonl
from gprune.tinyvlm.boxes import BINS, EDGES
from gprune.tinyvlm.questions import QUESTION_TYPES


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 cannot be read"),
        ('{"question": "what?", "answer": "1"}', "line 2 cannot be read: 'image' is missing"),
        ('{"image": "a.png", "question": "what?", "answer": 3}', "line 2 cannot be read"),
        ('{"image": [], "question": "what?", "answer": "3"}', "must be text"),
        ('["a.png", "what?", "3"]', "line 2 cannot be read: expected an object, found list"),
        ('{"image": "b.png", "question": "what?", "answer": "3"}', "image 'b.png' does not exist"),
        (
            '{"image": "a.png", "question": "wh\xe4t?", "answer": "3"}',
            "line 2 cannot be read: byte 34 is not UTF-8",
        ),
        ('{"image": "a.png", "question": "\\ud800", "answer": "3"}', "surrogates not allowed"),
        ('{"image": {"a.png": 1}, "question": "what?", "answer": "3"}', "must be text"),
        ('{"image": "%s", "question": "what?", "answer": "3"}' % ("a" * 5000), "too long"),
        ("[" * 100_000, "line 2 cannot be read: maximum recursion depth"),
    ],
    ids=range(11),
)
def test_unusable_lines_are_refused_by_number(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    (tmp_path / "a.png").touch()
    good = '{"image": "a.png", "question": "what?", "answer": "1"}'
    path.write_bytes(f"{good}\n{line}\n".encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(str(path))) as raised:
        read_jsonl(path)
    assert message in str(raised.value)


def test_only_line_feeds_separate_lines(tmp_path):
    (tmp_path / "a.png").touch()
    path = tmp_path / "mine.jsonl"
    row = {"image": "a.png", "question": "one\u2028two\x85three?", "answer": "1"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\r\n\n", newline="")
    assert [example.question for example in read_jsonl(path)] == [row["question"]]


edges = st.lists(st.integers(0, BINS - 1), min_size=4, max_size=4)


@given(edges, edges)
@example([3, 10, 7, 14], [3, 10, 7, 12])  # IoU is exactly 0.5
@example([3, 10, 3, 14], [3, 10, 3, 14])  # no area
def test_boxes_match_from_an_iou_of_one_half(predicted, true):
    """Compares with IoU computed from sets of grid cells."""

    def words(box):
        return " ".join(f"{edge}{step}" for edge, step in zip(EDGES, box, strict=True))

    def cells(box):
        left, top, right, bottom = box
        return {(x, y) for x in range(left, right) for y in range(top, bottom)}

    shared, union = cells(predicted) & cells(true), cells(predicted) | cells(true)
    expected = bool(union) and 2 * len(shared) >= len(union)
    assert box_is_right(words(predicted), [words(true)]) is expected
    assert box_is_right(f" {words(predicted).title()}. ", ["nowhere", words(true)]) is expected


def test_texts_that_are_not_boxes_do_not_match():
    true = "left3 top10 right7 bottom14"
    for text in ("", "red", "left3 top10 right7", f"{true} left3", "left-3 top10 right7 bottom14"):
        assert not box_is_right(text, [true])
    assert begins_right(f"{true} left3", [true], box_is_right)
    assert not begins_right("left3 top10 right7", [true], box_is_right)


def test_only_box_questions_of_scenes_are_matched_as_boxes():
    examples = load_tasks(["scenes"], 20)
    assert {item.kind for item in examples} == set(QUESTION_TYPES)
    for item in examples:
        assert item.match is (box_is_right if item.kind == "box" else is_right)
        assert item.match(item.answers[0], item.answers)
