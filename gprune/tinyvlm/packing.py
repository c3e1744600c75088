"""Several questions about one picture in one sequence, for training and for teacher-forced scoring.

The picture's tokens come first; every question with its answer then sees the picture and itself,
never its neighbours, and is numbered as if it stood alone. One pass of the vision tower and of the
picture's tokens thus serves up to eight questions, and what the model computes for each is what it
computes when the question is asked alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from gprune.tinyvlm.scenes import Question, box_is_found

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


def said(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    packed: PackedQuestions,
    places: Tensor | None = None,
) -> Tensor:
    """The token that greedy decoding gives at every position of an answer, [b, L].

    Where only the exact answer is right, one pass that reads it decides: greedy decoding yields it
    if every token of it is the likeliest one after those before. A box may differ from the answer
    and be right, so there the model reads what it said itself, which takes a pass for each edge.

    Args:
        model: in evaluation mode.
        features: projected visual features, [b, n, d].
        packed: the questions.
        places: original index of each visual token where some were pruned, [b, n].
    """
    boxes = torch.zeros_like(packed.ids, dtype=torch.bool)
    for row, asked in enumerate(packed.questions):
        for segment, question in enumerate(asked):
            if question.kind == "box":
                boxes[row] |= packed.segments[row] == segment
    inside = boxes & (packed.labels != IGNORED)
    read = inside[:, 1:] & inside[:, :-1] & (packed.segments[:, 1:] == packed.segments[:, :-1])
    ids = packed.ids
    while True:
        given = packed_logits(model, features, replace(packed, ids=ids), places).argmax(-1)
        following = ids.clone()
        following[:, 1:] = torch.where(read, given[:, :-1], ids[:, 1:])
        if torch.equal(following, ids):
            return given
        ids = following


def answered(
    given: Tensor, packed: PackedQuestions, tokenizer: PreTrainedTokenizerFast
) -> list[list[bool]]:
    """Whether each question was answered right, and the answer ended.

    Args:
        given: what `said` returns, [b, L].
        packed: the questions.
        tokenizer: of the model.
    """
    return [
        [
            _is_right(question, given[row][mine], packed.labels[row][mine], tokenizer)
            for segment, question in enumerate(asked)
            for mine in [(packed.segments[row] == segment) & (packed.labels[row] != IGNORED)]
        ]
        for row, asked in enumerate(packed.questions)
    ]


def _is_right(
    question: Question, given: Tensor, label: Tensor, tokenizer: PreTrainedTokenizerFast
) -> bool:
    if question.kind != "box" or given[-1] != label[-1]:
        return torch.equal(given, label)
    return box_is_found(str(tokenizer.decode(given[:-1])), question.answer)
