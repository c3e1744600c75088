"""Cost with and without pruning: multiply-adds, KV-cache bytes and measured times."""

from gprune.costs.flops import CONVENTIONS, LanguageModelShape, Saving, keep_for, saving
from gprune.costs.prefill import PrefillTimes, prefill_times

__all__ = [
    "CONVENTIONS",
    "LanguageModelShape",
    "PrefillTimes",
    "Saving",
    "keep_for",
    "prefill_times",
    "saving",
]
