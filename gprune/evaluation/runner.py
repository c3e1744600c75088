"""Runs methods and budgets over examples, and resumes an interrupted evaluation."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from gprune.ask.prompts import check_template, prepare
from gprune.costs.flops import LanguageModelShape
from gprune.costs.generation import GenerationCost, measure_generation
from gprune.evaluation.metrics import begins_right
from gprune.evaluation.runs import FULL, Run
from gprune.evaluation.summary import missing_data_notes, summarize
from gprune.evaluation.tasks import Example

# Version of the fields of a stored line; a folder with another version is refused.
LINE_FORMAT = 3


class Evaluation:
    """One evaluation in one folder: the predictions of each run, and their results.

    Args:
        model: a supported model, in evaluation mode.
        processor: its processor; the tokenizer must pad on the left.
        examples: the questions.
        folder: where predictions are stored; an unfinished evaluation in it is resumed.
        settings: values that must be equal to resume; stored beside the predictions.
        batch: examples per batch.
        max_new_tokens: most tokens of an answer.
        template: prompt template, see `gprune.ask.prompts.prompt_for`; the model's chat format by
            default.

    Attributes:
        failures: the error message of each failed run, by its label.

    Raises:
        ValueError: the folder holds an evaluation with other settings, or the template has no
            placeholder for the question.
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
        self.failures: dict[str, str] = {}
        generation = {"template": template, "max_new_tokens": max_new_tokens}
        store_settings(folder, {**settings, **generation, "lines": LINE_FORMAT})

    def lines(self, run: Run) -> list[dict[str, Any]]:
        """Reads the stored lines of a run; skips a last line that a kill cut off."""
        file = self.predictions_file(run)
        if not file.is_file():
            return []
        complete = file.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in complete.splitlines()]

    def predictions_file(self, run: Run) -> Path:
        """Returns the path of a run's stored lines."""
        name = re.sub(r"[^\w.-]", "_", run.label)
        return self.folder / "predictions" / f"{name}.jsonl"

    def perform(self, run: Run, advance: Callable[[int], None] = lambda count: None) -> None:
        """Answers the examples of a run that have no stored answer yet.

        An exception is recorded in ``failures`` and, with its traceback, in the folder; it does not
        stop other runs.

        Args:
            run: the run.
            advance: called with the number of newly finished examples.
        """
        done = self.lines(run)
        file = self.predictions_file(run)
        file.write_text("".join(json.dumps(line) + "\n" for line in done))
        finished = {line["id"] for line in done}
        advance(len(finished))
        trace = self.folder / f"{run.label}.traceback.txt"
        trace.unlink(missing_ok=True)
        remaining = [example for example in self.examples if example.id not in finished]
        try:
            with file.open("a") as stream:
                for start in range(0, len(remaining), self.batch):
                    batch = remaining[start : start + self.batch]
                    for line in self.answer_batch(run, batch):
                        stream.write(json.dumps(line) + "\n")
                    stream.flush()
                    advance(len(batch))
        except Exception as error:  # a failing method must not lose the results of the others
            self.failures[run.label] = f"{type(error).__name__}: {error}"
            trace.write_text(traceback.format_exc())

    @torch.inference_mode()
    def answer_batch(self, run: Run, batch: Sequence[Example]) -> list[dict[str, Any]]:
        """Generates the answers of a batch; returns the line to store for each example."""
        prompts = [(example.load(), example.question) for example in batch]
        inputs = prepare(self.model, self.processor, prompts, self.template)
        pruner = run.pruner()
        options = {"do_sample": False, "max_new_tokens": self.max_new_tokens}
        with nullcontext() if pruner is None else pruner(self.model) as pruned:
            with measure_generation(self.model, pruner) as cost:
                ids = self.model.generate(**inputs, **options)
            dropped = [0] * len(batch) if pruned is None else pruned.dropped
            by_layer = None if pruned is None else pruned.visual_by_layer
        predictions = self.processor.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        visual = (inputs["input_ids"] == self.model.config.image_token_id).sum(1).tolist()
        prompt = inputs["attention_mask"].sum(1).tolist()
        return [
            {
                **score_example(example, predictions[row]),
                "visual_tokens": visual[row],
                "kept_tokens": visual[row] - dropped[row],
                "text_tokens": prompt[row] - visual[row],
                **({} if by_layer is None else {"visual_by_layer": by_layer[row]}),
                **cost_per_example(cost, len(batch)),
            }
            for row, example in enumerate(batch)
        ]

    def finished(self, runs: Sequence[Run]) -> dict[Run, list[dict[str, Any]]]:
        """Returns the lines of the runs that have answered every example."""
        lines = {run: self.lines(run) for run in runs}
        return {run: stored for run, stored in lines.items() if len(stored) == len(self.examples)}

    def results(self, runs: Sequence[Run]) -> dict[str, Any]:
        """Returns accuracy, uncertainty and cost of every method and budget (``results.json``).

        Raises:
            ValueError: the unpruned run, the reference of all others, is not finished.
        """
        finished = self.finished(runs)
        if not any(run.method == FULL for run in finished):
            reason = self.failures.get(FULL, "it is not finished")
            raise ValueError(f"the unpruned run has no results: {reason}")
        kinds = list(dict.fromkeys(example.kind for example in self.examples))
        shape = LanguageModelShape.from_config(self.model.config)
        rows = summarize(finished, kinds, shape, self.model.dtype.itemsize)
        return {
            "settings": json.loads((self.folder / "settings.json").read_text()),
            "examples": len(self.examples),
            "pictures": len({example.picture for example in self.examples}),
            "kinds": kinds,
            "rows": rows,
            "notes": missing_data_notes(rows),
            "failures": self.failures,
        }


