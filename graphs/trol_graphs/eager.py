"""The eager reference: the same modules with weights, run by torch on a CPU in fp32, greedy and without any graph."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trol_graphs.model import TroLModel, build_model
from trol_graphs.roles import Decode, Extend, Prefill, Vision
from trol_runtime.model_config import ModelConfig
from trol_runtime.rope import rope_rows

ReadTensor = Callable[[str], Tensor]  # a tensor by its checkpoint key


def load_part(model: TroLModel, name: str, read: ReadTensor) -> nn.Module:
    """The part of a meta-device model called `name`, a copy with its weights in fp32; the model itself stays empty."""
    part = copy.deepcopy(model.get_submodule(name))
    weights = {key: read(f"{name}.{key}" if name else key).float() for key, _ in part.named_parameters()}
    part.load_state_dict(weights, strict=True, assign=True)
    return part.requires_grad_(False)


def eager_model(config: ModelConfig, read: ReadTensor) -> TroLModel:
    """The whole model in memory, fp32."""
    model = load_part(build_model(config), "", read)
    assert isinstance(model, TroLModel)
    return model


class EagerSession:
    """One sequence on the eager model, with the call names and numpy types of the runtime's session (batch 1)."""

    def __init__(self, model: TroLModel) -> None:
        self.model = model
        self.config = model.config
        self.reset()

    def reset(self) -> None:
        self.length = 0
        self.caches: list[Tensor] = []
        self.second_pass: list[Tensor] = []  # kept by `extend` alone

    @torch.inference_mode()
    def encode(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(crops, 3, h, w) -> (crops, tokens, hidden)"""
        return Vision(self.model)(torch.from_numpy(pixel_values)).numpy()

    @torch.inference_mode()
    def prefill(
        self, input_ids: NDArray[np.int64], image_embeds: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """int64 (1, s) -> fp32 logits (1, vocab) of the last position; a prompt of one token is a single pass."""
        self.reset()
        seq = input_ids.shape[1]
        self.caches = self._grown(self.caches, seq)
        if seq == 1:
            return self.decode(input_ids[0])
        cos, sin = self._rope(np.arange(seq)[None], seq)
        embeds = self._embeds(image_embeds)
        logits, self.caches = Prefill(self.model)(torch.from_numpy(input_ids), embeds, cos, sin, self.caches)
        self.length = seq
        return logits.numpy()

    @torch.inference_mode()
    def extend(
        self, input_ids: NDArray[np.int64], image_embeds: NDArray[np.float32] | None = None, known: int | None = None
    ) -> NDArray[np.float32]:
        """Part of a prompt after the parts that earlier calls took: int64 (1, s) -> fp32 logits (1, vocab).

        known: tokens of the whole prompt where later parts are known already; rotary tables may depend on it
        """
        start, end = self.length, self.length + input_ids.shape[1]
        self.caches, self.second_pass = self._grown(self.caches, end), self._grown(self.second_pass, end)
        positions = np.arange(start, end)
        cos, sin = self._rope(positions[None], known or end)
        mask = torch.arange(self.caches[0].shape[2]) <= torch.from_numpy(positions)[:, None]
        logits, self.caches, self.second_pass = Extend(self.model)(
            torch.from_numpy(input_ids),
            self._embeds(image_embeds),
            cos,
            sin,
            torch.tensor([start]),
            mask[None, None],
            self.caches,
            self.second_pass,
        )
        self.length = end
        return logits.numpy()

    @torch.inference_mode()
    def decode(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """int64 (1,) -> fp32 logits (1, vocab)"""
        self.caches = self._grown(self.caches, self.length + 1)
        cos, sin = self._rope(np.array([[self.length]]), self.length + 1)
        mask = torch.arange(self.caches[0].shape[2]) <= self.length
        logits, self.caches = Decode(self.model)(
            torch.from_numpy(token_ids), cos, sin, torch.tensor([self.length]), mask[None, None, None], self.caches
        )
        self.length += 1
        return logits.numpy()

    def greedy(
        self, input_ids: NDArray[np.int64], image_embeds: NDArray[np.float32] | None, steps: int
    ) -> NDArray[np.int64]:
        """The first `steps` greedy ids, (1, steps), stopping at nothing."""
        ids = [self.prefill(input_ids, image_embeds).argmax(-1)]
        while len(ids) < steps:
            ids.append(self.decode(ids[-1]).argmax(-1))
        return np.stack(ids, axis=1)

    def _grown(self, caches: list[Tensor], length: int) -> list[Tensor]:
        """`caches`, none of them or all, with room for `length` tokens."""
        decoder = self.config.decoder
        old = caches or [torch.zeros(1, decoder.kv_heads, 0, decoder.head_dim)] * (2 * decoder.layers)
        return [nn.functional.pad(cache, (0, 0, 0, max(length - cache.shape[2], 0))) for cache in old]

    def _embeds(self, image_embeds: NDArray[np.float32] | None) -> Tensor:
        hidden = self.config.decoder.hidden_size
        return torch.zeros(1, hidden) if image_embeds is None else torch.from_numpy(image_embeds).reshape(-1, hidden)

    def _rope(self, positions: NDArray[np.int64], length: int) -> tuple[Tensor, Tensor]:
        cos, sin = rope_rows(self.config.decoder, positions, length)
        return torch.from_numpy(cos), torch.from_numpy(sin)
