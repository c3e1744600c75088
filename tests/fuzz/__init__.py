"""Tests with hostile input: some cases of each kind in the test suite, many in `make fuzz`."""
