"""Every method on the shipped tiny VLM: python benchmarks/tiny_accuracy.py

Held-out scenes and the official easy-VQA test split, each method at each budget. What every
question got is stored, one file a method, so a killed run goes on where it stopped and methods can
be run one by one; `leaderboard.py` makes the tables. Random selection is run with three seeds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track

from gprune import Pruner, UnsupportedModelError, VisualTokens, methods
from gprune.ask.answers import quiet_transformers
from gprune.ask.prompts import prepare
from gprune.cli import parse_keep
from gprune.evaluation import tasks
from gprune.evaluation.metrics import Record, Tally
from gprune.evaluation.runner import Evaluation, Run, runs_of
from gprune.tinyvlm import Question, load
from gprune.tinyvlm.model import folder_of
from gprune.training.accuracy import (
    TYPES,
    Encoded,
    Sample,
    encode,
    held_out,
    score,
    with_other_pictures,
)
from gprune.training.card import sums_of

RESULTS = Path("benchmarks/results/tiny_accuracy")
BUDGETS = "0.75,0.5,0.36,0.25,0.11,0.1,0.05"
# Which model it was: the recipe that lies beside its weights, and their checksum.
MODEL = "model.json"
# All tokens, and all tokens of another picture than the one asked about.
FULL, BLIND = "full", "another_picture"
# Questions at a time, where each is asked alone.
BATCH = 32


@dataclass(frozen=True)
class Questions:
    """What was asked.

    Attributes:
        scenes: number of generated pictures, the first ones.
        easy_vqa: number of easy-VQA's pictures, the rest.
        kinds: the types of question.
        asked: for each picture the type of each of its questions, as a place in ``kinds``.
    """

    scenes: int
    easy_vqa: int
    kinds: list[str]
    asked: list[list[int]]

    @classmethod
    def of(cls, samples: Sequence[Sample], scenes: int) -> Questions:
        """Those of `held_out`, of which the first ``scenes`` pictures are generated."""
        asked = [[TYPES.index(item.kind) for item in sample.questions] for sample in samples]
        return cls(scenes, len(samples) - scenes, list(TYPES), asked)

    def tally(self, right: Sequence[bool]) -> Tally:
        """Outcomes of all questions in order, by picture and type."""
        outcome = iter(right)
        records = [
            Record("", str(picture), self.kinds[kind], "", bool(next(outcome)))
            for picture, kinds in enumerate(self.asked)
            for kind in kinds
        ]
        return Tally.of(records, self.kinds)

    def __len__(self) -> int:
        return sum(map(len, self.asked))


def packed(right: Sequence[bool]) -> str:
    """Outcomes as hexadecimal digits, four a digit."""
    return np.packbits(np.asarray(right, dtype=bool)).tobytes().hex()


def unpacked(digits: str, count: int) -> np.ndarray:
    """The ``count`` outcomes in what `packed` returned, bool [count]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))[:count].astype(bool)


def tally(samples: Sequence[Sample], outcomes: Sequence[Sequence[bool]]) -> Tally:
    """The outcomes of `score` by picture and type."""
    return Questions.of(samples, len(samples)).tally([one for many in outcomes for one in many])


def summary(tally: Tally) -> dict[str, object]:
    """Accuracy by type, their mean, and its 95% bootstrap interval, in %."""
    types = dict(zip(TYPES, tally.accuracy.tolist(), strict=True))
    return {"macro": tally.macro, "interval": tally.interval, "types": types}


@torch.inference_mode()
def seen_by(
    pruner: Pruner,
    model: Any,
    processor: Any,
    asked: Sequence[tuple[Image.Image, list[Question]]],
) -> list[VisualTokens]:
    """What a method is shown of each picture when the model is asked the first of its questions."""
    seen: list[VisualTokens] = []

    class Recording(type(pruner)):  # type: ignore[misc]
        def reduce_groups(self, groups: Sequence[VisualTokens]) -> Any:
            seen.extend(groups)
            return super().reduce_groups(groups)

    values = {field.name: getattr(pruner, field.name) for field in dataclasses.fields(pruner)}
    processor.tokenizer.padding_side = "left"
    inputs = prepare(model, processor, [([image], many[0].question) for image, many in asked])
    with Recording(**values)(model):
        model(**inputs, logits_to_keep=1)
    return seen


