"""What ``make newest`` says about failures."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gprune import families
from tests.newest import Recorder, family_of_test, summary


@pytest.mark.parametrize(
    ("nodeid", "family"),
    [
        ("tests/hf/test_a.py::test_b[llava]", "llava"),
        ("tests/hf/test_a.py::test_b[llava_siglip-0.3]", "llava"),
        ("tests/hf/test_a.py::test_b[sdpa-llava_next_video-2]", "llava_next_video"),
        ("tests/hf/test_a.py::test_b[qwen3_vl_moe]", "qwen3_vl_moe"),
        ("tests/hf/test_a.py::test_b[eager]", None),
        ("tests/hf/test_a.py::test_llava", None),
        ("tests/hf/test_a.py", None),
    ],
)
def test_the_family_of_a_test(nodeid, family):
    assert family_of_test(nodeid, families()) == family


def test_every_family_is_recognised():
    for family in families():
        assert family_of_test(f"a.py::b[0.5-{family}-x]", families()) == family


def test_summary():
    recorder = Recorder()
    recorder.ran = 7
    assert summary("transformers 9", recorder, families()) == (
        "transformers 9: 7 tests ran, none failed"
    )
    recorder.failed = dict.fromkeys(
        ["a.py::x[llava]", "a.py::y[qwen2_vl]", "b.py::y[qwen2_vl]", "b.py::z", "c.py"]
    )
    assert summary("transformers 9", recorder, families()).splitlines() == [
        "transformers 9: 5 of 7 tests failed",
        "  families: qwen2_vl (2), of no family (2), llava (1)",
        "  tests: a.py (2), b.py (2), c.py (1)",
    ]


TESTS = """
import pytest

@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_one(name):
    assert name == "llava"

@pytest.mark.xfail(strict=True)
def test_mended():
    pass
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_failures_fail_the_command(tmp_path, workers):
    (tmp_path / "test_good.py").write_text(TESTS)
    (tmp_path / "test_broken.py").write_text("import does_not_exist")
    (tmp_path / "pytest.ini").write_text("[pytest]")
    command = [sys.executable, "-m", "tests.newest", "-q", "-n", workers, "-c"]
    ran = subprocess.run(
        [*command, tmp_path / "pytest.ini", "--continue-on-collection-errors", tmp_path],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("transformers ")
    assert lines[-3].endswith("3 of 3 tests failed")
    assert lines[-2] == "  families: of no family (2), gemma3 (1)"
    assert lines[-1] == "  tests: test_good.py (2), test_broken.py (1)"
