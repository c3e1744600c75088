"""Proves on this machine that pruning a model does what is claimed, and nothing else."""
