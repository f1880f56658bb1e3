"""Greedy generation: ids from a session, and one answer as text that can be streamed and then asked how it went."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trol_runtime.errors import UsageError
from trol_runtime.session import Session
from trol_runtime.tokenizer import TextTokenizer

DEFAULT_MAX_NEW_TOKENS = 256


def greedy_ids(session: Session, logits: NDArray[np.float32], max_new_tokens: int) -> Iterator[NDArray[np.int64]]:
    """The ids that follow a prefill's logits, int64 (batch,) per step, `max_new_tokens` steps, without a stop rule.

    The decode step for an id runs when the next one is asked for.
    """
    for step in range(max_new_tokens):
        ids = logits.argmax(axis=-1)
        yield ids
        if step + 1 < max_new_tokens:
            logits = session.decode(ids)


def collect_ids(
    steps: Iterator[NDArray[np.int64]], batch: int, eos_token_ids: Collection[int], pad_token_id: int
) -> NDArray[np.int64]:
    """All rows' new ids, int64 (batch, steps): a row ends with its eos, then pads; ends when every row has ended."""
    columns: list[NDArray[np.int64]] = []
    ended = np.zeros(batch, np.bool_)
    for ids in steps:
        columns.append(np.where(ended, pad_token_id, ids))
        ended |= np.isin(ids, list(eos_token_ids))
        if ended.all():
            break
    return np.stack(columns, axis=1) if columns else np.zeros((batch, 0), np.int64)


@dataclass
class Generation:
    """One answer being generated: iterate once for its text, piece by piece; then the other fields are complete.

    session: holds the prompt and is the answer's alone: another prefill in between would change what follows
    finish_reason: "eos" (the stop token came), "stop" (the turn-end mark came: the answer's text is complete and what
      the official code would still generate is cut from it), "length" (no room or budget left); None while running
    max_new_tokens: at most this many ids come; less than was asked for where the engine has no room for more
    timings_ms: load is the caller's; decode covers all steps after the first token, not what the caller does in between
    """

    session: Session
    tokenizer: TextTokenizer
    first_logits: NDArray[np.float32]
    eos_token_ids: tuple[int, ...]
    max_new_tokens: int
    prompt_tokens: int
    image_tokens: int
    timings_ms: dict[str, float]
    token_ids: list[int] = field(default_factory=list)
    finish_reason: Literal["eos", "length", "stop"] | None = None

    def __iter__(self) -> Iterator[str]:
        if self.token_ids:
            raise UsageError("an answer can be iterated once; keep its pieces, or start() it again")
        yield from self.tokenizer.stream(self._text_ids())
        if self.finish_reason is None:
            self.finish_reason = "stop"

    def _text_ids(self) -> Iterator[int]:
        """Ids that spell the answer, eos not among them."""
        for (token_id,) in self._timed(greedy_ids(self.session, self.first_logits, self.max_new_tokens)):
            self.token_ids.append(int(token_id))
            if token_id in self.eos_token_ids:
                self.finish_reason = "eos"
                return
            yield int(token_id)
        self.finish_reason = "length"

    def _timed(self, steps: Iterator[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
        """The steps as they come, each one's time added to the decode time."""
        self.timings_ms["decode"] = 0.0
        while True:
            begin = time.perf_counter()
            ids = next(steps, None)
            self.timings_ms["decode"] += 1e3 * (time.perf_counter() - begin)
            if ids is None:
                return
            yield ids
