"""Models and calls that methods inside the language model refuse."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from gprune import FastV, GPrune, PyramidDrop, SparseVLM
from gprune.errors import UnsupportedModelError
from gprune.proof.batches import GREEDY, forward, make_batch
from gprune.proof.models import IMAGE, SPECIMENS, TEXT, builder


class TestRefusals:
    """Refusals, each with what to do instead."""

    def setup_method(self):
        self.specimen = SPECIMENS["llava"]
        self.model = self.specimen.build()
        self.batch = make_batch(self.specimen, self.model, [1])

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

    def test_compact_positions_with_mrope(self):
        model = SPECIMENS["qwen2_vl"].build()
        with pytest.raises(ValueError, match="positions='compact' would move the rows"):
            PyramidDrop(0.3)(model, positions="compact").__enter__()
        with PyramidDrop(0.3)(model) as pruned:
            assert pruned.positions == "original"

    def test_missing_outputs(self):
        with pytest.raises(ValueError, match=r"layers=\(2,\) must be .*from 0 to 1.*the output"):
            SparseVLM(0.3, layers=(2,))(self.model).__enter__()

    def test_missing_layers(self):
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
        with pytest.raises(UnsupportedModelError, match="layers are on cpu, meta"):
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
