"""lmms-eval's own command with the tiny model, against `gprune eval` on the same questions.

Run by `make test-lmms`, in an environment that has lmms-eval.
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
from gprune.evaluation.runner import Evaluation, Run
from gprune.evaluation.tasks import read_jsonl
from gprune.tinyvlm import load
from gprune.tinyvlm.model import checkpoint_folder
from tests.evaluation.lmms.tiny_task import NAME, NEW_TOKENS, write

pytest.importorskip("lmms_eval", reason="make test-lmms has its own environment")

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
    """What `gprune eval` gets of the same questions, by method."""
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
    """Runs lmms-eval's command; returns its results and its samples by document."""
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
def test_its_own_command(folder, expected, tmp_path, method, arguments):
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
        assert accuracy > 0.6  # the model sees the pictures


def test_two_processes_share_the_documents(folder, expected, tmp_path):
    """accelerate deals the documents out; the results are those of one process."""
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
    """A request whose document is one user turn."""

    def doc_to_messages(doc):
        return [{"role": "user", "content": doc}]

    return SimpleNamespace(args=("", doc_to_messages, options, 0, NAME, "test")), content


def asked(lmm, *pairs):
    """Answers to requests, each with its content."""
    requests = []
    lmm.task_dict = {NAME: {"test": []}}
    for number, (made, content) in enumerate(pairs):
        lmm.task_dict[NAME]["test"].append(content)
        made.args = (*made.args[:3], number, *made.args[4:])
        requests.append(made)
    return [result.text for result in lmm.generate_until(requests)]


def test_requests_of_every_kind(lmm):
    """Other options in another batch, several pictures, none: answers come in the order asked."""
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
    together = asked(lmm, *pairs)
    assert together == [asked(lmm, pair)[0] for pair in pairs]
    assert together[0].isdigit()


def test_it_prunes(lmm):
    from lmms_eval.models.model_utils.gen_metrics import (
        get_logged_metrics_history,
        reset_logged_metrics,
    )

    reset_logged_metrics()
    image = {"type": "image", "url": Image.new("RGB", (60, 80))}
    text = {"type": "text", "text": "how many shapes are there?"}
    asked(lmm, request([image, text], max_new_tokens=2), request([text], max_new_tokens=2))
    history = get_logged_metrics_history()
    counts = [(one.get("visual_tokens"), one.get("kept_tokens")) for one in history]
    assert counts == [(128, 64)]  # means of a document with a picture and one without


def test_what_it_does_not_take_is_refused(lmm):
    video = {"type": "video", "url": "film.mp4"}
    with pytest.raises(ValueError, match="has video"):
        asked(lmm, request([video]))
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
def test_bad_arguments(arguments, message):
    from gprune.evaluation.lmms.model import PrunedLMM

    with pytest.raises(ValueError, match=message):
        PrunedLMM(**({"pretrained": str(CHECKPOINT), "method": "gprune"} | arguments))


def test_arguments_of_a_method():
    from gprune.evaluation.lmms.model import pruner_of

    assert pruner_of("gprune", 0.5, {"threshold": 0.7}) == GPrune(0.5, threshold=0.7)
    # lmms-eval turns keep=1 into an int: everything, as on our own command line.
    assert pruner_of("gprune", 1, {}) == GPrune(1.0)


def test_options_of_a_task():
    from gprune.evaluation.lmms.model import cut, options_of

    greedy = {"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "until": "\n"}
    assert options_of(greedy) == (
        {"max_new_tokens": 16, "num_beams": 1, "do_sample": False},
        ["\n"],
    )
    sampled, until = options_of({"temperature": 0.7, "top_p": None, "until": ["a", "b"]})
    assert sampled == {"temperature": 0.7, "max_new_tokens": 1024, "do_sample": True}
    assert until == ["a", "b"]
    assert not options_of({"temperature": 0.7, "do_sample": False})[0]["do_sample"]
    assert cut("one two\nthree", ["two", "\n", ""]) == "one"


def test_no_attention_kernel_is_changed_unasked(lmm):
    assert lmm.model.config._attn_implementation == "sdpa"
    assert lmm.model.dtype == torch.float32
