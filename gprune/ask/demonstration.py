"""The demo: a held-out scene of the shipped tiny model, answered by several methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from gprune import viz
from gprune.ask.answers import Outcome, answer_by_methods
from gprune.ask.loading import quiet_transformers
from gprune.ask.pictures import kept_overlay, model_view, outcome_pictures
from gprune.costs import PrefillTimes, prefill_times
from gprune.pruners import Pruner
from gprune.tinyvlm import load
from gprune.tinyvlm.boxes import box_is_found
from gprune.tinyvlm.scenes import make_scene
from gprune.tinyvlm.vocabulary import require_known

# The question about an image whose contents are unknown.
DEFAULT_QUESTION = "how many shapes are there?"


@dataclass(frozen=True)
class DemoQuestion:
    """A question with its right answer, or None where the right answer is unknown."""

    text: str
    expected: str | None

    def is_right(self, answer: str) -> bool | None:
        """Tells whether an answer is right; None where that is unknown.

        An answer that is a box is right if it overlaps the expected box well enough.
        """
        if self.expected is None:
            return None
        return answer == self.expected or box_is_found(answer, self.expected)


@dataclass(frozen=True, eq=False)
class DemoAnswers:
    """One question with its outcome for every method, at least one."""

    question: DemoQuestion
    outcomes: tuple[Outcome, ...]

    @property
    def full(self) -> str:
        """The answer without pruning."""
        return str(self.outcomes[0].answer_full)

    @property
    def texts(self) -> tuple[str, ...]:
        """The answer without pruning, then the answer of every method."""
        return (self.full, *(outcome.answer_pruned for outcome in self.outcomes))


def demo_questions(
    seed: int, image: Image.Image | None, question: str | None
) -> tuple[Image.Image, list[DemoQuestion]]:
    """Chooses the image and the questions of the demo.

    Args:
        seed: index of the held-out scene; it also rotates the order of its questions.
        image: an image of the user's, used in place of the scene.
        question: a question of the user's, used in place of all others.

    Returns:
        The image, and at least one question about it.
    """
    questions: list[DemoQuestion] = []
    if image is None:
        scene = make_scene("test", 0, seed)
        image = scene.draw()
        questions = [DemoQuestion(item.question, item.answer) for item in scene.ask()]
    if question is not None:
        expected = {one.text: one.expected for one in questions}.get(question)
        return image, [DemoQuestion(question, expected)]
    if not questions:
        return image, [DemoQuestion(DEFAULT_QUESTION, None)]
    first = seed % len(questions)
    return image, questions[first:] + questions[:first]


@dataclass(frozen=True, eq=False)
class Demo:
    """The shipped tiny model with an image, questions about it and methods to compare.

    Attributes:
        model: the shipped model.
        processor: its processor.
        pruners: the methods, at least one; the first is timed.
        image: the image.
        questions: at least one.
    """

    model: Any
    processor: Any
    pruners: Sequence[Pruner]
    image: Image.Image
    questions: Sequence[DemoQuestion]

    @classmethod
    def load(
        cls,
        pruners: Sequence[Pruner],
        seed: int,
        image: Image.Image | None = None,
        question: str | None = None,
    ) -> Demo:
        """Loads the model and chooses the image and the questions, see `demo_questions`.

        Raises:
            ValueError: the model does not know a word of ``question``.
        """
        quiet_transformers()
        model, processor = load()
        image, questions = demo_questions(seed, image, question)
        require_known(processor.tokenizer, questions[0].text)
        return cls(model, processor, pruners, image, questions)

    def answer(self, question: DemoQuestion) -> DemoAnswers:
        """Answers one question without pruning and with each method."""
        outcomes = answer_by_methods(
            self.model, self.processor, self.pruners, [self.image], question.text
        )
        return DemoAnswers(question, tuple(outcomes))

    def prefill_times(self, answers: DemoAnswers) -> PrefillTimes:
        """Times the prefill of one question without pruning and with the first method."""
        return prefill_times(self.model, answers.outcomes[0].inputs, self.pruners[0])

    def pictures(self, answers: Sequence[DemoAnswers]) -> list[tuple[str, Image.Image]]:
        """Draws the image as the model sees it, and what each method keeps of it.

        A single method is explained with its scores and its graph too, where it has them.

        Args:
            answers: of all questions; the pictures show the tokens kept for the first.

        Returns:
            (caption, picture) pairs for `gprune.viz.panel`; captions tell the answer, or how many
            answers are right.
        """
        first = answers[0].outcomes[0]
        view = viz.enlarged(model_view(self.processor, first, self.image))
        heads = [f"all {first.saving.visual_tokens} tokens"]
        drawn: list[Image.Image | None] = [view]
        for pruner, outcome in zip(self.pruners, answers[0].outcomes, strict=True):
            heads.append(f"{pruner.name} keeps {outcome.saving.kept_tokens}")
            drawn.append(kept_overlay(self.processor, outcome, self.image))
        pictures = [
            (f"{head}\n{summary(answers, column)}", picture)
            for column, (head, picture) in enumerate(zip(heads, drawn, strict=True))
            if picture is not None
        ]
        if len(self.pruners) == 1:
            pruner, images = self.pruners[0], [self.image]
            whole = outcome_pictures(self.model, self.processor, pruner, first, images)
            pictures += whole[2:]  # the view and the kept tokens are there already
        return pictures

    def title(self, answers: Sequence[DemoAnswers]) -> str:
        """Returns the title of the pictures: the question, or the number of questions."""
        if len(answers) > 1:
            return f"{len(answers)} questions about one image"
        question = answers[0].question
        expected = "" if question.expected is None else f"   (right answer: {question.expected})"
        return f"{question.text}{expected}"


def right_answers(answers: Sequence[DemoAnswers], column: int) -> int | None:
    """Counts the right answers in one column of `DemoAnswers.texts`; None where unknown."""
    verdicts = [one.question.is_right(one.texts[column]) for one in answers]
    return None if None in verdicts else sum(map(bool, verdicts))


def summary(answers: Sequence[DemoAnswers], column: int) -> str:
    """Returns the only answer of a column, or how many of its answers are right."""
    if len(answers) == 1:
        return f"answer: {answers[0].texts[column]}"
    return f"{right_answers(answers, column)} of {len(answers)} answers right"
