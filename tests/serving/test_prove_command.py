"""`gprune prove --engine vllm`: its output, its exit codes and bad use. No vLLM."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gprune.cli import app
from gprune.proof.results import Result, Verdict
from gprune.serving import command
from gprune.serving.proof import prove
from gprune.serving.proof.claims import CHUNK_OPTION
from gprune.serving.proof.runs import Job

HELD = Result("engines", Verdict.PASSED, "vLLM answers as transformers", 1e-6, 0.02)
BROKEN = Result("choice", Verdict.FAILED, "of 64 visual tokens 2 are kept by only one", 2, 0)


class Proof:
    """Stands in for the engines: returns results and remembers what it was asked."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results, self.jobs, self.where = results, [], ()

    def __call__(self, job: Job, *where: Any, report: Any) -> Sequence[Result]:
        report("stock vLLM")
        assert Path(job.model, "config.json").is_file()
        self.jobs.append(job)
        self.where = where[:2]
        return self.results


def run(monkeypatch: Any, results: Sequence[Result], *arguments: str) -> tuple[Any, Proof]:
    proof = Proof(results)
    monkeypatch.setattr(prove, "prove_served", proof)
    monkeypatch.setattr(command, "vllm_version", lambda: "0.33.0")
    return CliRunner().invoke(app, ["prove", "--engine", "vllm", *arguments]), proof


def test_a_proof_that_holds(monkeypatch: Any) -> None:
    result, proof = run(monkeypatch, [HELD], "--json", "--keep", "0.25", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["model"] == "tinyvlm"
    assert values["passed"] is True
    assert values["versions"]["vllm"] == "0.33.0"
    assert values["results"][0]["claim"] == "engines"
    (job,) = proof.jobs
    assert (job.settings.keep, job.settings.method) == (0.25, "recommended")
    assert len(job.prompts) == 5
    assert sorted(len(prompt.images) for prompt in job.prompts) == [0, 1, 1, 1, 2]
    assert job.options[CHUNK_OPTION] < 256
    assert proof.where == ("float32", "cpu")
    # The shipped model was copied into vLLM's format, and the copy is gone.
    assert not Path(job.model).exists()


def test_a_claim_that_fails_gives_exit_code_1(monkeypatch: Any) -> None:
    result, _ = run(monkeypatch, [HELD, BROKEN], "tinyvlm", "--dtype", "float32")
    assert result.exit_code == 1
    assert "failed" in result.output
    assert "tinyvlm: 1 passed, 1 failed" in result.output


def test_images_and_options_of_the_user(monkeypatch: Any, tmp_path: Path) -> None:
    from gprune.serving.proof.prompts import picture

    paths = [tmp_path / f"{seed}.png" for seed in range(2)]
    for seed, path in enumerate(paths):
        picture(seed, 40, 30).save(path)
    own = [part for path in paths for part in ("--images", str(path))]
    options = ["--engine-options", '{"gpu_memory_utilization": 0.5, "seed": 7}']
    result, proof = run(monkeypatch, [HELD], *own, *options, "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    (job,) = proof.jobs
    assert job.options["gpu_memory_utilization"] == 0.5
    assert job.options["seed"] == 7
    assert job.options["dtype"] == "bfloat16"
    assert job.prompts[0].images[0].size == (40, 30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "sglang"], "--engine sglang is unknown; choose from transformers, vllm"),
        (["--engine-options", "{"], "is no JSON"),
        (["--engine-options", "[1]"], "is no JSON object"),
        (["--family", "llava"], "--family and --attention are for --engine transformers"),
        (["--attention", "eager"], "--family and --attention are for --engine transformers"),
        (["--engine", "transformers", "--engine-options", "{}"], "needs --engine vllm"),
        (["--dtype", "float64"], "dtype='float64' is not served"),
        (["--method", "visionzip"], "needs more than the projected features"),
        (["--keep", "1.5"], "keep=1.5"),
        (["--images", "absent.png"], "does not exist"),
        (["no-such-model"], "cannot be loaded"),
    ],
)
def test_bad_use_gives_one_sentence_and_exit_code_2(
    monkeypatch: Any, arguments: list[str], message: str
) -> None:
    result, proof = run(monkeypatch, [HELD], *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not proof.jobs


def test_a_family_that_is_not_served_is_refused(monkeypatch: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "paligemma"}))
    result, _ = run(monkeypatch, [HELD], str(tmp_path))
    assert result.exit_code == 2
    assert "paligemma" in result.output
    assert "qwen2_5_vl" in result.output


def test_a_picture_in_one_colour_is_refused(monkeypatch: Any, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    result, _ = run(monkeypatch, [HELD], "--images", str(tmp_path / "black.png"))
    assert result.exit_code == 2
    assert "fewer than 5 different pictures" in result.output


def test_without_vllm_the_error_names_the_package(monkeypatch: Any) -> None:
    monkeypatch.setattr(command.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["prove", "--engine", "vllm"])
    assert result.exit_code == 2
    assert "pip install 'vllm>=0.32.0,<0.34.0'" in result.output
