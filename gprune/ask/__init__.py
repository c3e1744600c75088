"""Loads a model with its processor, prompts it, answers and compares."""
