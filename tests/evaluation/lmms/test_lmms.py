"""Compares lmms-eval's command on the tiny model with `gprune eval` on the same questions.

Run by `make test-lmms`, in an environment with lmms-eval.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from gprune import GPrune
from gprune.evaluation.runner import Evaluation
from gprune.evaluation.runs import Run
from gprune.evaluation.tasks import read_jsonl
from gprune.tinyvlm import load
from gprune.tinyvlm.model import checkpoint_folder
from tests.evaluation.lmms.tiny_task import NAME, NEW_TOKENS, write

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed; run make test-lmms")

SCENES = 4
CHECKPOINT = checkpoint_folder()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("task")


@pytest.fixture(scope="module")
def questions(folder):
    return write(folder, SCENES)


@pytest.fixture(scope="module")
def expected(questions, tmp_path_factory):
    """Lines that `gprune eval` stores for the same questions, by method."""
    model, processor = load()
    processor.tokenizer.padding_side = "left"
    examples = read_jsonl(questions)
    out = tmp_path_factory.mktemp("eval")
    evaluation = Evaluation(model, processor, examples, out, {}, max_new_tokens=NEW_TOKENS)
    runs = [Run("full", 1.0), Run("graph_cover", 0.25), Run("l2_norm", 20)]
    for run in runs:
        evaluation.perform(run)
    assert not evaluation.failures
    return {run.method: evaluation.lines(run) for run in runs}


def command(folder, out, arguments, launcher=("-m", "lmms_eval")):
    """Runs lmms-eval's command; returns its results and its samples in the documents' order."""
    settings = f"pretrained={CHECKPOINT},dtype=float32,{arguments}"
    options = ["--model", "gprune", "--model_args", settings, "--tasks", NAME, "--device", "cpu"]
    options += ["--include_path", str(folder), "--batch_size", "5", "--log_samples"]
    environment = os.environ | {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *options, "--output_path", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    found = list(Path(out).rglob("*_results.json"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(found) == 1, done.stdout[-3000:] + done.stderr[-3000:]
    lines = next(Path(out).rglob("*_samples_*.jsonl")).read_text().splitlines()
    samples = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
    return json.loads(found[0].read_text()), samples


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("full", "method=full"),
        ("graph_cover", "method=graph_cover,keep=0.25"),
        ("l2_norm", "method=l2_norm,keep=20"),
    ],
)
def test_the_command_gives_the_same_answers_and_score(
    folder, expected, tmp_path, method, arguments
):
    results, samples = command(folder, tmp_path, arguments)
    lines = expected[method]
    assert [sample["filtered_resps"] for sample in samples] == [
        line["prediction"] for line in lines
    ]
    accuracy = sum(line["right"] for line in lines) / len(lines)
    assert results["results"][NAME]["exact_match,none"] == pytest.approx(accuracy)
    counts = {"full": 256, "graph_cover": 64, "l2_norm": 20}
    assert results["throughput"]["avg_visual_tokens"] == 256
    assert results["throughput"]["avg_kept_tokens"] == counts[method]
    if method == "full":
        assert accuracy > 0.6  # the model needs the pictures for this


def test_two_processes_share_the_documents(folder, expected, tmp_path):
    """accelerate distributes the documents; the results equal those of one process."""
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    launcher += ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
    launcher += ("-m", "lmms_eval")
    results, samples = command(folder, tmp_path, "method=graph_cover,keep=0.25", launcher)
    lines = expected["graph_cover"]
    assert [sample["filtered_resps"] for sample in samples] == [
        line["prediction"] for line in lines
    ]
    accuracy = sum(line["right"] for line in lines) / len(lines)
    assert results["results"][NAME]["exact_match,none"] == pytest.approx(accuracy)


@pytest.fixture(scope="module")
def lmm():
    from lmms_eval.models import get_model

    return get_model("gprune")(str(CHECKPOINT), "gprune", 0.5, dtype="float32", batch_size=2)


def request(content, **options):
    """Returns a request whose document is one user turn, and the content of that turn."""

    def doc_to_messages(doc):
        return [{"role": "user", "content": doc}]

    return SimpleNamespace(args=("", doc_to_messages, options, 0, NAME, "test")), content


def answer(lmm, *pairs):
    """Returns the answers to requests, each given with its content."""
    requests = []
    lmm.task_dict = {NAME: {"test": []}}
    for number, (request, content) in enumerate(pairs):
        lmm.task_dict[NAME]["test"].append(content)
        request.args = (*request.args[:3], number, *request.args[4:])
        requests.append(request)
    return [result.text for result in lmm.generate_until(requests)]


def test_mixed_requests_are_answered_in_order(lmm):
    """Requests with different options, with several pictures, and without a picture."""
    from gprune.tinyvlm import make_scene

    def image(index):
        return {"type": "image", "url": make_scene("test", 0, index).draw()}

    text = {"type": "text", "text": "how many shapes are there?"}
    pairs = [
        request([image(0), text], max_new_tokens=4),
        request([image(1), text], max_new_tokens=1),
        request([image(2), text], max_new_tokens=4),
        request([image(0), image(1), text], max_new_tokens=4),
        request([text], max_new_tokens=4),
    ]
    together = answer(lmm, *pairs)
    assert together == [answer(lmm, pair)[0] for pair in pairs]
    assert together[0].isdigit()


def test_visual_tokens_are_pruned_and_logged(lmm):
    from lmms_eval.models.model_utils.gen_metrics import (
        get_logged_metrics_history,
        reset_logged_metrics,
    )

    reset_logged_metrics()
    image = {"type": "image", "url": Image.new("RGB", (60, 80))}
    text = {"type": "text", "text": "how many shapes are there?"}
    answer(lmm, request([image, text], max_new_tokens=2), request([text], max_new_tokens=2))
    history = get_logged_metrics_history()
    counts = [(entry.get("visual_tokens"), entry.get("kept_tokens")) for entry in history]
    assert counts == [(128, 64)]  # means over a document with a picture and one without


def test_unsupported_requests_are_refused(lmm):
    video = {"type": "video", "url": "film.mp4"}
    with pytest.raises(ValueError, match="has video"):
        answer(lmm, request([video]))
    with pytest.raises(NotImplementedError, match="generate_until"):
        lmm.loglikelihood([])
    with pytest.raises(NotImplementedError, match="generate_until"):
        lmm.generate_until_multi_round([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "gprun"}, "did you mean 'gprune'"),
        ({"keep": 0}, "keep=0"),
        ({"keep": "half"}, "keep='half' is no number"),
        ({"batch_size": "auto"}, "batch_size='auto'"),
        ({"treshold": 0.7}, "treshold=0.7.*threshold"),
        ({"pretrained": "/nowhere"}, "cannot be loaded"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    from gprune.evaluation.lmms.model import PrunedLMM

    with pytest.raises(ValueError, match=message):
        PrunedLMM(**({"pretrained": str(CHECKPOINT), "method": "gprune"} | arguments))


def test_options_of_a_method():
    from gprune.evaluation.lmms.model import make_pruner

    assert make_pruner("gprune", 0.5, {"threshold": 0.7}) == GPrune(0.5, threshold=0.7)
    # lmms-eval converts keep=1 to an int; it means everything, as on our command line.
    assert make_pruner("gprune", 1, {}) == GPrune(1.0)


def test_generation_options_of_a_task():
    from gprune.evaluation.lmms.model import generation_options, truncate

    greedy = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "until": "\n"}
    assert generation_options(greedy) == (
        {"max_new_tokens": 16, "num_beams": 1, "do_sample": False},
        ["\n"],
    )
    sampled, until = generation_options({"temperature": 0.7, "top_p": None, "until": ["a", "b"]})
    assert sampled == {"temperature": 0.7, "max_new_tokens": 1024, "do_sample": True}
    assert until == ["a", "b"]
    assert not generation_options({"temperature": 0.7, "do_sample": False})[0]["do_sample"]
    assert truncate("one two\nthree", ["two", "\n", ""]) == "one"


def test_the_default_attention_kernel_is_kept(lmm):
    assert lmm.model.config._attn_implementation == "sdpa"
    assert lmm.model.dtype == torch.float32
