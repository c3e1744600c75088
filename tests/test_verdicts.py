"""Verdicts on disk: what is stored is read back, and nothing else is taken for a verdict."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gprune import verdicts
from gprune.verdicts import SCHEMA, StoredVerdict, VerdictKey, parse, read, store, stored

LLAVA = VerdictKey("llava", "0.1.0", "5.25.0", "2.13.0+cpu")
PASSED = StoredVerdict(LLAVA, True, (), "2026-11-28T12:00:00+00:00", 3.5)
FAILED = replace(PASSED, passed=False, failures=("masked: off by 0.3", "beams: shape"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache directory, which does not exist yet."""
    path = tmp_path / "cache" / "proofs"
    monkeypatch.setattr(verdicts, "folder", lambda: path)
    return path


def as_json(verdict):
    return {"schema": SCHEMA, **json.loads(json.dumps(asdict(verdict)))}


@pytest.mark.parametrize("verdict", [PASSED, FAILED])
def test_a_stored_verdict_is_read_back(folder, verdict):
    assert read(LLAVA) is None
    path = store(verdict)
    assert path.parent == folder
    assert json.loads(path.read_text()) == as_json(verdict)
    assert read(LLAVA) == verdict
    assert stored() == ([verdict], [])
    assert list(folder.iterdir()) == [path]  # no temporary file is left


def test_a_later_verdict_replaces_an_earlier_one(folder):
    store(FAILED)
    store(PASSED)
    assert stored() == ([PASSED], [])


def test_every_version_and_family_has_a_verdict_of_its_own(folder):
    store(PASSED)
    for field in asdict(LLAVA):
        other = replace(LLAVA, **{field: "9.9"})
        assert read(other) is None
        store(replace(FAILED, key=other))
    assert read(LLAVA) == PASSED
    assert len(stored()[0]) == 5


def test_file_names_are_plain(folder):
    odd = replace(LLAVA, torch="1!2.0 a/b\\..")
    assert odd.path.parent == folder
    assert odd.path.name == "llava-gprune-0.1.0-transformers-5.25.0-torch-1_2.0_a_b_...json"
    store(replace(PASSED, key=odd))
    assert read(odd).key == odd
    # Another key with the same file name is not mistaken for it.
    assert read(replace(odd, torch="1_2.0 a/b\\..")) is None


def changed(path, value):
    """The JSON of a good verdict with one value changed; DELETE takes it out."""
    data = as_json(FAILED)
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is DELETE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(data)


DELETE = object()
BAD = {
    "empty": "",
    "half written": json.dumps(as_json(PASSED))[:40],
    "no object": "[1]",
    "null": "null",
    "nested": "[" * 100_000,
    "NaN": changed(["seconds"], float("nan")).replace("NaN", "Na"),
    "another schema": changed(["schema"], SCHEMA + 1),
    "no schema": changed(["schema"], DELETE),
    "no key": changed(["key"], DELETE),
    "key is text": changed(["key"], "llava"),
    "a version is missing": changed(["key", "torch"], DELETE),
    "a version too many": changed(["key", "vllm"], "1"),
    "a version is a number": changed(["key", "torch"], 2.13),
    "passed is a number": changed(["passed"], 1),
    "passed with failures": changed(["passed"], True),
    "failed without failures": changed(["failures"], []),
    "failures is text": changed(["failures"], "masks"),
    "a failure is a number": changed(["failures"], ["masks", 3]),
    "no time": changed(["when"], DELETE),
    "another time": changed(["when"], "yesterday"),
    "seconds is text": changed(["seconds"], "3"),
    "a field too many": changed(["more"], 1),
    "another key": changed(["key", "family"], "llava_next"),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_no_verdict_is_not_read(folder, text):
    folder.mkdir(parents=True)
    LLAVA.path.write_text(text)
    assert read(LLAVA) is None
    store(PASSED)
    assert read(LLAVA) == PASSED


@pytest.mark.parametrize("text", [BAD["half written"], BAD["no key"]])
def test_files_without_a_verdict_are_listed(folder, text):
    store(PASSED)
    bad = folder / "a.json"
    bad.write_text(text)
    (folder / ".other.tmp").write_text("")
    assert stored() == ([PASSED], [bad])


def test_bytes_that_are_no_text_are_not_read(folder):
    folder.mkdir(parents=True)
    LLAVA.path.write_bytes(b"\xff\xfe\x00")
    assert read(LLAVA) is None
    assert stored() == ([], [LLAVA.path])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*as_json(PASSED), "x"]), inner, max_size=6)
        ),
    )
)
def test_any_json_is_a_verdict_or_a_value_error(value):
    with contextlib.suppress(ValueError):
        assert isinstance(parse(json.dumps(value)), StoredVerdict)


def test_a_folder_that_cannot_be_written_is_an_error(folder):
    folder.parent.mkdir()
    folder.write_text("a file in its place")
    with pytest.raises(OSError, match="proofs"):
        store(PASSED)
    assert read(LLAVA) is None


def test_a_failed_write_leaves_the_older_verdict(folder, monkeypatch):
    store(FAILED)

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(verdicts.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        store(PASSED)
    assert read(LLAVA) == FAILED
    assert len(list(folder.iterdir())) == 1


# Loads the module alone: importing gprune would take longer than all that is written here.
WRITER = """
import importlib.util
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("verdicts", sys.argv[3])
verdicts = sys.modules["verdicts"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(verdicts)
verdicts.folder = lambda: Path(sys.argv[1])
key = verdicts.VerdictKey("llava", "0.1.0", "5.25.0", "2.13.0+cpu")
when = "2026-11-28T12:00:00+00:00"
for number in range(300):
    failures = (sys.argv[2] * 2000,) * (number % 3)
    verdicts.store(verdicts.StoredVerdict(key, not failures, failures, when, float(number)))
"""


def test_two_processes_that_store_at_once_leave_whole_files(folder):
    command = [sys.executable, "-c", WRITER, str(folder)]
    writers = [subprocess.Popen([*command, name, verdicts.__file__]) for name in "ab"]
    reads, deadline = 0, time.monotonic() + 120
    while any(writer.poll() is None for writer in writers) and time.monotonic() < deadline:
        if LLAVA.path.exists():
            assert read(LLAVA) is not None
            reads += 1
    assert [writer.wait(timeout=10) for writer in writers] == [0, 0]
    assert reads > 0
    assert read(LLAVA).seconds == 299
    assert len(list(folder.iterdir())) == 1


def test_the_folder_is_the_users_cache():
    platformdirs = pytest.importorskip("platformdirs")
    assert verdicts.folder() == platformdirs.user_cache_path("gprune", appauthor=False) / "proofs"
