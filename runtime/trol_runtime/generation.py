"""From a prefill's logits to an answer: ids step by step, and one answer as text that is streamed and then asked."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from trol_runtime.array_types import Floats, Ids
from trol_runtime.beam_search import beam_search
from trol_runtime.completion import Completion
from trol_runtime.errors import UsageError
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.logits_processing import log_softmax, process, warp
from trol_runtime.sampling import Sampler
from trol_runtime.session import Rows
from trol_runtime.tokenizer import TextTokenizer

DEFAULT_MAX_NEW_TOKENS = 256

# What a step chose for every row, and its log-probability by the model's own logits: (rows,) each.
Step = tuple[Ids, Floats]


def choose_ids(
    rows: Rows,
    logits: Floats,
    config: GenerationConfig,
    *,
    max_new_tokens: int,
    held_off_ids: Sequence[int],
    said: Ids,
) -> Generator[Step]:
    """The greedy or drawn ids that follow a prefill's logits, `max_new_tokens` steps, without a stop rule.

    rows: those of the prefill, `Session.rows`
    config: has a seed where ids are drawn
    held_off_ids: what config.min_new_tokens keeps from coming
    said: int64 (rows, n), what config.repetition_penalty takes as said before the answer

    The decode step for an id runs when the next one is asked for.
    """
    every = np.arange(len(logits))
    sampler = Sampler(config.seed, len(logits)) if config.seed is not None else None
    for step in range(max_new_tokens):
        scores = process(logits, config, token_ids=said, new_tokens=step, held_off_ids=held_off_ids)
        ids = scores.argmax(axis=-1) if sampler is None else sampler.draw(warp(scores, config))
        yield ids, log_softmax(logits)[every, ids]
        if step + 1 < max_new_tokens:
            if config.repetition_penalty != 1:
                said = np.column_stack([said, ids])
            logits = rows.decode(ids)


def collect(steps: Iterator[Step], rows: int, eos_token_ids: Collection[int], pad_token_id: int) -> Completion:
    """All rows' new ids: a row ends with its eos; no step is taken when every row has ended."""
    ids: list[list[int]] = [[] for _ in range(rows)]
    logprobs: list[list[float]] = [[] for _ in range(rows)]
    going = set(range(rows))
    for step_ids, step_logprobs in steps:
        for row in sorted(going):
            ids[row].append(int(step_ids[row]))
            logprobs[row].append(float(step_logprobs[row]))
            if ids[row][-1] in eos_token_ids:
                going.remove(row)
        if not going:
            break
    return Completion.of_rows(
        [np.array(row, np.int64) for row in ids],
        [np.array(row, np.float32) for row in logprobs],
        [float(np.mean(row)) for row in logprobs],
        pad_token_id,
    )


def search_ids(
    rows: Rows,
    logits: Floats,
    config: GenerationConfig,
    *,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    held_off_ids: Sequence[int],
    pad_token_id: int,
    said: Ids,
) -> Generator[Step]:
    """The best beam behind a single prompt, in the form of `choose_ids`: all of it is searched before the first id."""
    found = beam_search(
        rows,
        logits,
        config,
        max_new_tokens=max_new_tokens,
        eos_token_ids=eos_token_ids,
        held_off_ids=held_off_ids,
        pad_token_id=pad_token_id,
        prompts=said,
    )
    yield from zip(found.token_ids.T, found.logprobs.T, strict=True)


@dataclass
class Generation:
    """One answer being generated: iterate once for its text, piece by piece; then the other fields are complete.

    config: how it is generated, the seed included
    max_new_tokens: at most this many ids come; less than was asked for where the engine has no room for more
    reused_tokens: how many of the prompt's tokens the session had read before
    timings_ms: load is the caller's; decode covers all steps after the first token, not what the caller does in between
    text: what has come so far
    token_ids, logprobs: the ids that came, the one that ended the answer included, and their log-probabilities by the
      model's own logits
    finish_reason: "eos" (the stop token came), "stop" (the turn-end mark or a stop text came, or `stop` was called: the
      answer's text is complete and what the official code would still generate is cut from it), "length" (no room or
      budget left); None while running
    """

    steps: Generator[Step] = field(repr=False)
    tokenizer: TextTokenizer = field(repr=False)
    eos_token_ids: tuple[int, ...] = field(repr=False)
    config: GenerationConfig
    max_new_tokens: int
    prompt_tokens: int
    image_tokens: int
    reused_tokens: int
    timings_ms: dict[str, float]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: Literal["eos", "length", "stop"] | None = None

    def __iter__(self) -> Iterator[str]:
        if self.token_ids:
            raise UsageError("an answer can be iterated once; keep its pieces, or start() it again")
        for piece in self.tokenizer.stream(self._text_ids(), self.config.stop):
            self.text += piece
            yield piece
        # A stop text whose last bytes were held back is found only when no more ids come.
        spelling = self.token_ids[:-1] if self.finish_reason == "eos" else self.token_ids
        if self.config.stop and self.tokenizer.decode(spelling) != self.text:
            self.finish_reason = "stop"
        self.stop()

    def stop(self) -> None:
        """End the answer here; what has come of it stays, the session is let go."""
        if self.finish_reason is None:
            self.finish_reason = "stop"
        # Otherwise it would hold the session, and the cache in it, for as long as the answer lasts. Another thread may
        # be in a step: it ends, and closes, behind that.
        with suppress(ValueError):
            self.steps.close()

    def _text_ids(self) -> Iterator[int]:
        """Ids that spell the answer, eos not among them."""
        if self.finish_reason is not None:  # stopped before it began: its session may belong to another answer by now
            return
        for (token_id,), (logprob,) in self._timed(self.steps):
            if self.finish_reason is not None:  # stopped by another thread during the step
                return
            self.token_ids.append(int(token_id))
            self.logprobs.append(float(logprob))
            if token_id in self.eos_token_ids:
                self.finish_reason = "eos"
                return
            yield int(token_id)
        if self.finish_reason is None:  # otherwise the caller has stopped it
            self.finish_reason = "length"

    def _timed(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps as they come, each one's time added to the decode time."""
        self.timings_ms["decode"] = 0.0
        while True:
            begin = time.perf_counter()
            step = next(steps, None)
            self.timings_ms["decode"] += 1e3 * (time.perf_counter() - begin)
            if step is None:
                return
            yield step
