"""Budgets over an image's tiles or over images."""
