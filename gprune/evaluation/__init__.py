"""What pruning costs and saves."""

from gprune.evaluation.flops import CONVENTIONS, LanguageModelShape, Saving, keep_for, saving
from gprune.evaluation.timing import PrefillTimes, prefill_times

__all__ = [
    "CONVENTIONS",
    "LanguageModelShape",
    "PrefillTimes",
    "Saving",
    "keep_for",
    "prefill_times",
    "saving",
]
