"""Prompts as lists of labels, so that a test can say which tokens two prompts share; and a backend that is watched.

A label is the id of a text token, or (p, n): image token n of picture p, whose embedding is drawn from p and n.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from small_prompts import text_ids
from trol_runtime import TroL
from trol_runtime.answering import Answerer
from trol_runtime.model_config import ModelConfig
from trol_runtime.session import Session

Label = int | tuple[int, int]
Labels = list[Label]


def text(config: ModelConfig, tokens: int, seed: int = 0) -> Labels:
    return list(text_ids(config, tokens, seed)[0].tolist())


def shown(config: ModelConfig, picture: int, crops: int = 1) -> Labels:
    return [(picture, n) for n in range(crops * config.vision.tokens_per_crop)]


def shared(a: Labels, b: Labels) -> int:
    """How many labels both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def batch(config: ModelConfig, rows: Sequence[Labels]) -> dict[str, Any]:
    """The arguments of `Session.prefill`: left-padded ids, mask, and the embeddings of all rows."""
    width = max(map(len, rows))
    ids = np.full((len(rows), width), config.pad_token_id)
    mask = np.zeros_like(ids)
    for row, labels in enumerate(rows):
        ids[row, width - len(labels) :] = [
            label if isinstance(label, int) else config.image_token_id for label in labels
        ]
        mask[row, width - len(labels) :] = 1
    pictures = [label for labels in rows for label in labels if not isinstance(label, int)]
    draws = [np.random.default_rng(label).standard_normal(config.decoder.hidden_size) for label in pictures]
    embeds = np.array(draws, np.float32).reshape(-1, config.decoder.hidden_size)
    return {"input_ids": ids, "image_embeds": embeds, "attention_mask": mask}


def fresh_logits(model: TroL, rows: Sequence[Labels], decoded: Sequence[Sequence[int]] = ()) -> np.ndarray:
    """What a new session gives for prompts and, step by step, the ids (steps, rows) decoded behind them."""
    session = model.new_session()
    logits = session.prefill(**batch(model.config, rows))
    for ids in decoded:
        logits = session.decode(np.array(ids, np.int64))
    return logits


def answerer_of(model: TroL) -> Answerer:
    """What asks in words; an engine without a tokenizer has none."""
    assert model._answerer is not None
    return model._answerer


class WatchedBackend:
    """A backend that notes what runs, (graph, tokens), and raises `error` instead of run number `failing_run`."""

    def __init__(self, model: TroL) -> None:
        self.runs: list[tuple[str, int]] = []
        self.failing_run: int | None = None
        self.error: type[BaseException] = KeyboardInterrupt
        self._backend = model._backend

    def new_cache(self, keeps_second_pass: bool) -> Any:
        return self._backend.new_cache(keeps_second_pass)

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        self._note("encode", len(pixel_values))
        return self._backend.encode(pixel_values)

    def prefill(self, cache: Any, input_ids: np.ndarray, *rest: Any) -> np.ndarray:
        self._note("prefill", input_ids.shape[1])
        return self._backend.prefill(cache, input_ids, *rest)

    def extend(self, cache: Any, input_ids: np.ndarray, *rest: Any) -> np.ndarray:
        self._note("extend", input_ids.shape[1])
        return self._backend.extend(cache, input_ids, *rest)

    def decode(self, cache: Any, token_ids: np.ndarray, *rest: Any) -> np.ndarray:
        self._note("decode", len(token_ids))
        return self._backend.decode(cache, token_ids, *rest)

    def taken(self) -> list[tuple[str, int]]:
        """The runs since this was last asked for."""
        runs, self.runs = self.runs, []
        return runs

    def _note(self, graph: str, tokens: int) -> None:
        if self.failing_run == len(self.runs):
            self.failing_run = None
            raise self.error
        self.runs.append((graph, tokens))


def watched_session(
    model: TroL, keep_prefix: bool = True, prefill_chunk: int | None = None
) -> tuple[Session, WatchedBackend]:
    backend = WatchedBackend(model)
    return Session(backend, model.config, model.manifest.limits, keep_prefix, prefill_chunk), backend
