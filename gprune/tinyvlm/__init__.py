"""Two tiny vision-language models that answer questions about generated scenes."""

from gprune.tinyvlm.model import load
from gprune.tinyvlm.questions import QUESTION_TYPES, Question
from gprune.tinyvlm.scenes import Scene, make_scene

__all__ = ["QUESTION_TYPES", "Question", "Scene", "load", "make_scene"]
