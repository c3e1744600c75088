"""Writes a small JSONL task."""

from __future__ import annotations

import json

from PIL import Image


def write_questions(folder):
    """Writes four pictures and a file with a question about each; returns the file's path."""
    rows = []
    for index in range(4):
        Image.new("RGB", (80, 60), (40 * index, 90, 200)).save(folder / f"{index}.png")
        rows.append(
            {
                "image": f"{index}.png",
                "question": "how many shapes are there?",  # in the vocabulary of the tiny model
                # Every digit is correct for "count"; no prediction is correct for "other".
                "answer": list("0123456789") if index % 2 else "none of them",
                "type": "count" if index % 2 else "other",
            }
        )
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
