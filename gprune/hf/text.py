"""CLIP's text encoder, for methods that compare image tokens and question in CLIP's space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gprune.errors import UnsupportedModelError
from gprune.hf.questions import (
    KNOWN_FORMATS,
    TurnFormat,
    find_message,
    template_formats,
    without,
)


@dataclass(frozen=True, eq=False)
class CLIPTextTower:
    """The text encoder of the CLIP model whose vision encoder a VLM uses.

    It embeds the bare question, as the released code of TRIM and CDPruner does: the last message
    of the user in the prompt, without image placeholders and without what the chat template puts
    around it. What that is, it sees by rendering the template of ``prompt_tokenizer``; without a
    template it knows the formats of LLaVA-1.5, LLaVA-NeXT and ViP-LLaVA. If no format fits the
    prompt, it raises an error and embeds nothing; then pass ``question``.

    Examples:
        >>> clip_name = "openai/clip-vit-large-patch14-336"
        >>> clip = CLIPModel.from_pretrained(clip_name)  # doctest: +SKIP
        >>> words = AutoTokenizer.from_pretrained(clip_name)  # doctest: +SKIP
        >>> tower = CLIPTextTower(clip, words, processor)  # doctest: +SKIP
        >>> with CDPruner(keep=64, text_tower=tower)(model):  # doctest: +SKIP
        ...     model.generate(**inputs)

    Attributes:
        model: a transformers ``CLIPModel``, with both projections.
        tokenizer: CLIP's tokenizer or processor.
        prompt_tokenizer: the pruned model's processor or tokenizer; it decodes prompts, and its
            chat template shows where the question stands.
        question: the question of every prompt; or a function that takes a prompt's text, without
            special tokens, and returns its question. None finds it in the prompt.
    """

    model: Any
    tokenizer: Any
    prompt_tokenizer: Any
    question: str | Callable[[str], str] | None = None

    def check(self, model: Any) -> None:
        """Checks that a VLM's vision encoder has the type and width of this CLIP's.

        Raises:
            UnsupportedModelError: it has not.
        """
        own, other = self.model.config.vision_config, model.config.vision_config
        if other.model_type != "clip_vision_model" or own.hidden_size != other.hidden_size:
            raise UnsupportedModelError(
                f"text_tower has a CLIP vision encoder of width {own.hidden_size}, but "
                f"{type(model).__name__} has a vision encoder of type {other.model_type} and width "
                f"{getattr(other, 'hidden_size', '?')}; pass the CLIP that it was built with, or "
                "text_tower=None for the language model's own embeddings"
            )

    @cached_property
    def formats(self) -> list[TurnFormat]:
        """What the chat template of ``prompt_tokenizer`` puts around a message."""
        return template_formats(self.prompt_tokenizer)

    def question_of(self, ids: Tensor) -> str:
        """Returns the question in a prompt.

        Args:
            ids: token ids of the pruned model, without placeholders and padding, int64 [l].

        Raises:
            ValueError: no format fits the prompt, or the message is empty.
        """
        decoder = getattr(self.prompt_tokenizer, "tokenizer", self.prompt_tokenizer)
        if isinstance(self.question, str):
            return self.question
        if self.question is not None:
            return self.question(decoder.decode(ids, skip_special_tokens=True))
        prompt = decoder.decode(ids, skip_special_tokens=False)
        message = find_message(prompt, self.formats)
        for known in KNOWN_FORMATS:
            message = find_message(prompt, [known]) if message is None else message
        question = without(message or "", decoder.all_special_tokens).strip()
        if not question:
            trouble = (
                "does not have the form of the chat template" if message is None else "has no text"
            )
            raise ValueError(
                f"the question cannot be found in the prompt {prompt[:200]!r}, which {trouble}; "
                "pass CLIPTextTower(..., question=...): the question, or a function that takes the "
                "prompt and returns it"
            )
        return question

    @torch.no_grad()
    def embed_text(self, ids: Tensor) -> Tensor:
        """Embeds a prompt's question, float32 [m, e]: one row for each part that fits into CLIP.

        Args:
            ids: token ids of the pruned model, without placeholders and padding, int64 [l].

        Raises:
            ValueError: see `question_of`.
        """
        tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        words = tokenizer(self.question_of(ids), add_special_tokens=False)["input_ids"]
        size = self.model.config.text_config.max_position_embeddings - 2  # without BOS and EOS
        parts = [words[start : start + size] for start in range(0, max(len(words), 1), size)]
        embeddings = []
        for part in parts:
            row = torch.tensor([[tokenizer.bos_token_id, *part, tokenizer.eos_token_id]])
            pooled = self.model.text_model(input_ids=row.to(self.model.device)).pooler_output
            embeddings.append(self.model.text_projection(pooled))
        return torch.cat(embeddings).float().to(ids.device)

    @torch.no_grad()
    def align(self, vision: Tensor) -> Tensor:
        """Projects features of the vision encoder [n, c] into the text's space, float32 [n, e]."""
        hidden = vision.to(self.model.device, self.model.dtype)
        normed = self.model.vision_model.post_layernorm(hidden)
        return self.model.visual_projection(normed).float().to(vision.device)
