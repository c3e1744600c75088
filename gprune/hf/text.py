"""CLIP's text encoder beside a model, for methods that compare picture and question by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gprune.errors import UnsupportedModelError


@dataclass(frozen=True, eq=False)
class CLIPTextTower:
    """The text half of the CLIP whose vision half is a model's vision encoder.

    >>> clip = CLIPModel.from_pretrained("openai/clip-vit-large-patch14-336")  # doctest: +SKIP
    >>> words = AutoTokenizer.from_pretrained("openai/clip-vit-large-patch14-336")  # doctest: +SKIP
    >>> tower = CLIPTextTower(clip, words, processor.tokenizer)  # doctest: +SKIP
    >>> with CDPruner(keep=64, text_tower=tower)(model):  # doctest: +SKIP
    ...     model.generate(**inputs)

    Attributes:
        model: a transformers ``CLIPModel`` with the projections of both halves.
        tokenizer: CLIP's tokenizer or processor.
        prompt_tokenizer: the pruned model's tokenizer or processor, which turns prompts into words.
    """

    model: Any
    tokenizer: Any
    prompt_tokenizer: Any

    def check(self, model: Any) -> None:
        """Requires that ``model`` looks through the same kind of CLIP.

        Raises:
            UnsupportedModelError: its vision encoder is another.
        """
        own, other = self.model.config.vision_config, model.config.vision_config
        if other.model_type != "clip_vision_model" or own.hidden_size != other.hidden_size:
            raise UnsupportedModelError(
                f"text_tower is of a CLIP whose patches have {own.hidden_size} channels, but "
                f"{type(model).__name__} has a vision encoder of type {other.model_type} with "
                f"{getattr(other, 'hidden_size', '?')}; pass the CLIP that it was built with, or "
                "text_tower=None for the language model's own embeddings"
            )

    @torch.no_grad()
    def question(self, ids: Tensor) -> Tensor:
        """Embeddings of a prompt's text, float32 [m, e]: one for each part that CLIP can take.

        Args:
            ids: of the pruned model's tokenizer, without placeholders and padding, int64 [l].
        """
        decoder = getattr(self.prompt_tokenizer, "tokenizer", self.prompt_tokenizer)
        coder = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        text = decoder.decode(ids, skip_special_tokens=True)
        words = coder(text, add_special_tokens=False)["input_ids"]
        room = self.model.config.text_config.max_position_embeddings - 2
        parts = [words[start : start + room] for start in range(0, max(len(words), 1), room)]
        embeddings = []
        for part in parts:
            row = torch.tensor([[coder.bos_token_id, *part, coder.eos_token_id]])
            pooled = self.model.text_model(input_ids=row.to(self.model.device)).pooler_output
            embeddings.append(self.model.text_projection(pooled))
        return torch.cat(embeddings).float().to(ids.device)

    @torch.no_grad()
    def aligned(self, vision: Tensor) -> Tensor:
        """The vision encoder's features [n, c] in the space of the text, float32 [n, e]."""
        hidden = vision.to(self.model.device, self.model.dtype)
        normed = self.model.vision_model.post_layernorm(hidden)
        return self.model.visual_projection(normed).float().to(vision.device)
