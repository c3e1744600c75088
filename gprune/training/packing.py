"""Packs several questions about one picture into one sequence, for training and scoring.

The picture's tokens come first. Each question with its answer attends to the picture and to itself,
never to other questions, and its position ids are those of a sequence of its own. One pass over the
picture thus serves up to eight questions, and the logits of each equal those of asking it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from gprune.tinyvlm.boxes import box_is_found
from gprune.tinyvlm.questions import Question

# The label that cross_entropy skips.
IGNORED = -100


class Mention(NamedTuple):
    """A text token that refers to objects of the scene.

    Attributes:
        row: batch row.
        token: index among the text tokens of the row.
        ends_name: whether the token ends a name of two words.
        objects: indices of the objects.
    """

    row: int
    token: int
    ends_name: bool
    objects: tuple[int, ...]


@dataclass
class PackedQuestions:
    """The questions about a batch of b pictures, padded to L text tokens a row.

    Attributes:
        ids: token ids of the text, [b, L].
        labels: the next token where it belongs to an answer, else -100, [b, L].
        segments: index of the question that a token belongs to, -1 for padding, [b, L].
        positions: position ids of the text, [b, L].
        questions: the questions of each row, in the order of their segments.
        mentions: the tokens that refer to objects.
    """

    ids: Tensor
    labels: Tensor
    segments: Tensor
    positions: Tensor
    questions: list[list[Question]]
    mentions: list[Mention]

    def answer_mask(self, row: int, segment: int) -> Tensor:
        """Returns the positions of a row that predict the answer of one question, bool [L]."""
        return (self.segments[row] == segment) & (self.labels[row] != IGNORED)


@dataclass
class _Row:
    """The packed questions of one picture, without padding."""

    ids: list[int]
    labels: list[int]
    segments: list[int]
    positions: list[int]
    mentions: list[Mention]


def pack(
    questions: Sequence[Sequence[Question]],
    tokenizer: PreTrainedTokenizerFast,
    visual_tokens: int,
) -> PackedQuestions:
    """Packs the questions of each picture, to follow one BOS and ``visual_tokens`` placeholders."""
    start = 1 + visual_tokens
    rows = [_pack_row(row, own, tokenizer, start) for row, own in enumerate(questions)]
    width = max(len(row.ids) for row in rows)

    def pad(lists: Sequence[list[int]], fill: int) -> Tensor:
        return torch.tensor([values + [fill] * (width - len(values)) for values in lists])

    return PackedQuestions(
        ids=pad([row.ids for row in rows], tokenizer.pad_token_id),
        labels=pad([row.labels for row in rows], IGNORED),
        segments=pad([row.segments for row in rows], -1),
        positions=pad([row.positions for row in rows], 0),
        questions=[list(own) for own in questions],
        mentions=[mention for row in rows for mention in row.mentions],
    )


def _pack_row(
    row: int, questions: Sequence[Question], tokenizer: PreTrainedTokenizerFast, start: int
) -> _Row:
    """Packs the questions of one picture; each starts at position ``start``."""
    packed = _Row([], [], [], [], [])
    for segment, question in enumerate(questions):
        prompt = tokenizer.encode(question.question, add_special_tokens=False)
        answer = tokenizer.encode(question.answer, add_special_tokens=False)
        answer.append(tokenizer.eos_token_id)
        token, previous = -1, -1
        for word, objects in question.mentions:
            token = prompt.index(tokenizer.convert_tokens_to_ids(word), token + 1)
            ends_name = token == previous + 1 > 0
            packed.mentions.append(Mention(row, len(packed.ids) + token, ends_name, objects))
            previous = token
        # The end-of-sequence token is predicted but never an input.
        packed.ids += prompt + answer[:-1]
        packed.labels += [IGNORED] * (len(prompt) - 1) + answer
        length = len(prompt) + len(answer) - 1
        packed.segments += [segment] * length
        packed.positions += range(start, start + length)
    return packed


def packed_logits(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    packed: PackedQuestions,
    kept: Tensor | None = None,
    member_counts: Tensor | None = None,
) -> Tensor:
    """Computes the logits of the text tokens, [b, L, vocabulary].

    Args:
        model: the tiny VLM.
        features: projected visual features, [b, n, d].
        packed: the questions.
        kept: original index of each visual token if some were pruned, [b, n].
        member_counts: number of tokens that each visual token represents in attention, [b, n]; None
            is one each.
    """
    b, n, _ = features.shape
    language = model.model.language_model
    embed = language.get_input_embeddings()
    bos = torch.full((b, 1), model.config.text_config.bos_token_id, device=features.device)
    embeds = torch.cat([embed(bos), features, embed(packed.ids)], 1)  # [b, 1 + n + L, d]
    if kept is None:
        kept = torch.arange(n, device=features.device).expand(b, -1)
    positions = torch.cat([kept.new_zeros(b, 1), kept + 1, packed.positions], 1)
    hidden = language(
        inputs_embeds=embeds,
        attention_mask=_attention_mask(packed, n, embeds.dtype, member_counts),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[:, 1 + n :])


def _attention_mask(
    packed: PackedQuestions, n: int, dtype: torch.dtype, member_counts: Tensor | None
) -> Tensor:
    """Builds the additive mask that separates the questions, [b, 1, t, t] with t = 1 + n + L."""
    b, device = len(packed.ids), packed.ids.device
    # Segment 0 is the picture. Padding is -1 and stays so: shifted by one it would be the picture.
    picture = torch.zeros(b, 1 + n, dtype=torch.long, device=device)
    text = torch.where(packed.segments < 0, -1, packed.segments + 1)
    segment = torch.cat([picture, text], 1)
    total = segment.shape[1]
    causal = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    same = segment[:, :, None] == segment[:, None, :]
    visible = causal & (same | (segment == 0)[:, None, :])
    # An additive float mask, because a bool mask takes a slower path on a CPU.
    mask = torch.zeros(b, 1, total, total, dtype=dtype, device=device)
    if member_counts is not None:
        mask[..., 1 : 1 + n] = member_counts.log()[:, None, None]
    return mask.masked_fill_(~visible[:, None], torch.finfo(dtype).min)


def decode_answers(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    packed: PackedQuestions,
    kept: Tensor | None = None,
    member_counts: Tensor | None = None,
) -> Tensor:
    """Returns the token that greedy decoding gives at every position of an answer, [b, L].

    For most questions one teacher-forced pass decides: greedy decoding yields the exact answer if
    each of its tokens is the argmax after the ones before. A box may differ from the answer and
    still be right, so a box that differs is decoded edge by edge, after the model's own tokens.

    Args:
        model: in evaluation mode.
        features: projected visual features, [b, n, d].
        packed: the questions.
        kept: original index of each visual token if some were pruned, [b, n].
        member_counts: number of tokens that each visual token represents in attention, [b, n]; None
            is one each.
    """
    predicted = packed_logits(model, features, packed, kept, member_counts).argmax(-1)
    boxes = _box_mask(packed)
    missed = boxes & (packed.labels != IGNORED) & (predicted != packed.labels)
    rows = missed.any(1).nonzero()[:, 0]
    if not len(rows):
        return predicted
    subset, columns, valid = _select_tokens(packed, rows, boxes)
    kept, member_counts = (None if x is None else x[rows] for x in (kept, member_counts))
    decoded = _decode_greedily(model, features[rows], subset, kept, member_counts)
    predicted[rows[:, None].expand_as(columns)[valid], columns[valid]] = decoded[valid]
    return predicted


def _box_mask(packed: PackedQuestions) -> Tensor:
    """Returns which tokens belong to questions about boxes, bool [b, L]."""
    mask = torch.zeros_like(packed.ids, dtype=torch.bool)
    for row, questions in enumerate(packed.questions):
        for segment, question in enumerate(questions):
            if question.kind == "box":
                mask[row] |= packed.segments[row] == segment
    return mask


def _decode_greedily(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    packed: PackedQuestions,
    kept: Tensor | None,
    member_counts: Tensor | None,
) -> Tensor:
    """Replaces answer tokens by the model's predictions until nothing changes; returns them."""
    is_answer = packed.labels != IGNORED
    fed_back = is_answer[:, 1:] & is_answer[:, :-1]
    fed_back &= packed.segments[:, 1:] == packed.segments[:, :-1]
    while True:
        predicted = packed_logits(model, features, packed, kept, member_counts).argmax(-1)
        ids = packed.ids.clone()
        ids[:, 1:] = torch.where(fed_back, predicted[:, :-1], packed.ids[:, 1:])
        if torch.equal(ids, packed.ids):
            return predicted
        packed = replace(packed, ids=ids)


