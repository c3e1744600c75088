"""CLIP's text encoder, for methods that compare image tokens and question in CLIP's space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gprune.errors import UnsupportedModelError


@dataclass(frozen=True, eq=False)
class CLIPTextTower:
    """The text encoder of the CLIP model whose vision encoder a VLM uses.

    Examples:
        >>> clip_name = "openai/clip-vit-large-patch14-336"
        >>> clip = CLIPModel.from_pretrained(clip_name)  # doctest: +SKIP
        >>> words = AutoTokenizer.from_pretrained(clip_name)  # doctest: +SKIP
        >>> tower = CLIPTextTower(clip, words, processor.tokenizer)  # doctest: +SKIP
        >>> with CDPruner(keep=64, text_tower=tower)(model):  # doctest: +SKIP
        ...     model.generate(**inputs)

    Attributes:
        model: a transformers ``CLIPModel``, with both projections.
        tokenizer: CLIP's tokenizer or processor.
        prompt_tokenizer: the pruned model's tokenizer or processor; it decodes prompts.
    """

    model: Any
    tokenizer: Any
    prompt_tokenizer: Any

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

    @torch.no_grad()
    def embed_text(self, ids: Tensor) -> Tensor:
        """Embeds a prompt's text, float32 [m, e]: one row for each part that fits into CLIP.

        Args:
            ids: token ids of the pruned model, without placeholders and padding, int64 [l].
        """
        decoder = getattr(self.prompt_tokenizer, "tokenizer", self.prompt_tokenizer)
        tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        text = decoder.decode(ids, skip_special_tokens=True)
        words = tokenizer(text, add_special_tokens=False)["input_ids"]
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
