"""Runs methods and budgets over examples; what is finished is never done again."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gprune.ask.prompts import check_template, prepare
from gprune.costs.flops import LanguageModelShape
from gprune.costs.generation import Cost, measured
from gprune.evaluation.metrics import begins_right
from gprune.evaluation.summary import notes, summary
from gprune.evaluation.tasks import Example
from gprune.pruners import Pruner, make

# Random selection is averaged over these seeds.
RANDOM_SEEDS = (0, 1, 2)

# What a stored line holds; a folder with other lines is refused instead of mixed.
LINES = 3


@dataclass(frozen=True)
class Run:
    """One pass over the examples.

    Attributes:
        method: a method's name, or ``full`` without pruning.
        keep: its budget.
        seed: for random selection.
    """

    method: str
    keep: float | int
    seed: int | None = None

    @property
    def label(self) -> str:
        """A name for people and files."""
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return self.method if self.method == "full" else f"{self.method}-{self.keep}{seed}"

    def pruner(self) -> Pruner | None:
        """The method, or None without pruning."""
        if self.method == "full":
            return None
        options = {} if self.seed is None else {"seed": self.seed}
        return make(self.method, keep=self.keep, **options)


def runs_of(methods: Sequence[str], keeps: Sequence[float | int]) -> list[Run]:
    """The unpruned run, then every method at every budget.

    Raises:
        ValueError: a method is unknown, or a budget out of range.
    """
    runs = [Run("full", 1.0)]
    for keep in keeps:
        for method in methods:
            seeds = RANDOM_SEEDS if method == "random" else (None,)
            runs += [Run(method, keep, seed) for seed in seeds]
    for run in runs:
        run.pruner()  # bad names and budgets are found before the first hour of work
    return runs


class Evaluation:
    """One evaluation in one folder: predictions of each run, results and report.

    Args:
        model: a supported model, in evaluation mode.
        processor: its processor.
        examples: what to ask.
        folder: an unfinished evaluation there goes on where it stopped.
        settings: what must be the same for that; stored beside the predictions.
        batch: examples at a time.
        max_new_tokens: longest answer.
        template: of the prompts, see `gprune.ask.prompts.prompt_for`; the model's chat format by
            default.

    Raises:
        ValueError: the folder holds an evaluation with other settings, or the template has no
            place for the question.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        examples: Sequence[Example],
        folder: Path,
        settings: dict[str, Any],
        batch: int = 16,
        max_new_tokens: int = 32,
        template: str | None = None,
    ) -> None:
        check_template(template)
        self.model, self.processor, self.examples = model, processor, list(examples)
        self.folder, self.batch, self.max_new_tokens = folder, batch, max_new_tokens
        self.template = template
        settings = {
            **settings,
            "template": template,
            "max_new_tokens": max_new_tokens,
            "lines": LINES,
        }
        (folder / "predictions").mkdir(parents=True, exist_ok=True)
        stored = folder / "settings.json"
        if stored.is_file() and json.loads(stored.read_text()) != settings:
            raise ValueError(
                f"out {str(folder)!r} holds an evaluation with other settings; take another folder "
                "or the options it was started with"
            )
        stored.write_text(json.dumps(settings, indent=2) + "\n")
        self.failures: dict[str, str] = {}

    def lines(self, run: Run) -> list[dict[str, Any]]:
        """What a run has finished so far; a line torn by a kill is left out."""
        file = self._file(run)
        if not file.is_file():
            return []
        whole = file.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def _file(self, run: Run) -> Path:
        name = re.sub(r"[^\w.-]", "_", run.label)
        return self.folder / "predictions" / f"{name}.jsonl"

    def perform(self, run: Run, advance: Callable[[int], None] = lambda count: None) -> None:
        """Answers what a run has not answered yet; a failure is noted and does not stop others.

        Args:
            run: what to run.
            advance: told how many examples are done.
        """
        done = self.lines(run)
        file = self._file(run)
        file.write_text("".join(json.dumps(line) + "\n" for line in done))
        finished = {line["id"] for line in done}
        advance(len(finished))
        trace = self.folder / f"{run.label}.traceback.txt"
        trace.unlink(missing_ok=True)
        rest = [example for example in self.examples if example.id not in finished]
        try:
            with file.open("a") as stream:
                for start in range(0, len(rest), self.batch):
                    part = rest[start : start + self.batch]
                    for line in self._answer(run, part):
                        stream.write(json.dumps(line) + "\n")
                    stream.flush()
                    advance(len(part))
        except Exception as error:  # one method's crash must not lose the others' results
            self.failures[run.label] = f"{type(error).__name__}: {error}"
            trace.write_text(traceback.format_exc())

    @torch.inference_mode()
    def _answer(self, run: Run, part: Sequence[Example]) -> Iterator[dict[str, Any]]:
        asked = [(example.load(), example.question) for example in part]
        inputs = prepare(self.model, self.processor, asked, self.template)
        pruner = run.pruner()
        options = {"do_sample": False, "max_new_tokens": self.max_new_tokens}
        with nullcontext() if pruner is None else pruner(self.model) as pruned:
            with measured(self.model, pruner) as cost:
                ids = self.model.generate(**inputs, **options)
            dropped = [0] * len(part) if pruned is None else pruned.dropped
            by_layer = None if pruned is None else pruned.visual_by_layer
        shares = shares_of(cost, len(part))
        said = self.processor.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        placeholders = inputs["input_ids"] == self.model.config.image_token_id
        for row, example in enumerate(part):
            visual = int(placeholders[row].sum())
            yield {
                "id": example.id,
                "picture": example.picture,
                "kind": example.kind,
                "prediction": said[row].strip(),
                "right": example.match(said[row], example.answers),
                "begins_right": begins_right(said[row], example.answers, example.match),
                "visual_tokens": visual,
                "kept_tokens": visual - dropped[row],
                "text_tokens": int(inputs["attention_mask"][row].sum()) - visual,
                **({} if by_layer is None else {"visual_by_layer": by_layer[row]}),
                **shares,
            }

    def finished(self, runs: Sequence[Run]) -> dict[Run, list[dict[str, Any]]]:
        """The lines of those runs that have answered everything."""
        lines = {run: self.lines(run) for run in runs}
        return {run: done for run, done in lines.items() if len(done) == len(self.examples)}

    def results(self, runs: Sequence[Run]) -> dict[str, Any]:
        """Accuracy, uncertainty and cost of every method and budget, as stored in results.json.

        Raises:
            ValueError: the unpruned run, which all others are compared with, is not finished.
        """
        finished = self.finished(runs)
        full = next((run for run in finished if run.method == "full"), None)
        if full is None:
            reason = self.failures.get("full", "it is not finished")
            raise ValueError(f"the unpruned run has no results: {reason}")
        kinds = list(dict.fromkeys(example.kind for example in self.examples))
        shape = LanguageModelShape.from_config(self.model.config)
        rows = summary(finished, kinds, shape, self.model.dtype.itemsize)
        return {
            "settings": json.loads((self.folder / "settings.json").read_text()),
            "examples": len(self.examples),
            "pictures": len({example.picture for example in self.examples}),
            "kinds": kinds,
            "rows": rows,
            "notes": notes(rows),
            "failures": self.failures,
        }


def shares_of(cost: Cost, rows: int) -> dict[str, Any]:
    """What a line stores of a batch's cost: times and cache bytes are one example's share."""
    decode = cost.decode
    peak, before = cost.memory_peak, cost.memory_before
    return {
        "ms_an_answer": 1000 * cost.seconds / rows,
        "prefill_ms": 1000 * cost.prefill / rows,
        "method_ms": 1000 * cost.method / rows,
        "decode_ms_a_token": None if decode is None else 1000 * decode / rows,
        "kv_bytes": cost.kv_bytes / rows,
        "memory_peak": peak,
        "memory_growth": None if peak is None or before is None else peak - before,
    }
