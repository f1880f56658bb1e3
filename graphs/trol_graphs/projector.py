"""The two projectors, vision features to the decoder's hidden size; Sequential, as the checkpoint numbers parts."""

from __future__ import annotations

from torch import nn

from trol_runtime.model_config import ModelConfig


def clip_projector(config: ModelConfig) -> nn.Sequential:
    """TroL-1.8B, 7B: Linear, exact GELU, Linear; (tokens, features) -> (tokens, hidden)."""
    features, hidden = config.vision.feature_size, config.decoder.hidden_size
    return nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden))


def internvit_projector(config: ModelConfig) -> nn.Sequential:
    """TroL-3.8B: the same behind a LayerNorm with torch's default eps."""
    features, hidden = config.vision.feature_size, config.decoder.hidden_size
    return nn.Sequential(nn.LayerNorm(features), nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden))
