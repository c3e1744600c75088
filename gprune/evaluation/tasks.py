"""What to ask: the shipped scenes, easy-VQA, and anyone's JSONL files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gprune.ask.prompts import open_image
from gprune.evaluation.metrics import Match, is_right, normalised

SHIPPED = ("scenes", "easy_vqa")


@dataclass(frozen=True, eq=False)
class Example:
    """One question about one or more pictures.

    Attributes:
        id: unique over all tasks of an evaluation.
        picture: what examples that share pictures have in common; intervals resample by it.
        kind: the type of question, by which accuracy is reported.
        question: the text.
        answers: any of them is right.
        load: opens the pictures.
        match: whether a prediction is one of the answers.
    """

    id: str
    picture: str
    kind: str
    question: str
    answers: tuple[str, ...]
    load: Callable[[], list[Image.Image]]
    match: Match = is_right


def load_tasks(names: Sequence[str], limit: int | None = None) -> list[Example]:
    """The examples of several tasks.

    Args:
        names: ``scenes`` (generated, held out), ``easy_vqa`` (its official test split), or paths of
            JSONL files, see `read_jsonl`.
        limit: pictures of each task, all by default (400 scenes).

    Raises:
        ValueError: a name is no task and no file, or a file has a line that cannot be read.
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
    """The first generated scenes of the test split, each with all its questions.

    Where something is need not be told to the step: a box is right that overlaps enough.
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
    """Whether the box that was told shares with an answer's half of their union, or more."""
    from gprune.tinyvlm.scenes import box_is_found

    return any(box_is_found(normalised(prediction), normalised(answer)) for answer in answers)


def easy_vqa(limit: int | None) -> list[Example]:
    """Pictures of easy-VQA's official test split, each with at most eight questions."""
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
    """Examples from a file with one JSON object a line.

    Each has ``image`` (a path, or a list of them, relative to the file), ``question``, ``answer``
    (a string, or a list of right ones), and optionally ``type``.

    Raises:
        ValueError: a line is no such object; the message names file and line.
    """
    examples: list[Example] = []
    seen: set[str] = set()
    # Split as bytes: a line with broken text is named like any other, and only "\n" ends a line.
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError(f"expected an object, found {type(row).__name__}")
            images, answers = one_or_more(row["image"]), one_or_more(row["answer"])
            question, kind = row["question"], row.get("type", path.stem)
            strings = [*images, *answers, question, kind]
            if not images or not answers or not all(isinstance(text, str) for text in strings):
                raise TypeError("image, question and answer must be text, or lists of text")
            # JSON can hold half of a surrogate pair, which no tokenizer and no report can.
            "".join(strings).encode()
            absent = [image for image in images if not (path.parent / image).is_file()]
            if absent:
                raise ValueError(f"image {absent[0]!r} does not exist beside the file")
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}, line {number} cannot be read: {reason}") from None
        files = [path.parent / image for image in images]
        picture = "|".join(images)
        seen.add(picture)
        if limit is not None and len(seen) > limit:
            break
        examples.append(
            Example(
                f"{path.stem}/{number}",
                f"{path.stem}/{picture}",
                kind,
                question,
                tuple(answers),
                lambda files=files: [open_image(file) for file in files],  # type: ignore[misc]
            )
        )
    if not examples:
        raise ValueError(f"{path} has no examples")
    return examples


def one_or_more(value: Any) -> list[Any]:
    """A text in a list, or a list as it is; anything else gives an empty one."""
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) else []
