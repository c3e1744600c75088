"""A proof that cannot fail is worth nothing: each test breaks one behaviour and names the lines.

One behaviour of transformers or of gprune is replaced, and exactly the claims that it violates
must fail; all others must still pass.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from gprune import GraphCover, make
from gprune.hf import cache as caches
from gprune.hf import cross, entry, rewrite, weighted
from gprune.hf import model as pruned_model
from gprune.hf.model import PrunedModel
from gprune.layouts.llava import Llava
from gprune.proof import prove_family

# The claims that compare with a full-length model.
REFERENCES = {"masked reference", "beams", "text turn", "image turn"}


def verdicts(family: str = "llava", method: str = "graph_cover") -> dict[str, str]:
    """Proves a family; returns the verdict on each claim."""
    proof = prove_family(family, make(method, keep=0.36))
    return {result.name: str(result.verdict) for result in proof.results}


def failed(
    family: str = "llava", method: str = "graph_cover", inapplicable: Set[str] = frozenset()
) -> set[str]:
    """Returns the claims that fail; all others must pass, or be among ``inapplicable``."""
    found = verdicts(family, method)
    others = {name for name, verdict in found.items() if verdict not in ("passed", "failed")}
    assert others == inapplicable, found
    return {name for name, verdict in found.items() if verdict == "failed"}


def wrap(monkeypatch, owner: Any, name: str, after: Any) -> None:
    """Lets ``after(result, *args)`` replace what a function returns, or change its arguments."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return after(original(*args, **kwargs), *args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "mllama"])
def test_nothing_is_broken(family):
    assert failed(family) == set()


