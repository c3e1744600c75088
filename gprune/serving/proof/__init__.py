"""Proves on this machine that a served model with pruned images answers as it should.

The claims compare three runs of one checkpoint: vLLM without gprune, vLLM with its images pruned,
and transformers. The last is run by `gprune.proof.checkpoint`, which callers pass in: the plugin
does not import `gprune.hf`.
"""
