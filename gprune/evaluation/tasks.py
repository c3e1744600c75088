"""Questions with known answers: the generated scenes, easy-VQA, and JSONL files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gprune.ask.prompts import open_image
from gprune.errors import plain_message
from gprune.evaluation.metrics import Match, is_right, normalize

SHIPPED = ("scenes", "easy_vqa")


@dataclass(frozen=True, eq=False)
class Example:
    """One question about one or more pictures.

    Attributes:
        id: unique over all tasks of an evaluation.
        picture: equal for examples that share their pictures; bootstrap intervals resample it.
        kind: question type; accuracy is reported for each type.
        question: the text.
        answers: the accepted answers.
        load: opens the pictures.
        match: checks a prediction against the accepted answers.
    """

    id: str
    picture: str
    kind: str
    question: str
    answers: tuple[str, ...]
    load: Callable[[], list[Image.Image]]
    match: Match = is_right


def load_tasks(names: Sequence[str], limit: int | None = None) -> list[Example]:
    """Loads the examples of several tasks.

    Args:
        names: ``scenes`` (generated, held out), ``easy_vqa`` (its official test split), or paths of
            JSONL files, see `read_jsonl`.
        limit: most pictures of each task; all by default, and 400 scenes.

    Raises:
        ValueError: a name is neither a task nor a file, or a file has a line that cannot be read.
    """
    examples: list[Example] = []
    for name in names:
        if name == "scenes":
            examples += scenes(limit or 400)
        elif name == "easy_vqa":
            examples += easy_vqa(limit)
        elif Path(name).is_file():
            examples += read_jsonl(Path(name), limit)
        else:
            raise ValueError(
                f"task {name!r} is neither one of {', '.join(SHIPPED)} nor a file that exists"
            )
    return examples


def scenes(count: int) -> list[Example]:
    """Returns the first ``count`` generated scenes of the test split, with all their questions.

    Predicted boxes are correct if they overlap enough, see `box_is_right`.
    """
    from gprune.tinyvlm.scenes import make_scene

    return [
        Example(
            f"scenes/{index}/{item.kind}",
            f"scenes/{index}",
            item.kind,
            item.question,
            (item.answer,),
            lambda scene=scene: [scene.draw()],  # type: ignore[misc]
            box_is_right if item.kind == "box" else is_right,
        )
        for index in range(count)
        for scene in [make_scene("test", 0, index)]
        for item in scene.ask()
    ]


def box_is_right(prediction: str, answers: Sequence[str]) -> bool:
    """Checks whether the predicted box and an accepted box have an IoU of at least 0.5."""
    from gprune.tinyvlm.boxes import box_is_found

    return any(box_is_found(normalize(prediction), normalize(answer)) for answer in answers)


def easy_vqa(limit: int | None) -> list[Example]:
    """Returns pictures of easy-VQA's official test split, with at most eight questions each."""
    from gprune.tinyvlm import easyvqa

    return [
        Example(
            f"easy_vqa/{index}/{number}",
            f"easy_vqa/{index}",
            item.kind,
            item.question,
            (item.answer,),
            lambda index=index: [easyvqa.image("test", index)],  # type: ignore[misc]
        )
        for index in easyvqa.indices("test")[:limit]
        for number, item in enumerate(easyvqa.ask("test", index, 8))
    ]


def read_jsonl(path: Path, limit: int | None = None) -> list[Example]:
    """Reads examples from a file with one JSON object per line.

    Each object has ``image`` (a path, or a list of paths, relative to the file), ``question``,
    ``answer`` (a string, or a list of accepted strings), and optionally ``type``.

    Args:
        path: the file.
        limit: most pictures (or lists of pictures) to read; all by default.

    Raises:
        ValueError: a line is not such an object, with file and line in the message; or the file has
            no examples.
    """
    examples: list[Example] = []
    pictures: set[str] = set()
    # Split as bytes: only "\n" ends a line, and a line that is not UTF-8 gets a line number too.
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            example = parse_line(line, path, number)
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else plain_message(error)
            raise ValueError(f"{path}, line {number} cannot be read: {reason}") from None
        pictures.add(example.picture)
        if limit is not None and len(pictures) > limit:
            break
        examples.append(example)
    if not examples:
        raise ValueError(f"{path} has no examples")
    return examples


def parse_line(line: bytes, path: Path, number: int) -> Example:
    """Converts one line of a JSONL file into an example.

    Args:
        line: the line.
        path: the file; paths of images are relative to it.
        number: the line's number, from 1.

    Raises:
        KeyError: a field is missing.
        TypeError, ValueError, OSError, RecursionError: the line cannot be used for another reason.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise TypeError(f"expected an object, found {type(row).__name__}")
    images, answers = as_list(row["image"]), as_list(row["answer"])
    question, kind = row["question"], row.get("type", path.stem)
    strings = [*images, *answers, question, kind]
    if not images or not answers or not all(isinstance(text, str) for text in strings):
        raise TypeError("image, question and answer must be text, or lists of text")
    # JSON allows an unpaired surrogate, which neither a tokenizer nor the report can encode.
    "".join(strings).encode()
    files = [path.parent / image for image in images]
    missing = [image for image, file in zip(images, files, strict=True) if not file.is_file()]
    if missing:
        raise ValueError(f"image {missing[0]!r} does not exist beside the file")
    return Example(
        f"{path.stem}/{number}",
        f"{path.stem}/{'|'.join(images)}",
        kind,
        question,
        tuple(answers),
        lambda: [open_image(file) for file in files],
    )


def as_list(value: Any) -> list[Any]:
    """Wraps a text in a list; returns a list unchanged, and an empty one for anything else."""
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) else []