class Refused(Exception):
    """The tiny model cannot serve a method."""


class Scorer:
    """Answers all questions with one run's method.

    Args:
        samples: pictures with questions.
        scenes: how many of them, the first, are generated.
        work: folder for what is unfinished of methods that cannot be scored in one pass a picture.
        checkpoint: the shipped one by default.
    """

    def __init__(
        self, samples: Sequence[Sample], scenes: int, work: Path, checkpoint: Path | None
    ) -> None:
        self.model, self.processor = load(checkpoint)
        self.samples, self.scenes, self.work = samples, scenes, work
        with torch.inference_mode():
            self.encoded = list(encode(self.model, samples))
        self.recorded: dict[tuple[str, ...], list[Encoded]] = {}

    def right(self, run: Run) -> list[bool]:
        """Whether each question was answered right.

        Raises:
            Refused: the model cannot serve the method.
        """
        if run.method == BLIND:
            outcomes = score(self.model, with_other_pictures(self.samples, self.scenes))
        else:
            try:
                pruner = run.pruner()
                encoded = self.encoded
                if pruner is not None and pruner.signals:
                    encoded = self.with_signals(pruner)
                outcomes = score(self.model, self.samples, pruner, encoded)
            except UnsupportedModelError as refusal:
                raise Refused(f"{type(refusal).__name__}: {refusal}") from None
            except ValueError:
                # It needs more than tokens: a place in the model, or pictures of another size.
                return self.asked_one_by_one(run)
        return [one for many in outcomes for one in many]

    def with_signals(self, pruner: Pruner) -> list[Encoded]:
        """The pictures as the hook shows them to a method that reads more than features.

        One that reads the question sees a picture once for each.
        """
        if pruner.signals not in self.recorded:
            by_question = "text" in pruner.signals
            asked = [
                (sample.image, questions)
                for sample in self.samples
                for questions in (
                    [[one] for one in sample.questions] if by_question else [sample.questions]
                )
            ]
            self.recorded[pruner.signals] = [
                Encoded(
                    seen_by(pruner, self.model, self.processor, part), [many for _, many in part]
                )
                for start in range(0, len(asked), BATCH)
                for part in [asked[start : start + BATCH]]
            ]
        return self.recorded[pruner.signals]

    def asked_one_by_one(self, run: Run) -> list[bool]:
        """As `right`, through ``generate``: much slower, and there for every method."""
        self.processor.tokenizer.padding_side = "left"
        examples = tasks.scenes(self.scenes) + tasks.easy_vqa(len(self.samples) - self.scenes)
        settings = {"scenes": self.scenes, "easy_vqa": len(self.samples) - self.scenes}
        evaluation = Evaluation(
            self.model, self.processor, examples, self.work, settings, batch=BATCH
        )
        evaluation.perform(run)
        if evaluation.failures:
            raise Refused(evaluation.failures[run.label])
        return [line["right"] for line in evaluation.lines(run)]


