"""The KV cache in a call, under the names of old and new transformers."""

from __future__ import annotations

import pytest

from gprune.layouts import cache_name, cache_of


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_found_under_both_names(name):
    cache = object()
    assert cache_of({"input_ids": 1, name: cache}) is cache


def test_an_absent_cache_is_none():
    assert cache_of({}) is None
    assert cache_of({"cache": None, "past_key_values": None}) is None


def test_an_unset_name_does_not_hide_the_other():
    cache = object()
    assert cache_of({"cache": None, "past_key_values": cache}) is cache


def test_the_name_is_that_of_the_function():
    assert cache_name(lambda input_ids, cache=None: None) == "cache"
    assert cache_name(lambda input_ids, past_key_values=None: None) == "past_key_values"
