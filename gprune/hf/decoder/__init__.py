"""Prunes visual tokens between two layers of the language model.

The model's own call stays as it is. A pre-hook on each layer drops tokens where a method has a
stage: it gathers the hidden states and rotary embeddings of the columns that stay, and builds the
mask of the shorter layers from a 2-D mask as the model does. Layer 0 sees every token, so the
cache's first layer has the length that `generate` counts with; the slots of the other layers are
recorded on the cache.

Attention is recomputed for the few queries that rank tokens, from the layer's own projections, so
the model stays on SDPA or FlashAttention.
"""

from gprune.hf.decoder.model import DecoderPrunedModel

__all__ = ["DecoderPrunedModel"]
