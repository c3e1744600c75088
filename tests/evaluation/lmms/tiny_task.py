"""Writes an lmms-eval task of the tiny model's held-out scenes: YAML file, pictures, questions."""

from __future__ import annotations

import json
from pathlib import Path

from gprune.tinyvlm import make_scene

NAME, NEW_TOKENS = "gprune_tiny_scenes", 8

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/questions.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: "{{{{question}}}}"
doc_to_target: "answer"
generation_kwargs:
  max_new_tokens: {tokens}
  temperature: 0
  until:
    - "\\n"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: true
metadata:
  - version: 0.0
"""

UTILS = """\
from PIL import Image


def doc_to_visual(doc):
    return [Image.open(doc["image"])]
"""


def write(folder: Path, scenes: int) -> Path:
    """Writes the task for ``--include_path``; returns its questions' file, for `read_jsonl`."""
    rows = []
    for index in range(scenes):
        scene = make_scene("test", 0, index)
        path = folder / f"{index}.png"
        scene.draw().save(path)
        rows += [
            {"image": str(path), "question": item.question, "answer": item.answer}
            for item in scene.ask()
        ]
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "utils.py").write_text(UTILS)
    (folder / f"{NAME}.yaml").write_text(TASK.format(name=NAME, folder=folder, tokens=NEW_TOKENS))
    return questions
