"""Trains the shipped tiny models: ``python -m gprune.training --out FOLDER``."""
