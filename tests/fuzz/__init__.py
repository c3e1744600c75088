"""Hostile input: a few cases of each kind in the normal tests, many with `make fuzz`."""
