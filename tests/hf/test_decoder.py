"""Pruning between layers: against a full-length model whose later layers cannot see what went."""

from __future__ import annotations

import copy
import math
import threading

import numpy as np
import pytest
import torch
import transformers as tf

from gprune import FastV, GPrune, PyramidDrop, SparseVLM, kept_count
from gprune.errors import UnsupportedModelError
from gprune.hf.decoder import FAMILIES, attention_of
from tests.hf.batches import GREEDY, STEPS, add_video, finish_batch, make_batch, noise
from tests.hf.layerwise import embedded, greedy, run
from tests.hf.models import BREAK, IMAGE, SPECIMENS, TEXT, VIDEO, builder

LAYOUTS = [[1], [3], [2, 0, 1]]
PRUNERS = [
    FastV(0.36),
    FastV(5, layer=1),
    PyramidDrop(0.2, layers=(1, 2)),
    SparseVLM(0.3, layers=(1, 2), scale=6.0, recycle=0.6, clusters=0.3),
]


def label(value):
    return value.name if isinstance(value, FastV | PyramidDrop | SparseVLM) else None


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return SPECIMENS[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.build()


@pytest.fixture(scope="module")
def eager(family):
    return family.build(attention="eager")


def forward(model, batch, **options):
    with torch.no_grad():
        return model(**batch.inputs, **options)


def top(scores, k):
    """Indices of the k highest, ascending, ties to the lowest."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


def peaks(points, k):
    """DPC-KNN from its definition: centres, and the centre of each point."""
    n = len(points)
    scale = math.sqrt(points.shape[1])
    d = [[float(np.linalg.norm(a - b)) / scale for b in points] for a in points]
    density = [math.exp(-sum(x * x for x in sorted(row)[:k]) / k) for row in d]
    score = []
    for i in range(n):
        denser = [j for j in range(n) if (density[j], -j) > (density[i], -i)]
        away = min((d[i][j] for j in denser), default=max(map(max, d)))
        score.append(density[i] * away)
    centres = top(score, k)
    return centres, [
        i if i in centres else min(centres, key=lambda c: (d[i][c], c)) for i in range(n)
    ]


class Reference:
    """The methods from their papers, on attention weights that the eager kernel gives."""

    def __init__(self, model, pruner, batch):
        self.pruner = pruner
        self.stages = pruner.stages(len(model.get_decoder().layers))
        ids = batch.inputs["input_ids"]
        self.real = batch.inputs["attention_mask"].bool()
        self.length = ids.shape[1]
        embeds = embedded(model, batch)
        visual = (ids == IMAGE) | (ids == VIDEO)
        newline = getattr(model.base_model, "image_newline", None)
        inside = visual if newline is None else visual & (embeds != newline).any(-1)
        self.candidates = [row.nonzero().squeeze(1).tolist() for row in inside]
        self.left = [list(row) for row in self.candidates]
        self.raters = [self.rated_by(*row) for row in zip(embeds, ids, visual, inside, strict=True)]
        self.done = {}

    def rated_by(self, embeds, ids, visual, inside):
        if not isinstance(self.pruner, SparseVLM) or not inside.any():
            return [self.length - 1]
        after = [c for c in range(self.length) if c > max(visual.nonzero())]
        x, y = embeds[inside].double().numpy(), embeds[after].double().numpy()
        share = np.exp(x @ y.T)
        share = (share / share.sum(1, keepdims=True)).mean(0)
        return [c for c, value in zip(after, share, strict=True) if value >= share.mean()]

    def count(self, stage, total, left, attention):
        final = kept_count(total, self.pruner.keep)
        if isinstance(self.pruner, PyramidDrop):
            return round(total * (final / total) ** ((stage + 1) / len(self.stages)))
        if isinstance(self.pruner, SparseVLM) and stage + 1 < len(self.stages):
            rank = np.linalg.matrix_rank(attention)
            return min(left, max(final, int(self.pruner.scale * rank)))
        return min(final, left)

    def choose(self, stage, row, hidden, weights):
        """Columns that stay, and the clusters whose means do."""
        left = self.left[row]
        attention = weights[row].mean(0)[self.raters[row]][:, left].numpy()
        scores = attention.mean(0)
        k = self.count(stage, len(self.candidates[row]), len(left), attention)
        means = 0
        if isinstance(self.pruner, SparseVLM) and k < len(left):
            share = self.pruner.clusters * self.pruner.recycle
            means = max(0, min(k - 1, math.ceil(share * (len(left) - k))))
        stay = top(scores, k - means)
        if not means:
            return [left[i] for i in stay], {}
        going = sorted(set(range(len(left))) - set(stay), key=lambda i: (-scores[i], i))
        recycled = sorted(going[: max(means, round(self.pruner.recycle * len(going)))])
        points = hidden[row, [left[i] for i in recycled]].double().numpy()
        centres, of = peaks(points, means)
        clusters = {
            left[recycled[c]]: [left[r] for r, home in zip(recycled, of, strict=True) if home == c]
            for c in centres
        }
        return sorted([left[i] for i in stay] + list(clusters)), clusters

    def __call__(self, index, hidden, look):
        gone = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        if index not in self.stages:
            return gone, hidden
        if index not in self.done:
            stage = self.stages.index(index)
            weights = look(isinstance(self.pruner, PyramidDrop))
            rows = [row for row, columns in enumerate(self.candidates) if columns]
            chosen = {row: self.choose(stage, row, hidden, weights) for row in rows}
            self.done[index] = chosen, [list(columns) for columns in self.left]
            for row, (stay, _) in chosen.items():
                self.left[row] = stay
        chosen, before = self.done[index]
        hidden = hidden.clone()
        for row, (stay, clusters) in chosen.items():
            gone[row, sorted(set(before[row]) - set(stay))] = True
            means = {c: hidden[row, members].mean(0) for c, members in clusters.items()}
            for centre, mean in means.items():
                hidden[row, centre] = mean
        return gone, hidden

    def kept_mask(self):
        mask = self.real.clone()
        for row, columns in enumerate(self.candidates):
            mask[row, columns] = False
            mask[row, self.left[row]] = True
        return mask


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", [FastV(1.0), PyramidDrop(1.0), SparseVLM(1.0)], ids=label)
@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
def test_keep_one_is_bit_identical(family, images, pruner, attention):
    model = family.build(torch.bfloat16, attention)
    batch = make_batch(family, model, images, dtype=torch.bfloat16)
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": STEPS}

    def through():
        output = model.generate(**batch.inputs, **GREEDY)
        return [
            forward(model, batch).logits,
            forward(model, batch, use_cache=False).logits,
            output.sequences,
            *output.logits,
            model.generate(**batch.inputs, **beams),
        ]

    untouched = through()
    with pruner(model) as pruned:
        same = through()
        assert pruned.kept_mask.all()
    assert all(map(torch.equal, untouched, same))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
@pytest.mark.parametrize("images", LAYOUTS)
@torch.no_grad()
def test_equals_the_masked_full_length_model(family, eager, images, pruner, attention):
    """The reference chooses for itself: what is kept, the tokens and the logits agree."""
    model = family.build(attention=attention)
    batch = make_batch(family, model, images, seed=5)
    with pruner(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
    reference = Reference(eager, pruner, batch)
    tokens, logits, _ = greedy(eager, batch, STEPS, reference)
    width = batch.inputs["input_ids"].shape[1]
    if sum(images) and len(images) > 1:
        assert torch.equal(pruned.kept_mask, reference.kept_mask())
    else:
        assert torch.equal(pruned.kept_mask & reference.real, reference.kept_mask())
    assert torch.equal(output.sequences[:, width:], tokens)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
@torch.no_grad()
def test_videos_beside_images(name, pruner):
    family = SPECIMENS[name]
    model, eager = family.build(), family.build(attention="eager")
    batch, frames = add_video(family, model, make_batch(family, model, [1]))
    with pruner(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
    reference = Reference(eager, pruner, batch)
    tokens, logits, _ = greedy(eager, batch, STEPS, reference)
    assert torch.equal(pruned.kept_mask, reference.kept_mask())
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5
    assert [group.kind for group in pruned.kept[0]].count("frame") == frames


def internvl(text):
    return builder(
        "InternVLForConditionalGeneration",
        "InternVLConfig",
        vision_config=SPECIMENS["internvl"].build().config.vision_config.to_dict,
        text_config=text,
        image_token_id=IMAGE,
    )


LANGUAGE_MODELS = {
    "qwen2": lambda: tf.Qwen2Config(**TEXT),
    "qwen3": lambda: tf.Qwen3Config(**TEXT, head_dim=12),
    "mistral": lambda: tf.MistralConfig(**TEXT, head_dim=8, sliding_window=None),
}


def llava_with(text):
    return builder(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        vision_config=lambda: SPECIMENS["llava"].build().config.vision_config,
        text_config=LANGUAGE_MODELS[text],
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        image_seq_length=16,
    )


def check_scores(model, eager, batch):
    """Recomputed attention beside the weights that the eager kernel returns."""
    embeds, real = embedded(eager, batch), batch.inputs["attention_mask"].bool()
    inputs, expected = [], []

    def watch(index, hidden, look):
        if index:
            expected.append(look(False))
        inputs.append(hidden)
        return torch.zeros_like(real), hidden

    positions = batch.positions(eager)
    _, weights = run(eager, embeds, real, positions, watch)
    decoder = model.get_decoder()
    embeddings = tuple(
        part.expand(len(real), -1, -1) for part in decoder.rotary_emb(embeds, positions)
    )
    length = real.shape[1]
    queries = [torch.tensor([length - 3, length - 1])] * len(real)
    for layer, hidden, full in zip(decoder.layers, inputs, weights, strict=True):
        found = attention_of(layer, hidden, embeddings, queries, real)
        for row, scores in enumerate(found):
            assert scores.dtype == torch.float32
            assert (scores - full[row].mean(0)[queries[row]]).abs().max() <= 1e-6


@torch.no_grad()
def test_attention_is_what_eager_would_return(family, model, eager):
    check_scores(model, eager, make_batch(family, model, [2, 0, 1]))


@pytest.mark.parametrize("text", list(LANGUAGE_MODELS))
@torch.no_grad()
def test_other_language_models(text):
    build, specimen = llava_with(text), SPECIMENS["llava"]
    model, eager = build(), build(attention="eager")
    batch = make_batch(specimen, model, [2, 0, 1])
    check_scores(model, eager, batch)
    pruner = FastV(0.3)
    with pruner(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
    reference = Reference(eager, pruner, batch)
    tokens, logits, _ = greedy(eager, batch, STEPS, reference)
    assert torch.equal(pruned.kept_mask, reference.kept_mask())
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5


@torch.no_grad()
def test_attention_is_what_output_attentions_gives():
    """The model's own output, once: the layer-by-layer model of these tests is no other."""
    family = SPECIMENS["llava"]
    eager = family.build(attention="eager")
    batch = make_batch(family, eager, [1])
    given = eager(**batch.inputs, output_attentions=True).attentions
    embeds, real = embedded(eager, batch), batch.inputs["attention_mask"].bool()
    _, weights = run(
        eager, embeds, real, batch.positions(eager), lambda i, h, look: (torch.zeros_like(real), h)
    )
    assert all((a - b).abs().max() <= 1e-6 for a, b in zip(given, weights, strict=True))


@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
@pytest.mark.parametrize("images", LAYOUTS)
def test_without_cache_is_the_same(family, model, images, pruner):
    """What was generated rates nothing, so that each step keeps what the first one kept."""
    batch = make_batch(family, model, images, seed=2)
    with pruner(model):
        cached = model.generate(**batch.inputs, **GREEDY)
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    for one, other in zip(cached.logits, uncached.logits, strict=True):
        assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
def test_beams_equal_their_own_runs_without_cache(family, model, images, pruner):
    batch = make_batch(family, model, images, seed=3)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": STEPS}
    with pruner(model):
        cached = model.generate(**batch.inputs, **options)
        uncached = model.generate(**batch.inputs, **options, use_cache=False)
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
def test_prompt_lookup_is_the_same(family, model, pruner):
    """Candidates come with the very first call, are verified several at a time, and rolled back."""
    batch = make_batch(family, model, [1])
    ids = torch.cat([batch.inputs["input_ids"], torch.tensor([[7, 8, 9, 7, 8]])], 1)
    longer = finish_batch(family, ids, torch.ones_like(ids), batch.rows, batch.lengths)
    options = {"max_new_tokens": 12, "do_sample": False}
    with pruner(model):
        slow = model.generate(**longer.inputs, **options)
        fast = model.generate(**longer.inputs, **options, prompt_lookup_num_tokens=3)
    assert torch.equal(slow, fast)


@pytest.mark.parametrize("noise_scale", [0.0, 0.3])
def test_assisted_decoding_is_the_same(family, model, noise_scale):
    assistant = family.build()
    with torch.no_grad():
        words = assistant.lm_head.weight[IMAGE + 1 : BREAK]
        words.add_(noise_scale * noise(1)(*words.shape))
    batch = make_batch(family, model, [1])
    options = {"max_new_tokens": 10, "do_sample": False}
    with FastV(0.3)(model):
        slow = model.generate(**batch.inputs, **options)
        fast = model.generate(**batch.inputs, **options, assistant_model=assistant)
    assert torch.equal(slow, fast)


@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
def test_later_layers_are_really_shorter(family, model, pruner):
    batch = make_batch(family, model, [2, 0, 1])
    real = batch.inputs["attention_mask"]
    with pruner(model) as pruned:
        output = forward(model, batch)
    depth = len(output.past_key_values.layers)
    text = (real.bool() & (batch.inputs["input_ids"] != IMAGE)).sum(1, keepdim=True)
    tokens = np.array(pruned.visual_by_layer) + text.numpy()
    assert tokens.shape == (3, depth)
    lengths = [layer.keys.shape[2] for layer in output.past_key_values.layers]
    first = pruner.stages(depth)[0]
    assert lengths[:first] == [real.shape[1]] * first
    assert lengths[first:] == tokens.max(0)[first:].tolist()
    assert lengths[-1] < lengths[0]
    assert output.logits.shape[1] == lengths[-1]
    assert tokens[:, -1].tolist() == pruned.kept_mask.sum(1).tolist()
    assert tokens[:, 0].tolist() == real.sum(1).tolist()
    assert (np.diff(tokens, axis=1) <= 0).all()
    assert output.past_key_values.get_seq_length() == real.shape[1]  # what `generate` slices by


@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
def test_kept_says_what_reached_the_last_layer(family, model, pruner):
    batch = make_batch(family, model, [2, 0, 1])
    with pruner(model) as pruned:
        forward(model, batch)
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    visual = ids == IMAGE
    assert torch.equal(pruned.kept_mask & ~visual, real & ~visual)
    always = 0
    for row, groups in enumerate(pruned.kept):
        total = sum(group.size for group in groups)
        kept = sum(len(group.indices) for group in groups)
        assert kept == (kept_count(total, pruner.keep) if total else 0)
        always = int(visual[row].sum()) - total  # the ends of a canvas's rows
        assert int((pruned.kept_mask & visual)[row].sum()) == kept + always


def test_text_in_a_second_turn(family, model, eager):
    """Several tokens at once after a pruned prompt, and one more after them."""
    batch = make_batch(family, model, [1, 2], seed=1)
    more = torch.tensor([[8, 9, 10]] * 2)
    mask = torch.cat([batch.inputs["attention_mask"], torch.ones_like(more)], 1)
    pruner = FastV(0.3, layer=1)
    positions = batch.positions(model)
    after = positions[..., -1:] + torch.arange(1, 4)
    with pruner(model), torch.no_grad():
        cache = forward(model, batch, position_ids=positions).past_key_values
        turn = model(more, attention_mask=mask, position_ids=after, past_key_values=cache)
    with torch.no_grad():
        reference = Reference(eager, pruner, batch)
        greedy(eager, batch, 1, reference)
        embeds = torch.cat([embedded(eager, batch), eager.get_input_embeddings()(more)], 1)
        logits, _ = run(eager, embeds, mask.bool(), torch.cat([positions, after], -1), reference)
    assert (turn.logits - logits[:, -3:]).abs().max() <= 1e-5


def test_decoding_without_mask_or_positions(family, model, eager):
    batch = make_batch(family, model, [1])
    pruner = PyramidDrop(0.2, layers=(1, 2))
    with pruner(model), torch.no_grad():
        output = forward(model, batch)
        token = output.logits[:, -1:].argmax(-1)
        step = model(input_ids=token, past_key_values=output.past_key_values)
        _, logits, _ = greedy(eager, batch, 2, Reference(eager, pruner, batch))
    assert (step.logits[:, -1] - logits[:, 1]).abs().max() <= 1e-5


def test_copied_cache_knows_what_was_pruned(family, model):
    batch = make_batch(family, model, [1, 2])
    with FastV(0.3)(model), torch.no_grad():
        output = forward(model, batch)
        token = output.logits[:, -1:].argmax(-1)
        twin = copy.deepcopy(output.past_key_values)
        one = model(input_ids=token, past_key_values=output.past_key_values).logits
        other = model(input_ids=token, past_key_values=twin).logits
    assert torch.equal(one, other)


def test_cache_rows_can_be_selected_and_repeated(model, family):
    batch = make_batch(family, model, [1, 2])
    with FastV(0.3)(model), torch.no_grad():
        output = forward(model, batch)
        token = output.logits[:, -1:].argmax(-1)
        mask = torch.cat([batch.inputs["attention_mask"], torch.ones_like(token)], 1)
        positions = batch.positions(model)[..., -1:] + 1
        cache = copy.deepcopy(output.past_key_values)
        plain = {"past_key_values": output.past_key_values}
        expected = model(token, attention_mask=mask, position_ids=positions, **plain).logits
        cache.batch_select_indices(torch.tensor([1]))
        cache.batch_repeat_interleave(2)
        rows = torch.tensor([1, 1])
        found = model(
            token[rows],
            attention_mask=mask[rows],
            position_ids=positions[..., rows, :],
            past_key_values=cache,
        ).logits
    assert (found - expected[rows]).abs().max() <= 1e-5


def test_rolling_back_into_the_prompt_is_refused(family, model):
    batch = make_batch(family, model, [1])
    with FastV(0.3)(model):
        cache = forward(model, batch).past_key_values
        with pytest.raises(ValueError, match="last 12 positions of the prompt"):
            cache.crop(-12)


def test_pruned_cache_is_refused_outside(family, model):
    batch = make_batch(family, model, [1])
    with FastV(0.3)(model):
        cache = forward(model, batch).past_key_values
    with pytest.raises(RuntimeError, match="pruned by gprune"):
        model(input_ids=torch.tensor([[7]]), past_key_values=cache)
    with GPrune(0.3)(model), pytest.raises(RuntimeError, match="pruned by gprune"):
        model(input_ids=torch.tensor([[7]]), past_key_values=cache)


def test_leaving_leaves_no_trace(family, model):
    batch = make_batch(family, model, [1])
    before = forward(model, batch).logits
    state = {name: set(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(ZeroDivisionError), FastV(0.3)(model):
        assert forward(model, batch).logits.shape[1] / 0
    assert torch.equal(forward(model, batch).logits, before)
    assert state == {name: set(vars(module)) for name, module in model.named_modules()}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_failed_call_leaves_the_next_one_alone(family, model):
    batch = make_batch(family, model, [1])
    with FastV(0.3)(model):
        expected = forward(model, batch).logits
        handle = model.lm_head.register_forward_pre_hook(lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            forward(model, batch)
        handle.remove()
        text = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            model(input_ids=text)
        assert torch.equal(forward(model, batch).logits, expected)


def test_two_threads_with_one_model():
    family = SPECIMENS["llava"]
    model = family.build()
    batches = [make_batch(family, model, images, seed=1) for images in ([1], [2, 0])]
    with FastV(0.3)(model):
        expected = [model.generate(**batch.inputs, **GREEDY).sequences for batch in batches]
        found = [[], []]

        def work(number):
            for _ in range(5):
                output = model.generate(**batches[number].inputs, **GREEDY)
                found[number].append(output.sequences)

        threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one, runs in zip(expected, found, strict=True):
        assert len(runs) == 5
        assert all(torch.equal(one, run) for run in runs)


def test_half_precision(family):
    model = family.build(torch.bfloat16)
    batch = make_batch(family, model, [2, 0, 1], dtype=torch.bfloat16)
    with SparseVLM(0.3)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
    assert all(logits.isfinite().all() for logits in output.logits)
    assert pruned.kept_mask.sum() < batch.inputs["attention_mask"].sum()


@pytest.mark.parametrize("padded", [False, True])
def test_padding_on_the_right(padded):
    """A forward call pads where it likes; the last real token rates."""
    family = SPECIMENS["llava"]
    model = family.build()
    batch = make_batch(family, model, [1])
    ids = batch.inputs["input_ids"]
    mask = torch.ones_like(ids)
    if padded:
        ids, mask = (torch.cat([part, torch.zeros(1, 3).long()], 1) for part in (ids, mask))
    with FastV(0.3)(model) as pruned, torch.no_grad():
        last = model(**{**batch.inputs, "input_ids": ids, "attention_mask": mask}).logits[:, -1]
        expected = forward(model, batch).logits[:, -1]
    assert (last - expected).abs().max() <= 1e-5
    assert pruned.visual_by_layer == [[16, 16, 4]]


class TestRefusals:
    """Each with what to do instead."""

    def setup_method(self):
        self.family = SPECIMENS["llava"]
        self.model = self.family.build()
        self.batch = make_batch(self.family, self.model, [1])

    def test_nesting(self):
        with FastV(0.3)(self.model), pytest.raises(RuntimeError, match="nested"):
            GPrune(0.3)(self.model).__enter__()

    def test_training(self):
        with FastV(0.3)(self.model.train()), pytest.raises(ValueError, match=r"model\.eval\(\)"):
            forward(self.model, self.batch)

    def test_labels(self):
        labels = self.batch.inputs["input_ids"]
        with FastV(0.3)(self.model), pytest.raises(ValueError, match="no labels"):
            forward(self.model, self.batch, labels=labels)

    def test_static_cache(self):
        options = {**GREEDY, "cache_implementation": "static"}
        with FastV(0.3)(self.model), pytest.raises(ValueError, match="cache_implementation unset"):
            self.model.generate(**self.batch.inputs, **options)

    def test_chunked_prefill(self):
        with FastV(0.3)(self.model), pytest.raises(ValueError, match="prefill_chunk_size=4"):
            self.model.generate(**self.batch.inputs, prefill_chunk_size=4)

    def test_image_in_a_later_turn(self):
        mask = torch.cat([self.batch.inputs["attention_mask"]] * 2, 1)
        with FastV(0.3)(self.model):
            cache = forward(self.model, self.batch).past_key_values
            inputs = {**self.batch.inputs, "attention_mask": mask}
            with pytest.raises(ValueError, match="whole conversation"), torch.no_grad():
                self.model(**inputs, past_key_values=cache)
        everything = FastV(16)(self.model)  # of the later image
        with everything, torch.no_grad(), pytest.raises(ValueError, match="whole conversation"):
            self.model(**inputs, past_key_values=cache)

    def test_four_dimensional_mask(self):
        with FastV(0.3)(self.model):
            cache = forward(self.model, self.batch).past_key_values
            mask = torch.ones(1, 1, 1, cache.get_seq_length() + 1)
            with pytest.raises(ValueError, match="attention_mask must be a 2-D tensor"):
                self.model(torch.tensor([[7]]), attention_mask=mask, past_key_values=cache)

    def test_mask_of_another_length(self):
        with FastV(0.3)(self.model):
            cache = forward(self.model, self.batch).past_key_values
            mask = torch.ones(1, 5)
            with pytest.raises(ValueError, match="attention_mask has 5 columns"):
                self.model(torch.tensor([[7]]), attention_mask=mask, past_key_values=cache)

    def test_logits_at_positions(self):
        with FastV(0.3)(self.model), pytest.raises(ValueError, match="logits_to_keep"):
            forward(self.model, self.batch, logits_to_keep=torch.tensor([1]))

    def test_compact_positions(self):
        with pytest.raises(ValueError, match="positions='compact'"):
            FastV(0.3)(self.model, positions="compact").__enter__()

    def test_layers_that_are_not_there(self):
        with pytest.raises(ValueError, match=r"layers=\(3,\) must be ascending.*from 1 to 2"):
            FastV(0.3, layer=3)(self.model).__enter__()

    @pytest.mark.parametrize("name", ["gemma3", "qwen3_vl", "paligemma", "idefics3"])
    def test_other_families_by_name(self, name):
        model = SPECIMENS[name].build()
        with pytest.raises(UnsupportedModelError, match=type(model).__name__):
            FastV(0.3)(model).__enter__()

    def test_other_attention_by_name(self):
        build = builder(
            "LlavaForConditionalGeneration",
            "LlavaConfig",
            vision_config=lambda: self.model.config.vision_config,
            text_config=lambda: tf.Cohere2Config(**TEXT),
            image_token_id=IMAGE,
        )
        with pytest.raises(UnsupportedModelError, match="Cohere2Attention"):
            FastV(0.3)(build()).__enter__()

    def test_several_devices(self):
        self.model.get_decoder().layers[-1].to("meta")
        with pytest.raises(UnsupportedModelError, match="lie on cpu, meta"):
            FastV(0.3)(self.model).__enter__()

    def test_sliding_windows(self):
        build = builder(
            "LlavaForConditionalGeneration",
            "LlavaConfig",
            vision_config=lambda: self.model.config.vision_config,
            text_config=lambda: tf.MistralConfig(**TEXT, head_dim=8, sliding_window=8),
            image_token_id=IMAGE,
        )
        with pytest.raises(UnsupportedModelError, match="sliding windows"):
            FastV(0.3)(build()).__enter__()
