"""Measures every method on the shipped tiny VLM: python benchmarks/tiny_accuracy.py

Scores each method at each budget on held-out scenes and the official easy-VQA test split; random
selection with three seeds. Stores the outcome of every question in one file per method, so that a
killed run continues where it stopped and methods can be run one by one. `leaderboard.py` makes the
tables.
"""

from __future__ import annotations

import dataclasses
import itertools
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
from gprune.ask.loading import quiet_transformers
from gprune.ask.prompts import prepare
from gprune.budget import parse_keep
from gprune.evaluation import tasks
from gprune.evaluation.metrics import Record, Tally
from gprune.evaluation.runner import Evaluation
from gprune.evaluation.runs import FULL, Run, plan_runs
from gprune.tinyvlm import Question, load
from gprune.tinyvlm.model import resolve_checkpoint
from gprune.training.accuracy import (
    TYPES,
    Encoded,
    Sample,
    encode,
    held_out,
    score,
    with_other_pictures,
)
from gprune.training.card import checksums

RESULTS = Path("benchmarks/results/tiny_accuracy")
BUDGETS = "0.75,0.5,0.36,0.25,0.11,0.1,0.05"
# File with the model's recipe and the checksum of its weights.
MODEL = "model.json"
# Name of the run with all tokens of another picture; FULL is the run with all tokens.
BLIND = "another_picture"
# Batch size where every question is asked alone.
BATCH = 32


@dataclass(frozen=True)
class Questions:
    """The questions that were scored; the fields are the keys of ``questions.json``.

    Attributes:
        scenes: number of generated pictures, the first ones.
        easy_vqa: number of easy-VQA pictures, the rest.
        kinds: the question types.
        asked: for each picture the type of each of its questions, as an index into ``kinds``.
    """

    scenes: int
    easy_vqa: int
    kinds: list[str]
    asked: list[list[int]]

    @classmethod
    def of(cls, samples: Sequence[Sample], scenes: int) -> Questions:
        """Describes samples, of which the first ``scenes`` are generated."""
        asked = [[TYPES.index(item.kind) for item in sample.questions] for sample in samples]
        return cls(scenes, len(samples) - scenes, list(TYPES), asked)

    def tally(self, right: Sequence[bool]) -> Tally:
        """Tallies the outcomes of all questions, given in order, by picture and type."""
        outcomes = iter(right)
        records = [
            Record("", str(picture), self.kinds[kind], "", bool(next(outcomes)))
            for picture, kinds in enumerate(self.asked)
            for kind in kinds
        ]
        return Tally.from_records(records, self.kinds)

    def __len__(self) -> int:
        return sum(map(len, self.asked))


def packed(right: Sequence[bool]) -> str:
    """Packs outcomes into hexadecimal digits, four per digit."""
    return np.packbits(np.asarray(right, dtype=bool)).tobytes().hex()


def unpacked(digits: str, count: int) -> np.ndarray:
    """Unpacks ``count`` outcomes that `packed` returned, bool [count]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))[:count].astype(bool)


def tally(samples: Sequence[Sample], outcomes: Sequence[Sequence[bool]]) -> Tally:
    """Tallies the outcomes of `score` by picture and type."""
    return Questions.of(samples, len(samples)).tally(list(itertools.chain(*outcomes)))


def summary(tally: Tally) -> dict[str, object]:
    """Returns accuracy by type, their mean, and its 95% bootstrap interval, in %."""
    types = dict(zip(TYPES, tally.accuracy.tolist(), strict=True))
    return {"macro": tally.macro, "interval": tally.interval, "types": types}


@torch.inference_mode()
def record_tokens(
    pruner: Pruner,
    model: Any,
    processor: Any,
    prompts: Sequence[tuple[Image.Image, list[Question]]],
) -> list[VisualTokens]:
    """Records the tokens that a method receives in a prefill with a picture's first question."""
    recorded: list[VisualTokens] = []

    class Recorder(type(pruner)):  # type: ignore[misc]
        def reduce_groups(self, groups: Sequence[VisualTokens]) -> Any:
            recorded.extend(groups)
            return super().reduce_groups(groups)

    values = {field.name: getattr(pruner, field.name) for field in dataclasses.fields(pruner)}
    processor.tokenizer.padding_side = "left"
    inputs = prepare(
        model, processor, [([image], questions[0].question) for image, questions in prompts]
    )
    with Recorder(**values)(model):
        model(**inputs, logits_to_keep=1)
    return recorded


class Refused(Exception):
    """The tiny model does not support a method."""


