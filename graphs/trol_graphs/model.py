"""One TroL model: vision tower, projector, trunk, head and gate under the checkpoint's own parameter names.

`build_model` lays a model out on the meta device, without memory; `eager` gives it weights, `roles` trace it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from trol_graphs.decoder_internlm2 import InternLM2Trunk
from trol_graphs.decoder_phi3 import Phi3LanguageModel
from trol_graphs.projector import clip_projector, internvit_projector
from trol_graphs.vision_clip import ClipTower
from trol_graphs.vision_internvit import InternVitTower
from trol_runtime.model_config import ClipVision, InternVitVision, ModelConfig


class TroLModel(nn.Module):
    """What both architectures share; each says where its parts are, as paths of submodules.

    Here a part is used in place; those who lack the memory for a whole model load one part at a time.
    """

    VISION: ClassVar[tuple[str, str]]  # tower, projector
    EMBEDDING: ClassVar[str]
    LAYERS: ClassVar[str]
    HEAD: ClassVar[tuple[str, str]]  # final norm, output matrix
    GATE: ClassVar[str] = "trol_gating"

    vision_proj: nn.Sequential
    # One gate, not one per layer: upstream holds the SAME gate L times, so only the last of trol_gating.pt counts.
    trol_gating: nn.Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def embedding(self) -> nn.Module:
        """ids (tokens,) -> (tokens, hidden)"""
        return self.get_submodule(self.EMBEDDING)

    @property
    def layers(self) -> list[nn.Module]:
        """One pass each: x (tokens, hidden), its `LayerContext` -> (tokens, hidden)"""
        return list(self.get_submodule(self.LAYERS).children())

    def vision_features(self, pixels: Tensor) -> Tensor:
        """The tower without its projector: (crops, 3, h, w), normalised -> (crops * tokens per crop, features)"""
        return self.get_submodule(self.VISION[0])(pixels)

    def logits(self, x: Tensor) -> Tensor:
        """Final norm and head: (tokens, hidden) -> (tokens, vocab)"""
        for part in self.HEAD:
            x = self.get_submodule(part)(x)
        return x


class TroLInternLM2(TroLModel):
    """TroL-1.8B and 7B."""

    VISION = ("vit", "vision_proj")
    EMBEDDING = "model.tok_embeddings"
    LAYERS = "model.layers"
    HEAD = ("model.norm", "output")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert isinstance(config.vision, ClipVision)
        decoder = config.decoder
        self.vit = ClipTower(config.vision)
        self.vision_proj = clip_projector(config)
        self.model = InternLM2Trunk(decoder)
        self.output = nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=False)
        self.trol_gating = nn.Linear(decoder.hidden_size, 1)


class TroLPhi3(TroLModel):
    """TroL-3.8B."""

    VISION = ("vision_model", "vision_proj")
    EMBEDDING = "language_model.model.embed_tokens"
    LAYERS = "language_model.model.layers"
    HEAD = ("language_model.model.norm", "language_model.lm_head")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert isinstance(config.vision, InternVitVision)
        self.vision_model = InternVitTower(config.vision)
        self.vision_proj = internvit_projector(config)
        self.language_model = Phi3LanguageModel(config.decoder)
        self.trol_gating = nn.Linear(config.decoder.hidden_size, 1)


def build_model(config: ModelConfig) -> TroLModel:
    """The model on the meta device: shapes and names, no memory."""
    architecture = TroLInternLM2 if config.arch == "internlm2" else TroLPhi3
    with torch.device("meta"):
        return architecture(config).requires_grad_(False)


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor the model computes with; names are the checkpoint's keys."""
    return {name: tuple(parameter.shape) for name, parameter in build_model(config).named_parameters()}


def dead_tensors(config: ModelConfig) -> set[str]:
    """Tensors an official checkpoint holds and the official forward pass never reads; export drops and lists them.

    The gates 0 to L-2 belong here too, but the checkpoint reader resolves `trol_gating.pt` before names are compared.
    """
    if config.arch == "phi3":
        return set()
    return {f"vit.vision_tower.vision_model.post_layernorm.{part}" for part in ("weight", "bias")}
