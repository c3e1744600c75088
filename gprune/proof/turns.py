"""Claim: a later turn through the cache of a pruned one equals one masked full-length call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gprune.hf import find_cache
from gprune.layouts import cache_name, family_of
from gprune.proof.cases import OF_HISTORY, Conversation, followed_by
from gprune.proof.equality import why_no_reference
from gprune.proof.recording import pruning
from gprune.proof.reference import Kept, full_length, kept_by
from gprune.proof.results import Inapplicable, Result, within
from gprune.proof.running import Inputs, Run, difference
from gprune.proof.shortened import prefill_call, shortened_greedy, why_masking_differs
from gprune.pruners import Pruner

# Tokens of a later turn of text.
WORDS = 3


def check_turns(model: Any, pruner: Pruner | None) -> None:
    """Raises `Inapplicable` if later turns cannot be compared with one call."""
    if family_of(model).name == "paligemma":
        raise Inapplicable("the whole prompt has bidirectional attention, so there are no turns")
    why = None if pruner is None else why_no_reference(pruner)
    if why is not None:
        raise Inapplicable(why)


def later_words(inputs: Inputs, placeholders: Tensor) -> Tensor:
    """Returns words for a later turn, the last ones of the prompts that are no placeholders."""
    ids = inputs["input_ids"]
    rows = [row[~visual][-WORDS:] for row, visual in zip(ids, placeholders, strict=True)]
    return torch.stack(rows)


def text_conversation(inputs: Inputs, words: Tensor) -> Conversation:
    """Returns a conversation whose second turn is text: ``words`` [b, m] for each row."""
    joined, past = followed_by(inputs, words), inputs["input_ids"].shape[1]
    second = {"input_ids": words}
    second |= {name: joined[name] for name in OF_HISTORY if name in joined}
    if "cross_attention_mask" in joined:
        second["cross_attention_mask"] = joined["cross_attention_mask"][:, past:]
    return Conversation(joined, past, inputs, second)


@torch.no_grad()
def second_turn(
    model: Any, pruner: Pruner | None, conversation: Conversation, tolerance: float
) -> Result:
    """Checks the last logits of a second turn, and those of a token after it.

    Args:
        model: the model.
        pruner: the method, in both turns; None compares the unpruned model with itself.
        conversation: the two turns.
        tolerance: largest difference of logits that counts as equal.

    Raises:
        Inapplicable: the turns cannot be compared with one call.
    """
    check_turns(model, pruner)
    joined = conversation.joined
    run, kept = two_turns(model, pruner, conversation)
    why = why_masking_differs(model, joined["input_ids"].shape[1] + 2)
    if why is None:
        expected = full_length(model, joined, kept, 2, run.tokens)
    elif len(run.tokens) == 1:
        expected = shortened_greedy(model, joined, kept.mask, 2, run.tokens)
    else:
        raise Inapplicable(f"{why}, and rows of a batch cannot be shortened by hand")
    detail = "a later turn through the pruned cache equals one full-length call"
    return within("second turn", difference(run.logits, expected.logits), tolerance, detail)


def two_turns(model: Any, pruner: Pruner | None, conversation: Conversation) -> tuple[Run, Kept]:
    """Calls a model for both turns and for one more token, through one cache.

    Returns the logits after the second turn and after that token, and what was kept of both turns.
    """
    joined, past = conversation.joined, conversation.past
    positions = prefill_call(model, joined)["position_ids"]
    cache_argument = cache_name(model.forward)
    with pruning(model, pruner) as (pruned, recorder):
        output = model(**conversation.first, position_ids=positions[..., :past])
        cache = {cache_argument: find_cache(output)}
        first = kept_by(pruned, cache[cache_argument], conversation.first, recorder)
        output = model(**conversation.second, position_ids=positions[..., past:], **cache)
        second = kept_by(pruned, cache[cache_argument], conversation.second, recorder)
        logits = output.logits[:, -1]
        token = logits.argmax(-1, keepdim=True)
        step = {
            "input_ids": token,
            "attention_mask": followed_by(joined, token)["attention_mask"],
            "position_ids": positions[..., -1:] + 1,
        }
        if "cross_attention_mask" in joined:
            step["cross_attention_mask"] = joined["cross_attention_mask"][:, -1:]
        after = model(**step, **cache).logits[:, -1]
    run = Run(torch.cat([token, token], 1), torch.stack([logits, after], 1))
    return run, joined_choice(first, second, conversation)


def joined_choice(first: Kept, second: Kept, conversation: Conversation) -> Kept:
    """Returns what was kept of both turns.

    Args:
        first: after the first turn.
        second: after the second; without images there it still describes the first.
        conversation: the two turns.
    """
    width = conversation.joined["input_ids"].shape[1] - conversation.past
    has_images = any(name.startswith("pixel_values") for name in conversation.second)
    if not has_images:
        return first.followed_by(torch.ones_like(first.mask[:, :1]).expand(-1, width))
    both = first.followed_by(second.mask)
    images = [*first.images, *second.images]
    return replace(second, mask=both.mask, images=images)