class TestBrokenGprune:
    """One behaviour of gprune is broken."""

    def test_keep_one_changes_a_logit(self, monkeypatch):
        def add_to_logits(result, self, model, args, kwargs, output):
            if output is not None and self.kept_mask.all():
                output.logits[..., 0] += 1e-6

        wrap(monkeypatch, PrunedModel, "post_forward", add_to_logits)
        assert failed() == {"identity"}

    def test_keep_one_changes_a_logit_by_one_bit(self, monkeypatch):
        def flip_a_bit(result, self, model, args, kwargs, output):
            if output is not None and self.kept_mask.all():
                output.logits.view(torch.int32)[0, -1, 0] ^= 1

        wrap(monkeypatch, PrunedModel, "post_forward", flip_a_bit)
        assert failed() == {"identity"}

    def test_the_mask_of_kept_tokens_is_shifted(self, monkeypatch):
        """Reports other positions than those that reached the language model."""

        def shift(result, self, *args):
            self.kept_mask = self.kept_mask.roll(1, 1)

        wrap(monkeypatch, PrunedModel, "prefill", shift)
        # Padding is moved too, so a row differs from the same prompt alone.
        assert failed() == REFERENCES | {"batch"}

    def test_features_are_in_another_order(self, monkeypatch):
        """The kept features fill the kept placeholders backwards."""

        def reverse(result, self, output, kept, images):
            result.pooler_output = type(result.pooler_output)(
                features.flip(0) for features in result.pooler_output
            )
            return result

        wrap(monkeypatch, Llava, "shorten", reverse)
        assert failed() == REFERENCES

    def test_positions_are_renumbered(self, monkeypatch):
        original = rewrite.shorten_call

        def compact(call, plan, mask, cache, pad_id, _):
            original(call, plan, mask, cache, pad_id, True)

        monkeypatch.setattr(pruned_model, "shorten_call", compact)
        # With a cache, generated tokens keep their numbers; without one they are renumbered too.
        assert failed() == REFERENCES | {"uncached"}

    def test_steps_without_cache_are_numbered_otherwise(self, monkeypatch):
        def move(result, self, call, *args):
            if call.get("use_cache") is False:
                call["position_ids"][..., -1] += 1

        wrap(monkeypatch, PrunedModel, "shorten", move)
        assert failed() == {"uncached"}

    def test_other_images_of_the_batch_change_the_choice(self, monkeypatch):
        original = GraphCover.reduce_images

        def reduce_images(self, images):
            if len(images) > 2:
                return make("random", keep=self.keep).reduce_images(images)
            return original(self, images)

        monkeypatch.setattr(GraphCover, "reduce_images", reduce_images)
        assert failed() == {"batch"}

    def test_beams_are_not_reordered(self, monkeypatch):
        monkeypatch.setattr(caches.HookedCache, "reorder_cache", lambda self, beam_idx: None)
        assert failed() == {"beams"}

    def test_beams_are_reordered_wrongly(self, monkeypatch):
        original = caches.HookedCache.reorder_cache
        monkeypatch.setattr(
            caches.HookedCache,
            "reorder_cache",
            lambda self, beam_idx: original(self, beam_idx.flip(0)),
        )
        assert failed() == {"beams"}

    def test_positions_of_a_later_turn_of_text_are_off(self, monkeypatch):
        def move(result, call, cache, past):
            if call["input_ids"].shape[1] > 1:
                call["position_ids"] = call["position_ids"] + 1

        wrap(monkeypatch, pruned_model, "drop_pruned_history", move)
        assert failed() == {"text turn"}

    def test_positions_of_a_later_turn_with_an_image_are_off(self, monkeypatch):
        def move(result, call, plan, mask, cache, pad_id, compact):
            if plan.past:
                call["position_ids"] = call["position_ids"] + 1

        wrap(monkeypatch, pruned_model, "shorten_call", move)
        assert failed() == {"image turn"}

    def test_the_first_turn_is_forgotten(self, monkeypatch):
        """A later prefill says that the cache holds what the later turn kept, only."""

        def forget(result, *args):
            return result.flip(1)

        wrap(monkeypatch, rewrite, "past_origin", forget)
        assert failed() == {"image turn"}

    def test_a_pruned_position_is_masked_when_decoding(self, monkeypatch):
        def hide(result, self, mask, query_length):
            result = result.clone()
            result[:, -query_length - 6] = 0
            return result

        wrap(monkeypatch, caches.PrunedCache, "physical_mask", hide)
        # Alone, a prompt without an image is not pruned.
        assert failed() == REFERENCES | {"uncached", "batch"}

    def test_the_cache_has_spare_memory(self, monkeypatch):
        def waste(result, self, model, args, kwargs, output):
            cache = None if output is None else caches_of(output)
            if isinstance(cache, caches.PrunedCache):
                for layer in cache.layers:
                    layer.spare = torch.zeros(4096)

        wrap(monkeypatch, PrunedModel, "post_forward", waste)
        assert failed() == {"memory"}

    def test_tokens_are_masked_and_not_dropped(self, monkeypatch):
        """Everything is equal then, but nothing is saved."""
        monkeypatch.setattr(entry, "PrunedModel", MaskingModel)
        assert failed() == {"cache length", "memory"}

    @pytest.mark.parametrize("where", ["model", "layer", "method", "class"])
    def test_something_is_left_behind(self, monkeypatch, where):
        original = PrunedModel.patched

        def patched(self):
            layer = self.model.get_decoder().layers[0]
            if where == "method":
                self.model.prepare_inputs_for_generation = self.model.prepare_inputs_for_generation
            elif where == "class":
                kind = type(layer)
                forward = kind.forward
                monkeypatch.setattr(kind, "forward", lambda *args, **kw: forward(*args, **kw))
            else:
                target = self.model if where == "model" else layer
                target.register_forward_pre_hook(lambda module, args: None)
            return original(self)

        monkeypatch.setattr(PrunedModel, "patched", patched)
        assert failed() == {"no trace"}

    def test_a_hook_is_left_behind_by_an_exception(self, monkeypatch):
        """The block cleans up if it ends well, and only then."""
        original = entry.hooked

        class Careless:
            def __init__(self, model, pruned):
                self.model, self.block = model, original(model, pruned)

            def __enter__(self):
                self.handle = self.model.register_forward_hook(lambda *args: None)
                return self.block.__enter__()

            def __exit__(self, kind, *rest):
                if kind is None:
                    self.handle.remove()
                return self.block.__exit__(kind, *rest)

        monkeypatch.setattr(entry, "hooked", Careless)
        assert failed() == {"no trace"}