class Scorer:
    """Scores all questions with the method of a run.

    Args:
        samples: pictures with questions.
        scenes: how many of them, the first, are generated.
        work: folder for unfinished runs of methods that need `generate`.
        checkpoint: of the model; None is the shipped one.
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
        """Returns whether each question is answered right.

        Raises:
            Refused: the model does not support the method.
        """
        if run.method == BLIND:
            outcomes = score(self.model, with_other_pictures(self.samples, self.scenes))
        else:
            try:
                pruner = run.pruner()
                encoded = self.encoded
                if pruner is not None and (pruner.signals or pruner.optional_signals):
                    encoded = self.with_signals(pruner)
                outcomes = score(self.model, self.samples, pruner, encoded)
            except UnsupportedModelError as refusal:
                raise Refused(f"{type(refusal).__name__}: {refusal}") from None
            except ValueError:
                # It needs more than tokens: the model's layers, or pictures of another size.
                return self.generate_answers(run)
        return list(itertools.chain(*outcomes))

    def with_signals(self, pruner: Pruner) -> list[Encoded]:
        """Returns the tokens with the signals that a method reads, recorded in the model.

        A method that reads the question gets a picture once per question.
        """
        names = (*pruner.signals, *pruner.optional_signals)
        if names not in self.recorded:
            by_question = "text" in pruner.signals
            prompts = [
                (sample.image, questions)
                for sample in self.samples
                for questions in (
                    [[question] for question in sample.questions]
                    if by_question
                    else [sample.questions]
                )
            ]
            self.recorded[names] = [
                Encoded(
                    record_tokens(pruner, self.model, self.processor, part),
                    [questions for _, questions in part],
                )
                for start in range(0, len(prompts), BATCH)
                for part in [prompts[start : start + BATCH]]
            ]
        return self.recorded[names]

    def generate_answers(self, run: Run) -> list[bool]:
        """Scores a run with ``generate``, which is much slower but supports every method."""
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
    """A folder of results: questions, model, and one file per method.

    Raises:
        ValueError: the folder holds results of other questions or of another model.
    """

    def __init__(self, folder: Path, questions: Questions, model: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, difference, content in (
            ("questions.json", "other questions", vars(questions)),
            (MODEL, "another model", model),
        ):
            stored = folder / name
            if not stored.is_file():
                write(stored, content)
            elif json.loads(stored.read_text()) != content:
                raise ValueError(
                    f"out {str(folder)!r} holds results of {difference}; take another folder"
                )

    def read(self, method: str) -> dict[str, Any]:
        """Returns the stored results of a method."""
        return read_method(self.folder, method)

    def add(self, run: Run, right: Sequence[bool]) -> None:
        """Stores the outcomes of a run."""
        stored = self.read(run.method)
        runs = [*stored["runs"], {"keep": run.keep, "seed": run.seed, "right": packed(right)}]
        runs.sort(key=lambda stored_run: (-stored_run["keep"], stored_run["seed"] or 0))
        write(self.folder / f"{run.method}.json", {"method": run.method, "runs": runs})

    def refuse(self, run: Run, reason: str) -> None:
        """Stores why a method is not supported."""
        content = {"method": run.method, "runs": [], "refused": reason}
        write(self.folder / f"{run.method}.json", content)

    def missing(self, runs: Sequence[Run]) -> Iterator[Run]:
        """Yields the runs without stored outcomes, of methods that are not refused."""
        for run in runs:
            stored = self.read(run.method)
            done = [(other["keep"], other["seed"]) for other in stored["runs"]]
            if "refused" not in stored and (run.keep, run.seed) not in done:
                yield run


def model_record(checkpoint: Path | None) -> dict[str, Any]:
    """Returns the recipe of a checkpoint and the checksum of its weights.

    Args:
        checkpoint: a folder, or one of `gprune.tinyvlm.model.SHIPPED`; None is tinyvlm.
    """
    folder = resolve_checkpoint(checkpoint)
    recipe: dict[str, Any] = json.loads((folder / "recipe.json").read_text())
    return {**recipe, "sha256": checksums(folder)["model.safetensors"]}


def read_questions(folder: Path) -> Questions:
    """Reads which questions the results in a folder are about."""
    return Questions(**json.loads((folder / "questions.json").read_text()))


def read_method(folder: Path, method: str) -> dict[str, Any]:
    """Reads the results of a method; without a file there are no runs."""
    file = folder / f"{method}.json"
    return json.loads(file.read_text()) if file.is_file() else {"method": method, "runs": []}


def write(file: Path, content: dict[str, Any]) -> None:
    """Writes JSON; a killed process leaves either the old file or the new one."""
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
        bool, typer.Option("--again", help="Delete the stored results of these methods.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where to write the results.")] = RESULTS,
    work: Annotated[Path, typer.Option(help="For unfinished runs.")] = Path("out/tiny_accuracy"),
) -> None:
    """Score every method at every budget, without the runs that have stored outcomes."""
    chosen = names.split(",")
    budgets = [parse_keep(keep) for keep in keeps.split(",")]
    runs = [Run(FULL, 1.0), Run(BLIND, 1.0)]
    for name in chosen:
        runs += [run for run in plan_runs([name], budgets) if run.method != FULL]
    quiet_transformers()
    samples = held_out("test", scenes, easy_vqa)
    results = Results(out, Questions.of(samples, scenes), model_record(checkpoint))
    if again:
        for name in chosen:
            (out / f"{name}.json").unlink(missing_ok=True)
    scorer = Scorer(samples, scenes, work, checkpoint)
    refused = set()
    # On stderr, so that stdout stays empty.
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
