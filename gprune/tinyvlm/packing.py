"""Several questions about one picture in one sequence, for training and for teacher-forced scoring.

The picture's tokens come first; every question with its answer then sees the picture and itself,
never its neighbours, and is numbered as if it stood alone. One pass of the vision tower and of the
picture's tokens thus serves up to eight questions, and what the model computes for each is what it
computes when the question is asked alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from gprune.tinyvlm.scenes import Question

IGNORED = -100


@dataclass
class PackedQuestions:
    """A batch of b pictures with their questions, L text tokens a row at most.

    Attributes:
        ids: token ids of the text, [b, L].
        labels: the next token where it belongs to an answer, else -100, [b, L].
        segments: which question a token belongs to, -1 in padding, [b, L].
        positions: position ids of the text, [b, L].
        questions: the questions of each row, in the order of their segments.
    """

    ids: Tensor
    labels: Tensor
    segments: Tensor
    positions: Tensor
    questions: list[list[Question]]


def pack(
    questions: Sequence[Sequence[Question]],
    tokenizer: PreTrainedTokenizerFast,
    visual_tokens: int,
) -> PackedQuestions:
    """Packs the questions of each picture, to follow one BOS and ``visual_tokens`` placeholders."""
    rows = []
    for asked in questions:
        ids: list[int] = []
        labels: list[int] = []
        segments: list[int] = []
        positions: list[int] = []
        for segment, item in enumerate(asked):
            prompt = tokenizer.encode(item.question, add_special_tokens=False)
            answer = tokenizer.encode(item.answer, add_special_tokens=False)
            answer.append(tokenizer.eos_token_id)
            # The end-of-sequence token is predicted, not read.
            ids += prompt + answer[:-1]
            labels += [IGNORED] * (len(prompt) - 1) + answer
            length = len(prompt) + len(answer) - 1
            segments += [segment] * length
            positions += range(1 + visual_tokens, 1 + visual_tokens + length)
        rows.append((ids, labels, segments, positions))
    width = max(len(row[0]) for row in rows)

    def column(i: int, fill: int) -> Tensor:
        return torch.tensor([row[i] + [fill] * (width - len(row[i])) for row in rows])

    return PackedQuestions(
        ids=column(0, tokenizer.pad_token_id),
        labels=column(1, IGNORED),
        segments=column(2, -1),
        positions=column(3, 0),
        questions=[list(asked) for asked in questions],
    )


def packed_logits(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    packed: PackedQuestions,
    places: Tensor | None = None,
) -> Tensor:
    """Logits of the text tokens, [b, L, vocabulary].

    Args:
        features: projected visual features, [b, n, d].
        packed: the questions.
        places: original index of each visual token where some were pruned, [b, n].
    """
    b, n, _ = features.shape
    language = model.model.language_model
    embed = language.get_input_embeddings()
    bos = torch.full((b, 1), model.config.text_config.bos_token_id, device=features.device)
    embeds = torch.cat([embed(bos), features, embed(packed.ids)], 1)  # [b, 1 + n + L, d]
    # Segment 0 is the picture; padding (-1 here, 0 after the shift) must not read as one.
    picture = torch.zeros(b, 1 + n, dtype=torch.long, device=features.device)
    own = torch.where(packed.segments < 0, -1, packed.segments + 1)
    segment = torch.cat([picture, own], 1)
    total = segment.shape[1]
    causal = torch.ones(total, total, dtype=torch.bool, device=features.device).tril()
    same = segment[:, :, None] == segment[:, None, :]
    seen = causal & (same | (segment == 0)[:, None, :])
    # An additive float mask: a bool mask takes a slower path on CPU.
    mask = torch.zeros(b, 1, total, total, dtype=embeds.dtype, device=features.device)
    mask.masked_fill_(~seen[:, None], torch.finfo(embeds.dtype).min)
    if places is None:
        places = torch.arange(n, device=features.device).expand(b, -1)
    positions = torch.cat([torch.zeros_like(places[:, :1]), places + 1, packed.positions], 1)
    hidden = language(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[:, 1 + n :])


def answered(logits: Tensor, packed: PackedQuestions) -> list[list[bool]]:
    """Whether greedy decoding gives each question's whole answer and then stops.

    Teacher forcing decides it: greedy decoding yields the answer exactly if every token of it is
    the likeliest one after those before.
    """
    right = (logits.argmax(-1) == packed.labels) | (packed.labels == IGNORED)
    return [
        [bool(right[row][packed.segments[row] == segment].all()) for segment in range(len(asked))]
        for row, asked in enumerate(packed.questions)
    ]
