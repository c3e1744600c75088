"""A tiny vision-language model that really answers, with the data and the training behind it."""

from gprune.tinyvlm.model import load
from gprune.tinyvlm.scenes import QUESTION_TYPES, Question, Scene, make_scene

__all__ = ["QUESTION_TYPES", "Question", "Scene", "load", "make_scene"]