def require_no_loss(folder: Path, runs: Sequence[Run]) -> None:
    """Checks that new results hold every row of those that a folder has.

    Raises:
        ValueError: a method or a budget is missing, so its stored row would be lost.
    """
    file = folder / "results.json"
    if not file.is_file():
        return
    new = {(run.method, run.keep) for run in runs}
    rows = json.loads(file.read_text())["rows"]
    lost = [
        f"{row['method']} {row['keep']}" for row in rows if (row["method"], row["keep"]) not in new
    ]
    if lost:
        raise ValueError(
            f"out {str(folder)!r} holds results of {', '.join(lost)}, which would be lost: add "
            "them to --methods and --keep, choose another folder, or pass --overwrite"
        )


def remove_evaluation(folder: Path) -> None:
    """Removes what an evaluation stored in its folder, and nothing else."""
    files = ["settings.json", "results.json", "report.html"]
    for file in [folder / name for name in files]:
        file.unlink(missing_ok=True)
    for file in [*(folder / "predictions").glob("*.jsonl"), *folder.glob("*.traceback.txt")]:
        file.unlink()


def store_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Creates an evaluation's folder and stores its settings.

    Raises:
        ValueError: the folder holds an evaluation with other settings.
    """
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    if file.is_file() and json.loads(file.read_text()) != settings:
        raise ValueError(
            f"out {str(folder)!r} holds an evaluation with other settings; choose another folder, "
            "repeat the options of that evaluation, or pass --overwrite"
        )
    file.write_text(json.dumps(settings, indent=2) + "\n")


def score_example(example: Example, prediction: str) -> dict[str, Any]:
    """Returns the fields of a stored line that identify the example and score its answer."""
    return {
        "id": example.id,
        "picture": example.picture,
        "kind": example.kind,
        "prediction": prediction.strip(),
        "right": example.match(prediction, example.answers),
        "begins_right": begins_right(prediction, example.answers, example.match),
    }


def cost_per_example(cost: GenerationCost, batch: int) -> dict[str, Any]:
    """Returns the cost fields of a stored line.

    Times and cache bytes are divided by the number of examples in the batch; memory is that of the
    whole batch.
    """
    decode = cost.decode_step
    peak, before = cost.memory_peak, cost.memory_before
    return {
        "ms_an_answer": 1000 * cost.seconds / batch,
        "prefill_ms": 1000 * cost.prefill / batch,
        "method_ms": 1000 * cost.selection / batch,
        "decode_ms_a_token": None if decode is None else 1000 * decode / batch,
        "kv_bytes": cost.kv_bytes / batch,
        "memory_peak": peak,
        "memory_growth": None if peak is None or before is None else peak - before,
    }
