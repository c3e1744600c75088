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
        names: where a word points at objects: the row, the token, whether the word ends a name of
            two, and the numbers of the scene's objects.
    """

    ids: Tensor
    labels: Tensor
    segments: Tensor
    positions: Tensor
    questions: list[list[Question]]
    names: list[tuple[int, int, bool, tuple[int, ...]]]


def pack(
    questions: Sequence[Sequence[Question]],
    tokenizer: PreTrainedTokenizerFast,
    visual_tokens: int,
) -> PackedQuestions:
    """Packs the questions of each picture, to follow one BOS and ``visual_tokens`` placeholders."""
    names: list[tuple[int, int, bool, tuple[int, ...]]] = []
    rows = []
    for row, asked in enumerate(questions):
        ids: list[int] = []
        labels: list[int] = []
        segments: list[int] = []
        positions: list[int] = []
        for segment, item in enumerate(asked):
            prompt = tokenizer.encode(item.question, add_special_tokens=False)
            answer = tokenizer.encode(item.answer, add_special_tokens=False)
            answer.append(tokenizer.eos_token_id)
            place, last = -1, -1
            for word, pointed in item.about:
                place = prompt.index(tokenizer.convert_tokens_to_ids(word), place + 1)
                names.append((row, len(ids) + place, place == last + 1 > 0, pointed))
                last = place
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
        names=names,
    )


def packed_logits(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    packed: PackedQuestions,
    places: Tensor | None = None,
    stands: Tensor | None = None,
) -> Tensor:
    """Logits of the text tokens, [b, L, vocabulary].

    Args:
        features: projected visual features, [b, n, d].
        packed: the questions.
        places: original index of each visual token where some were pruned, [b, n].
        stands: how many tokens each visual one counts for in attention, [b, n]; one by default.
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
    if stands is not None:
        mask[..., 1 : 1 + n] = stands.log()[:, None, None]
    mask.masked_fill_(~seen[:, None], torch.finfo(embeds.dtype).min)
    if places is None:
        places = torch.arange(n, device=features.device).expand(b, -1)
    positions = torch.cat([places.new_zeros(b, 1), places + 1, packed.positions], 1)
    hidden = language(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[:, 1 + n :])


def said(
    model: LlavaForConditionalGeneration,
    features: Tensor,
    packed: PackedQuestions,
    places: Tensor | None = None,
    stands: Tensor | None = None,
) -> Tensor:
    """The token that greedy decoding gives at every position of an answer, [b, L].

    Where only the exact answer is right, one pass that reads it decides: greedy decoding yields it
    if every token of it is the likeliest one after those before. A box may differ from the answer
    and be right, so a box that differs is decoded edge by edge, each after what the model said.

    Args:
        model: in evaluation mode.
        features: projected visual features, [b, n, d].
        packed: the questions.
        places: original index of each visual token where some were pruned, [b, n].
        stands: how many tokens each visual one counts for in attention, [b, n]; one by default.
    """
    given = packed_logits(model, features, packed, places, stands).argmax(-1)
    boxes = torch.zeros_like(packed.ids, dtype=torch.bool)
    for row, asked in enumerate(packed.questions):
        for segment, question in enumerate(asked):
            if question.kind == "box":
                boxes[row] |= packed.segments[row] == segment
    missed = boxes & (packed.labels != IGNORED) & (given != packed.labels)
    rows = missed.any(1).nonzero()[:, 0]
    if not len(rows):
        return given
    # What the model says of a missed box is read again, without the other questions.
    part, columns, real = _only(packed, rows, boxes)
    seen, counts = (None if values is None else values[rows] for values in (places, stands))
    read = (part.labels != IGNORED)[:, 1:] & (part.labels != IGNORED)[:, :-1]
    read &= part.segments[:, 1:] == part.segments[:, :-1]
    while True:
        again = packed_logits(model, features[rows], part, seen, counts).argmax(-1)
        following = part.ids.clone()
        following[:, 1:] = torch.where(read, again[:, :-1], part.ids[:, 1:])
        if torch.equal(following, part.ids):
            break
        part = replace(part, ids=following)
    given[rows[:, None].expand_as(columns)[real], columns[real]] = again[real]
    return given


def _only(
    packed: PackedQuestions, rows: Tensor, wanted: Tensor
) -> tuple[PackedQuestions, Tensor, Tensor]:
    """Some rows of ``packed`` with only the tokens where ``wanted`` [b, L] is true, in order.

    Returns:
        The rows, of which column of ``packed`` each token was, and which are no padding.
    """
    few = wanted[rows]
    width = int(few.sum(1).max())
    columns = few.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    real = few.gather(1, columns)
    part = PackedQuestions(
        ids=packed.ids[rows].gather(1, columns),
        labels=packed.labels[rows].gather(1, columns).where(real, IGNORED),
        segments=packed.segments[rows].gather(1, columns).where(real, -1),
        positions=packed.positions[rows].gather(1, columns),
        questions=[packed.questions[row] for row in rows.tolist()],
        names=[],
    )
    return part, columns, real


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
    return box_is_found(tokenizer.decode(given[:-1]), question.answer)
