"""Checks of the parameters that every form of the graph takes."""

from __future__ import annotations


def check_threshold(threshold: float) -> None:
    """Raises ValueError unless ``threshold`` is a cosine similarity in [-1, 1]."""
    if not -1 <= threshold <= 1:
        raise ValueError(
            f"threshold={threshold} must be a cosine similarity in [-1, 1]; "
            "the released G-Prune uses 0.5, the paper's best setting 0.7"
        )


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless ``temperature`` is finite and positive."""
    if not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature={temperature} must be a finite number > 0; G-Prune uses 0.03"
        )


def check_iterations(iterations: int) -> None:
    """Raises ValueError unless ``iterations`` is an int >= 0."""
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations={iterations!r} must be an integer >= 0; G-Prune uses 5")
