"""docs/fidelity.md and the line about it on every method's page."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from gprune.pruners.registry import METHODS
from tests.docs.test_site import ROOT, script, source

__all__ = ["source"]  # a fixture

generate = script("generate")
ENTRIES = generate.fidelity()
COMPARED = [name for name, entry in ENTRIES.items() if "vectors" in entry]


def test_the_page_is_current():
    written = (ROOT / "docs" / "fidelity.md").read_text()
    assert written == generate.fidelity_page(), "run python docs/generate.py"
    for entry in ENTRIES.values():
        assert entry.get("published", "") in written
    assert f"released code of {len(COMPARED)} methods" in " ".join(written.split())


def test_every_method_has_an_entry():
    assert set(ENTRIES) == set(METHODS)
    assert next(iter(ENTRIES)) == "gprune"
    for name, entry in ENTRIES.items():
        needed = {"differs", "published"} if "vectors" in entry else {"standing"}
        assert needed <= set(entry), name
        known = {"settings", "differs", "published", "standing"}
        assert set(entry) <= known | {"exact", "vectors", "source", "commit", "licence"}, name


def test_every_method_with_vectors_has_a_source():
    assert set(generate.sources()) == set(COMPARED) == set(json.loads(generate.COUNTS.read_text()))
    for name, source_of in generate.sources().items():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", source_of["source"]), name
        assert re.fullmatch("[0-9a-f]{7}", source_of["commit"]), name
        assert source_of["licence"], name


@pytest.mark.parametrize("name", COMPARED)
def test_docstrings_name_repository_and_commit(name):
    """Of a class or of the one it refers to."""
    text = " ".join(part.__doc__ or "" for part in METHODS[name].__mro__[:2])
    assert ENTRIES[name]["source"] in text
    assert ENTRIES[name]["commit"] in text


@pytest.mark.parametrize("name", COMPARED)
def test_settings_are_options_of_the_method(name):
    options = {field.name for field in dataclasses.fields(METHODS[name])}
    assert set(re.findall(r"(\w+)=", ENTRIES[name].get("settings", ""))) <= options


def test_every_methods_page_says_what_was_compared(source):
    for name in METHODS:
        page = (source / "docs" / "methods" / f"{name}.md").read_text()
        line = generate.badge(name)
        assert page.count(f"\n{line}\n") == 1, name
        assert page.index(line) < page.index("::: gprune.pruners")


def test_the_line_counts_what_agrees_and_names_the_settings(monkeypatch):
    entries = {
        "some": {"exact": 3, "vectors": 4, "settings": "`a=1`"},
        "all": {"exact": 4, "vectors": 4},
        "none": {"standing": "A baseline."},
    }
    monkeypatch.setattr(generate, "fidelity", lambda: entries)
    link = "([what was compared](../fidelity.md))"
    agrees = "**Agrees with the released code in"
    assert generate.badge("some") == f"{agrees} 3 of 4 vectors**, asked with `a=1` {link}"
    assert generate.badge("all") == f"{agrees} 4 of 4 vectors** {link}"
    assert generate.badge("none") == f"**A baseline.** {link}"
