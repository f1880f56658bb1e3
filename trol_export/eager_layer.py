"""One layer of the eager model run by every role, with what the engine's sub-graph of it is fed and should return."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trol_graphs.attend import attend_to_cache, keep_and_attend_to_own
from trol_graphs.layer_context import LayerContext
from trol_graphs.named_values import recorded
from trol_graphs.roles import run_once, traverse
from trol_runtime.cache_names import PAST, PAST_SECOND_PASS, PRESENT, PRESENT_SECOND_PASS
from trol_runtime.model_config import Decoder
from trol_runtime.rope import rope_rows

Feeds = dict[str, Tensor | NDArray]


@dataclass(frozen=True)
class LayerRun:
    """One eager run of a layer: what the engine's sub-graph of that role is fed, and what it should return."""

    role: str
    feeds: Feeds
    wanted: dict[str, Tensor]
    caches: list[Tensor]  # as written


@dataclass(frozen=True)
class EagerLayer:
    """One layer with weights, run by every role over the values of a prompt."""

    index: int
    layer: torch.nn.Module
    gate: torch.nn.Module
    config: Decoder

    def empty_caches(self, tokens: int) -> list[Tensor]:
        """Key and value of the first pass and of the second."""
        return [torch.zeros(1, self.config.kv_heads, tokens, self.config.head_dim) for _ in range(4)]

    def prefill(self, x: Tensor, image_mask: Tensor | None, ids: NDArray[np.int64], caches: list[Tensor]) -> LayerRun:
        """The whole prompt: x (s, hidden), image_mask (s, 1) or None, ids (s,)"""
        cos, sin = self._rope(0, len(x), len(x))
        prompt = LayerContext(1, -1, cos, sin, image_mask)
        written: list[Tensor] = []
        with recorded() as values:
            first = prompt.attending(keep_and_attend_to_own(caches, written))
            traverse(self.layer, self.index, x, first, prompt, self.gate)
        feeds: Feeds = {self._before: x, "input_ids": ids[None], "cos": cos, "sin": sin}
        return self._run("prefill", feeds, values, caches, written)

    def extend(
        self,
        x: Tensor,
        image_mask: Tensor | None,
        ids: NDArray[np.int64],
        begin: int,
        known: int,
        caches: list[Tensor],
    ) -> LayerRun:
        """A part of a prompt of `known` tokens, from token `begin` on: shapes as in `prefill`, of the part."""
        positions = torch.arange(begin, begin + len(x))
        mask = (torch.arange(caches[0].shape[2]) <= positions[:, None])[None, None]
        place = torch.tensor([begin])
        cos, sin = self._rope(begin, begin + len(x), known)
        part = LayerContext(1, -1, cos, sin, image_mask)
        first_pass: list[Tensor] = []
        second_pass: list[Tensor] = []
        with recorded() as values:
            first = part.attending(attend_to_cache(caches[:2], first_pass, place, mask))
            second = part.attending(attend_to_cache(caches[2:], second_pass, place, mask))
            traverse(self.layer, self.index, x, first, second, self.gate)
        feeds: Feeds = {self._before: x, "input_ids": ids[None], "cos": cos, "sin": sin}
        feeds |= {"write_index": place, "attention_mask": mask}
        return self._run("extend", feeds, values, caches, first_pass + second_pass)

    def decode(self, x: Tensor, token: NDArray[np.int64], position: int, caches: list[Tensor]) -> LayerRun:
        """One token: x (1, hidden), token (1,)"""
        mask = torch.ones(1, 1, 1, caches[0].shape[2], dtype=torch.bool)
        place = torch.tensor([position])
        cos, sin = self._rope(position, position + 1, position + 1)
        written: list[Tensor] = []
        with recorded() as values:
            context = LayerContext(-1, 1, cos, sin, attend=attend_to_cache(caches, written, place, mask))
            run_once(self.layer, self.index, x, context)
        feeds: Feeds = {self._before: x} if self.index else {"token_ids": token}
        feeds |= {"cos": cos, "sin": sin, "write_index": place, "attention_mask": mask}
        return self._run("decode", feeds, values, caches, written)

    def _run(
        self, role: str, feeds: Feeds, values: dict[str, Tensor], caches: list[Tensor], written: list[Tensor]
    ) -> LayerRun:
        """What goes in and comes out by name: caches are key and value of the first pass, then of the second if any."""
        places = [f"{self.index}.{part}" for part in ("key", "value")]
        pasts = [f"{kind}.{place}" for kind in (PAST, PAST_SECOND_PASS) for place in places]
        presents = [f"{kind}.{place}" for kind in (PRESENT, PRESENT_SECOND_PASS) for place in places]
        feeds = feeds | dict(zip(pasts, caches, strict=False))
        return LayerRun(role, feeds, {**values, **dict(zip(presents, written, strict=False))}, written)

    def _rope(self, begin: int, end: int, known: int) -> tuple[Tensor, Tensor]:
        cos, sin = rope_rows(self.config, np.arange(begin, end)[None], known)
        return torch.from_numpy(cos), torch.from_numpy(sin)

    @property
    def _before(self) -> str:
        return f"layers.{self.index - 1}.output" if self.index else "inputs_embeds"