class Results:
    """The folder of results: questions, model, and one file for each method.

    Raises:
        ValueError: it holds results of other questions or of another model.
    """

    def __init__(self, folder: Path, questions: Questions, model: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, what, content in (
            ("questions.json", "other questions", vars(questions)),
            (MODEL, "another model", model),
        ):
            stored = folder / name
            if not stored.is_file():
                write(stored, content)
            elif json.loads(stored.read_text()) != content:
                raise ValueError(
                    f"out {str(folder)!r} holds results of {what}; take another folder"
                )

    def read(self, method: str) -> dict[str, Any]:
        """What is stored of a method."""
        return read_method(self.folder, method)

    def add(self, run: Run, right: Sequence[bool]) -> None:
        """Stores the outcome of one run."""
        stored = self.read(run.method)
        runs = [*stored["runs"], {"keep": run.keep, "seed": run.seed, "right": packed(right)}]
        runs.sort(key=lambda one: (-one["keep"], one["seed"] or 0))
        write(self.folder / f"{run.method}.json", {"method": run.method, "runs": runs})

    def refuse(self, run: Run, reason: str) -> None:
        """Stores why a method cannot be served."""
        content = {"method": run.method, "runs": [], "refused": reason}
        write(self.folder / f"{run.method}.json", content)

    def missing(self, runs: Sequence[Run]) -> Iterator[Run]:
        """The runs that have not been stored, of methods that have not been refused."""
        for run in runs:
            stored = self.read(run.method)
            done = [(one["keep"], one["seed"]) for one in stored["runs"]]
            if "refused" not in stored and (run.keep, run.seed) not in done:
                yield run


def made_of(checkpoint: Path | None) -> dict[str, Any]:
    """How a checkpoint was made, and the checksum of its weights.

    Args:
        checkpoint: its folder, or a name of `gprune.tinyvlm.model.SHIPPED`; tinyvlm by default.
    """
    folder = folder_of(checkpoint)
    recipe: dict[str, Any] = json.loads((folder / "recipe.json").read_text())
    return {**recipe, "sha256": sums_of(folder)["model.safetensors"]}


def read_questions(folder: Path) -> Questions:
    """What the results in a folder are about."""
    return Questions(**json.loads((folder / "questions.json").read_text()))


def read_method(folder: Path, method: str) -> dict[str, Any]:
    """What is stored of a method, no runs where there is nothing."""
    file = folder / f"{method}.json"
    return json.loads(file.read_text()) if file.is_file() else {"method": method, "runs": []}


def write(file: Path, content: dict[str, Any]) -> None:
    """Writes JSON so that a kill leaves the old file or the new one."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content) + "\n")
    part.replace(file)


def main(
    scenes: Annotated[int, typer.Option(min=1, help="Held-out scenes.")] = 100,
    easy_vqa: Annotated[int, typer.Option(min=1, help="Pictures of easy-VQA's test split.")] = 40,
    keeps: Annotated[str, typer.Option(help="Budgets.")] = BUDGETS,
    names: Annotated[str, typer.Option(help="Methods; all by default.")] = ",".join(methods()),
    checkpoint: Annotated[Path | None, typer.Option(help="Another checkpoint.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Forget what is stored of these methods.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where to write the results.")] = RESULTS,
    work: Annotated[Path, typer.Option(help="For unfinished runs.")] = Path("out/tiny_accuracy"),
) -> None:
    """Score what has not been scored yet: every method at every budget."""
    chosen = names.split(",")
    budgets = [parse_keep(keep) for keep in keeps.split(",")]
    runs = [Run(FULL, 1.0), Run(BLIND, 1.0)]
    for name in chosen:
        runs += [run for run in runs_of([name], budgets) if run.method != FULL]
    quiet_transformers()
    samples = held_out("test", scenes, easy_vqa)
    results = Results(out, Questions.of(samples, scenes), made_of(checkpoint))
    if again:
        for name in chosen:
            (out / f"{name}.json").unlink(missing_ok=True)
    scorer = Scorer(samples, scenes, work, checkpoint)
    refused = set()
    # The bar goes to the terminal alone.
    for run in track(list(results.missing(runs)), "runs", console=Console(stderr=True)):
        if run.method in refused:
            continue
        try:
            results.add(run, scorer.right(run))
        except Refused as refusal:
            refused.add(run.method)
            results.refuse(run, str(refusal))


if __name__ == "__main__":
    typer.run(main)
