"""What methods read inside the language model besides hidden states."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch

from gprune import FastV
from gprune.hf.decoder import prefill
from gprune.proof.batches import add_video, finish_batch, forward, make_batch
from gprune.proof.models import IMAGE, SPECIMENS
from gprune.pruners.decoder import DecoderPruner, DecoderTokens, check_layers
from gprune.pruners.reduction import Reduction
from tests.hf.decoder.reference import Reference
from tests.hf.layerwise import embedded, run

OPTIONAL = [field.name for field in fields(DecoderTokens)][3:]


@dataclass(frozen=True)
class Recorder(DecoderPruner):
    """Drops the first two tokens at two layers, and records what it was given."""

    name: ClassVar[str] = "recorder"
    reads: ClassVar[tuple[str, ...]] = ("attention", *OPTIONAL)
    default_positions: ClassVar[str] = "compact"
    given: ClassVar[list[DecoderTokens]] = []

    def stages(self, depth):
        return check_layers((1, 2), depth)

    def planned(self, stage, stages, total):
        return total - 2 * stage - 2

    def drop(self, tokens, k):
        self.given.append(tokens)
        return Reduction(torch.arange(2, k + 2))


class RanksAhead(Recorder):
    """The same with the attention of the next layer."""

    ranks_ahead = True


class ReadsKeys(Recorder):
    """The same without attention."""

    reads = ("keys",)


class ReadsNothing(Recorder):
    """The same with hidden states alone."""

    reads = ()


def given_to(pruner, model, batch):
    """Returns what a recorder was given in a prefill."""
    pruner.given.clear()
    with pruner(model):
        forward(model, batch, position_ids=batch.positions(model))
    return list(pruner.given)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.total == other.total
        for name in ("hidden", "attention", *OPTIONAL):
            mine, wanted = getattr(one, name), getattr(other, name)
            assert mine.shape == wanted.shape, name
            assert mine.dtype == wanted.dtype, name
            largest = max(1, float(wanted.abs().max()))
            assert mine.double().sub(wanted).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("method", [Recorder, RanksAhead])
@pytest.mark.parametrize("images", [[1], [3], [2, 0, 1]])
@torch.no_grad()
def test_equal_those_of_the_full_length_model(specimen, model, eager, images, method):
    batch = make_batch(specimen, model, images, seed=4)
    found = given_to(method(1), model, batch)
    reference = Reference(eager, method(1), batch)
    method.given.clear()
    embeds, real = embedded(eager, batch), batch.inputs["attention_mask"].bool()
    run(eager, embeds, real, batch.positions(eager), reference)
    assert len(found) == 2 * sum(count > 0 for count in images)
    assert_same(found, method.given)


@torch.no_grad()
def test_videos_beside_images():
    specimen = SPECIMENS["qwen2_5_vl"]
    model, eager = specimen.build(), specimen.build(attention="eager")
    batch, frames = add_video(specimen, model, make_batch(specimen, model, [2]))
    found = given_to(Recorder(1), model, batch)
    reference = Reference(eager, Recorder(1), batch)
    Recorder.given.clear()
    embeds, real = embedded(eager, batch), batch.inputs["attention_mask"].bool()
    run(eager, embeds, real, batch.positions(eager), reference)
    assert_same(found, Recorder.given)
    assert found[0].groups.unique_consecutive().tolist() == list(range(2 + frames))


def test_places_of_two_images():
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [0, 2])
    first, second = given_to(Recorder(1), model, batch)
    raster = [[r, c] for r in range(4) for c in range(4)]
    assert first.coordinates.tolist() == raster * 2
    assert first.rasters.tolist() == [[4, 4]] * 32
    assert first.groups.tolist() == [0] * 16 + [1] * 16
    # BOS and two words, the first image, three words, the second image.
    assert first.columns.tolist() == [*range(3, 19), *range(22, 38)]
    assert second.coordinates.tolist() == (raster * 2)[2:]
    assert second.columns.tolist() == first.columns[2:].tolist()
    assert len(first.text_keys) == len(first.normed_text) == len(second.text_hidden) == 7


def test_row_ends_are_no_tokens_of_the_raster():
    specimen = SPECIMENS["llava_next"]
    model = specimen.build()
    (first, _) = given_to(Recorder(1), model, make_batch(specimen, model, [1]))
    thumbnail, canvas = first.groups == 0, first.groups == 1
    assert len(first) == int(thumbnail.sum() + canvas.sum())
    rows, columns = first.rasters[canvas][0].tolist()
    assert rows * columns == int(canvas.sum()) > int(thumbnail.sum())
    places = [[r, c] for r in range(rows) for c in range(columns)]
    assert first.coordinates[canvas].tolist() == places


def test_a_prompt_that_ends_in_its_image_has_no_text():
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    ids = batch.inputs["input_ids"]
    ids = ids[:, : int((ids == IMAGE).nonzero()[-1, 1]) + 1]
    shorter = finish_batch(specimen, ids, torch.ones_like(ids), batch.rows, batch.lengths)
    for tokens in given_to(Recorder(1), model, shorter):
        assert tokens.text_keys.shape == (0, tokens.keys.shape[1])
        assert tokens.text_hidden.shape == tokens.normed_text.shape == (0, tokens.hidden.shape[1])
        assert tokens.attention.shape == (1, len(tokens))  # the last token still ranks


def test_only_what_is_read_is_computed(monkeypatch):
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    calls = []
    for name in ("keys_of", "attention_of"):
        function = getattr(prefill, name)

        def counted(*args, function=function, name=name):
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(prefill, name, counted)
    monkeypatch.setattr(ReadsNothing, "raters", lambda *args: pytest.fail("nobody rates"))
    for tokens in given_to(ReadsNothing(1), model, batch):
        assert all(getattr(tokens, name) is None for name in ("attention", *OPTIONAL))
    assert calls == []
    for tokens in given_to(ReadsKeys(1), model, batch):
        assert [name for name in OPTIONAL if getattr(tokens, name) is not None] == ["keys"]
        assert tokens.attention is None
    assert calls == ["keys_of"] * 2
    with FastV(0.3)(model):
        forward(model, batch)
    assert calls[2:] == ["keys_of", "attention_of"]


def test_missing_attention_is_named():
    with pytest.raises(ValueError, match="attention is missing"):
        FastV(0.5).drop(DecoderTokens(torch.ones(4, 2), None, 4), 2)