class TestBrokenMethods:
    """What only some kinds of methods and families do is broken."""

    def test_weights_of_keys(self, monkeypatch):
        def halve(result, mask, bias, dtype):
            return result * 0.5

        wrap(monkeypatch, weighted, "biased_mask", halve)
        assert failed(method="weighted_cover") == REFERENCES - {"beams"}

    def test_weights_are_forgotten_after_the_prefill(self, monkeypatch):
        def forget(result, self, *args):
            cache = caches_of(args[-1]) if args[-1] is not None else None
            if isinstance(cache, caches.PrunedCache) and cache.weights is not None:
                cache.weights = torch.zeros_like(cache.weights)

        wrap(monkeypatch, weighted.WeightedPrunedModel, "post_forward", forget)
        assert failed(method="weighted_cover") == REFERENCES | {"uncached"}

    def test_columns_of_cross_attention(self, monkeypatch):
        def roll(result, *args):
            return result.roll(1, -1)

        wrap(monkeypatch, cross.CrossPrunedModel, "_column_mask", roll)
        assert failed("mllama") == REFERENCES | {"batch"}

    def test_later_layers_see_other_positions(self, monkeypatch):
        from gprune.hf.decoder import prefill

        original = prefill.gather_columns

        def gather_others(values, order):
            return original(values, order).roll(1, 1)

        monkeypatch.setattr(prefill, "gather_columns", gather_others)
        expected = (REFERENCES | {"uncached", "batch"}) - {"image turn"}
        assert failed(method="fastv", inapplicable={"image turn"}) == expected


class TestBrokenTransformers:
    """One behaviour of transformers is broken."""

    def test_gaps_in_positions_are_closed(self, monkeypatch):
        """What a packed sequence would do."""

        def close(forward):
            def closed(self, x, position_ids):
                gaps = (position_ids.diff(dim=1) - 1).clamp(min=0).cumsum(1)
                return forward(
                    self, x, torch.cat([position_ids[:, :1], position_ids[:, 1:] - gaps], 1)
                )

            return closed

        kind = modeling_llama.LlamaRotaryEmbedding
        monkeypatch.setattr(kind, "forward", close(kind.forward))
        # Padding of a second turn leaves a gap without gprune too.
        expected = (REFERENCES | {"uncached"}) - {"image turn"}
        assert failed(inapplicable={"image turn"}) == expected

    def test_masked_scatter_fills_rows_in_another_order(self, monkeypatch):
        """Images of a batch change places, without gprune too."""

        def backwards(self, mask, source):
            filled = self.clone()
            filled[mask.expand_as(self)] = source.reshape(-1, self.shape[-1]).flip(0).flatten()
            return filled

        monkeypatch.setattr(torch.Tensor, "masked_scatter", backwards)
        assert failed() == {"model"}

    def test_masked_scatter_turns_each_image_around(self, monkeypatch):
        """The rows of each batch row are filled backwards, so a model agrees with itself."""

        def backwards(self, mask, source):
            filled, rows = self.clone(), source.reshape(-1, self.shape[-1])
            counts = mask[..., 0].sum(1).tolist()
            turned = torch.cat([row.flip(0) for row in rows.split(counts)])
            filled[mask.expand_as(self)] = turned.flatten()
            return filled

        monkeypatch.setattr(torch.Tensor, "masked_scatter", backwards)
        # The images of two turns change places in one call, without gprune too.
        assert failed(inapplicable={"image turn"}) == REFERENCES - {"image turn"}

    def test_padding_is_not_masked(self, monkeypatch):
        original = modeling_llama.create_causal_mask

        def without_padding(*args, **kwargs):
            return original(*args, **{**kwargs, "attention_mask": None})

        monkeypatch.setattr(modeling_llama, "create_causal_mask", without_padding)
        assert failed() == {"model"}


def caches_of(output: Any) -> Any:
    from gprune.hf import find_cache

    return find_cache(output)


class MaskingModel(PrunedModel):
    """A model under pruning that masks dropped tokens and lets them stay."""

    history: list[torch.Tensor]
    updating = False

    def pre_forward(self, model, args, kwargs):
        call = dict(kwargs)
        ids, cache = call["input_ids"], call.get("cache", call.get("past_key_values"))
        past = 0 if cache is None else cache.get_seq_length()
        if past == 0:
            self.history = []
        if any(call.get(name) is not None for name in ("pixel_values", "mm_encoder_outputs")):
            twin = {**call, "cache": None, "past_key_values": None}
            if past:
                twin["attention_mask"] = call["attention_mask"][:, past:]
            super().pre_forward(model, args, twin)
            kept = self.kept_mask
        else:
            kept = torch.ones_like(ids, dtype=torch.bool)
            if not past:
                self.kept_mask, self.selections = kept, []
        self.history.append(kept)
        mask = call.get("attention_mask")
        real = torch.ones(len(ids), past + ids.shape[1]) if mask is None else mask
        seen = torch.cat(self.history, 1)
        call["attention_mask"] = real.long() * seen
        return args, call

    def post_forward(self, model, args, kwargs, output):
        pass
