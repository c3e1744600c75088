"""A checkpoint in transformers, as the reference for another engine's answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gprune.hf import PrunedModel
from gprune.layouts import family_of
from gprune.proof.answers import LIKELIEST, Answer, Prompt, Question, Reply
from gprune.proof.running import greedy
from gprune.pruners import Pruner, Reduction
from gprune.tokens import VisualTokens


@dataclass(frozen=True, eq=False)
class OnGivenFeatures(Pruner):
    """Runs a method on features that another engine computed, in place of the model's own.

    Engines round differently, and where two tokens nearly tie, a method may then keep the other
    one. Given the same numbers it keeps the same tokens.

    Attributes:
        keep: of the method.
        method: the method; it reads features alone.
        groups: the features of each group in the order of the prompt, float32 [m, d].
        errors: is filled with the distance of each group's features from the model's own, as a
            share of their norm.
    """

    name: ClassVar[str] = "on_given_features"

    method: Pruner
    groups: Sequence[NDArray[np.float32]]
    errors: list[float] = field(default_factory=list)

    def reduce_images(self, images: Sequence[Sequence[VisualTokens]]) -> list[list[Reduction]]:
        """Reduces all images of a prompt.

        Raises:
            ValueError: there are other groups than features were given for.
        """
        given = iter(self.groups)
        replaced = [[self.replace(tokens, next(given, None)) for tokens in one] for one in images]
        if next(given, None) is not None:
            raise ValueError(f"{len(self.groups)} groups are more than the prompt's images have")
        return self.method.reduce_images(replaced)

    def replace(self, tokens: VisualTokens, given: NDArray[np.float32] | None) -> VisualTokens:
        """Returns a group with other features.

        Raises:
            ValueError: the number of tokens or the width differs.
        """
        own = tokens.features
        shape = None if given is None else given.shape
        if given is None or shape != tuple(own.shape):
            raise ValueError(f"a group has features {list(own.shape)}, and {shape} were given")
        features = torch.from_numpy(given).to(own)
        error = (features.float() - own.float()).norm() / own.float().norm()
        self.errors.append(float(error))
        return dataclasses.replace(tokens, features=features)

    def choose(self, tokens: VisualTokens, k: int) -> Tensor | Reduction:
        return self.method.choose(tokens, k)


class Checkpoint:
    """A model and its processor in transformers.

    Attributes:
        model: in evaluation mode, with a generation config that changes no logits.
        processor: the model's.
    """

    def __init__(
        self, folder: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        """Loads a checkpoint; ``folder`` is a folder or a name on the Hub."""
        from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, use_safetensors=True
        )
        self.model: Any = model.to(device).eval()
        # Checkpoints set penalties and end tokens, which the other engine is asked to leave out.
        pad = self.model.generation_config.pad_token_id
        self.model.generation_config = GenerationConfig(pad_token_id=0 if pad is None else pad)
        self.processor: Any = AutoProcessor.from_pretrained(folder)

    def inputs(self, prompt: Prompt) -> Any:
        """Returns the model's inputs for one prompt."""
        images = list(prompt.images) or None
        inputs = self.processor(images=images, text=[prompt.text], return_tensors="pt")
        inputs.pop("batch_num_images", None)
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def ask(self, prompts: Sequence[Prompt], pruner: Pruner | None, steps: int) -> list[Answer]:
        """Returns greedy answers to prompts, asked one at a time; None prunes nothing."""
        return [self.run(prompt, pruner, steps)[0] for prompt in prompts]

    def reply(self, question: Question, method: Pruner | None) -> Reply:
        """Answers along another engine's tokens.

        Args:
            question: about the other engine's answer.
            method: with the budget of the question; None runs the model unpruned.
        """
        choice, errors = question.choice, [0.0]
        if choice is not None and method is not None and choice.groups:
            method = OnGivenFeatures(method.keep, method, choice.groups)
            errors = method.errors
        steps = len(question.answer.tokens)
        answer, kept = self.run(question.prompt, method, steps, question.answer)
        return Reply(answer, kept, max(errors))

    def run(
        self,
        prompt: Prompt,
        pruner: Pruner | None,
        steps: int,
        other: Answer | None = None,
    ) -> tuple[Answer, NDArray[np.bool_]]:
        """Answers one prompt.

        Args:
            prompt: the prompt.
            pruner: prunes the model; None leaves it as it is.
            steps: number of tokens.
            other: an answer whose tokens are followed and whose likeliest tokens are looked up.

        Returns:
            the answer, and which visual tokens were kept, bool [n].
        """
        inputs = self.inputs(prompt)
        ids = inputs["input_ids"]
        forced = None if other is None else ids.new_tensor([other.tokens])
        with nullcontext() if pruner is None else pruner(self.model) as pruned:
            run = greedy(self.model, inputs, steps, forced)
        visual = (ids == family_of(self.model).token_id(self.model, "image"))[0]
        kept = kept_tokens(pruned, visual)
        length = ids.shape[1] - int((~kept).sum())
        scores = run.logits[0].log_softmax(-1)  # [steps, vocabulary]
        top = tuple(
            likeliest(row, () if other is None else other.top[step])
            for step, row in enumerate(scores)
        )
        tokens = tuple(scores.argmax(-1).tolist())
        path = () if other is None else other.tokens
        return Answer(tokens, top, length, path), kept


def kept_tokens(pruned: PrunedModel | None, visual: Tensor) -> NDArray[np.bool_]:
    """Returns which visual tokens of a prompt were kept, bool [n]; ``visual`` is bool [L]."""
    stays = torch.ones_like(visual)
    if pruned is not None and pruned.kept_mask is not None:
        stays = pruned.kept_mask[0].to(visual.device)
    return np.asarray(stays[visual].cpu().numpy(), dtype=np.bool_)


def likeliest(scores: Tensor, others: dict[int, float] | tuple[()]) -> dict[int, float]:
    """Returns the log-probabilities [vocabulary] of the likeliest tokens and of ``others``."""
    tokens = [*scores.topk(LIKELIEST).indices.tolist(), *others]
    return dict(zip(tokens, scores[tokens].tolist(), strict=True))


@torch.inference_mode()
def reply_in_transformers(
    folder: str,
    dtype: str,
    device: str,
    questions: Sequence[tuple[Question, Pruner | None]],
) -> list[Reply]:
    """Loads a checkpoint and replies to questions; runs in a process of its own.

    Args:
        folder: a folder or a name on the Hub.
        dtype: name of a torch dtype.
        device: of the model; ``auto`` takes the accelerator, if there is one.
        questions: each with the method that prunes it.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    if device == "auto":
        accelerated = torch.accelerator.is_available()
        device = str(torch.accelerator.current_accelerator()) if accelerated else "cpu"
    checkpoint = Checkpoint(folder, getattr(torch, dtype), device)
    return [checkpoint.reply(question, method) for question, method in questions]