def _select_tokens(
    packed: PackedQuestions, rows: Tensor, mask: Tensor
) -> tuple[PackedQuestions, Tensor, Tensor]:
    """Gathers the tokens of some rows where ``mask`` [b, L] is true, in order.

    Returns:
        the shortened rows; the column of ``packed`` that each token came from; and which tokens are
        not padding.
    """
    chosen = mask[rows]
    width = int(chosen.sum(1).max())
    columns = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    valid = chosen.gather(1, columns)
    subset = PackedQuestions(
        ids=packed.ids[rows].gather(1, columns),
        labels=packed.labels[rows].gather(1, columns).where(valid, IGNORED),
        segments=packed.segments[rows].gather(1, columns).where(valid, -1),
        positions=packed.positions[rows].gather(1, columns),
        questions=[packed.questions[row] for row in rows.tolist()],
        mentions=[],
    )
    return subset, columns, valid


def grade_answers(
    predicted: Tensor, packed: PackedQuestions, tokenizer: PreTrainedTokenizerFast
) -> list[list[bool]]:
    """Returns whether each answer is right and complete, by picture.

    Args:
        predicted: from `decode_answers`, [b, L].
        packed: the questions.
        tokenizer: of the model.
    """
    return [
        [
            _is_right(question, predicted[row][mask], packed.labels[row][mask], tokenizer)
            for segment, question in enumerate(questions)
            for mask in [packed.answer_mask(row, segment)]
        ]
        for row, questions in enumerate(packed.questions)
    ]


def _is_right(
    question: Question, predicted: Tensor, label: Tensor, tokenizer: PreTrainedTokenizerFast
) -> bool:
    if question.kind != "box" or predicted[-1] != label[-1]:
        return torch.equal(predicted, label)
    return box_is_found(tokenizer.decode(predicted[:-1]), question.answer)
