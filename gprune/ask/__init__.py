"""Loads a model with its processor, asks it questions with and without pruning, and compares."""
