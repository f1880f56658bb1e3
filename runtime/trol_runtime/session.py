"""One conversation with an engine at the level of arrays: encode pictures, prefill prompts, decode token by token.

    logits = session.prefill(ids, image_embeds)     # (batch, vocab)
    while ...:
        logits = session.decode(logits.argmax(-1))

A session that keeps its prefix goes on from what it has read: with the answer and a next question, with another
question about the same picture, or in a fork of itself, each for the cost of the new tokens alone.

Ids and masks are int64, embeddings and logits float32 at every precision.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trol_runtime.array_types import Floats, Ids, as_array
from trol_runtime.errors import LimitError, NumericError, UsageError
from trol_runtime.exclusive import OneThreadAtATime, exclusive
from trol_runtime.manifest import Limits
from trol_runtime.model_config import ModelConfig
from trol_runtime.prompt_batch import ANSWER_TOKENS, Prompt, PromptReader
from trol_runtime.rope import rope_rows, uses_long_factors


class Cache(Protocol):
    """Keys and values of rows, where a backend keeps them; `trol_runtime.kv_cache` says what its methods do."""

    first_pass: list[Any]
    second_pass: list[Any]

    @property
    def capacity(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def second_pass_nbytes(self) -> int: ...

    def row(self, index: int) -> Cache: ...

    def allocate(self, rows: int, tokens: int) -> None: ...

    def add_second_pass(self) -> None: ...

    def drop_second_pass(self) -> None: ...

    def fitted(self, kept: int, tokens: int) -> Cache: ...

    def reserve(self, tokens: int) -> None: ...

    def copy(self, tokens: int) -> Cache: ...

    def repeat(self, times: int) -> None: ...

    def thin(self, times: int) -> None: ...

    def move(self, sources: Sequence[int], begin: Sequence[int], end: Sequence[int]) -> None: ...


class Backend(Protocol):
    """What runs the graphs, in caches of its own kind; `trol_runtime.ort_backend` says the shapes."""

    def new_cache(self, keeps_second_pass: bool) -> Any: ...

    def encode(self, pixel_values: Floats) -> Floats: ...

    def prefill(self, cache: Any, input_ids: Ids, image_embeds: Floats, cos: Floats, sin: Floats) -> Floats: ...

    def extend(
        self,
        cache: Any,
        input_ids: Ids,
        image_embeds: Floats,
        write_index: Ids,
        attention_mask: NDArray[np.bool_],
        cos: Floats,
        sin: Floats,
    ) -> Floats: ...

    def decode(
        self,
        cache: Any,
        token_ids: Ids,
        write_index: Ids,
        attention_mask: NDArray[np.bool_],
        cos: Floats,
        sin: Floats,
    ) -> Floats: ...


@dataclass
class _Row:
    """What a row of the cache holds.

    prompt: what was read, each token in two passes
    kept: how many of its first tokens have both passes in the cache, so that a prompt can go on behind them
    long_factors: whether those were rotated by the long factors
    decoded: what was decoded since, in one pass
    """

    prompt: Prompt
    kept: int = 0
    long_factors: bool = False
    decoded: list[int] = field(default_factory=list)

    def copy(self) -> _Row:
        return replace(self, decoded=list(self.decoded))


class Rows:
    """What a prefill left in a session, for an answer that is taken step by step while its session could be used again.

    The methods are the session's; they raise UsageError once it has read another prompt.
    """

    def __init__(self, session: Session, prompts_read: int) -> None:
        self._session = session
        self._prompts_read = prompts_read

    def decode(self, token_ids: Ids) -> Floats:
        return self._session.if_unread(self._prompts_read, Session.decode, token_ids)

    def repeat(self, times: int) -> None:
        self._session.if_unread(self._prompts_read, Session.repeat, times)

    def reorder(self, sources: Ids) -> None:
        self._session.if_unread(self._prompts_read, Session.reorder, sources)


class Session(OneThreadAtATime):
    """Rows of one batch and their KV cache; rows may have different lengths. For one thread at a time.

    keep_prefix: hold the second pass's keys and values of prompts too, which doubles the cache; `prefill` then reads
      only what a prompt does not share with what the row holds, `extend` and `fork` work
    prefill_chunk: read prompts in parts of this many tokens, which bounds the memory of activations; None: at once
    reused: tokens of each row that the last prefill or extend found read already, int64 (batch,)
    prompts_read: how many prefills and extends there were
    """

    def __init__(
        self,
        backend: Backend,
        config: ModelConfig,
        limits: Limits,
        keep_prefix: bool = False,
        prefill_chunk: int | None = None,
    ) -> None:
        super().__init__()
        self._keeps_prefix = keep_prefix
        self._backend = backend
        self._config = config
        self._limits = limits
        self._chunk = prefill_chunk
        self._reader = PromptReader(config, limits)
        self.prompts_read = 0
        self._encoded: tuple[bytes, Floats] | None = None  # digest of the last pixels, and what they became
        self._forget()

    @exclusive
    def reset(self) -> None:
        """Forget all rows and free their cache."""
        self._forget()

    def _forget(self) -> None:
        # What the cache holds is forgotten before the cache is: Ctrl-C in between leaves nothing that is untrue.
        self._lengths: Ids = np.zeros(0, np.int64)
        self._rows: list[_Row] = []
        self.reused: Ids = np.zeros(0, np.int64)
        self._beams = 1
        self._cache: Cache = self._backend.new_cache(self._keeps_prefix)

    @property
    def keeps_prefix(self) -> bool:
        """Whether `extend` and `fork` work, and `prefill` reads only what is new."""
        return self._keeps_prefix

    @property
    def lengths(self) -> Ids:
        """Tokens in the cache of each row, int64 (batch,)."""
        return self._lengths.copy()

    @property
    def max_tokens(self) -> int:
        """What a row can hold, the answer included."""
        return self._limits.max_seq

    @property
    def cache_bytes(self) -> int:
        """Bytes the KV cache takes now, the kept prefix included."""
        return self._cache.nbytes

    @property
    def prefix_bytes(self) -> int:
        """Bytes of it that only the kept prefix takes; `drop_prefix` frees them."""
        return self._cache.second_pass_nbytes

    @exclusive
    def encode(self, pixel_values: Floats) -> Floats:
        """Pixels (crops, 3, h, w) -> image embeddings (crops, tokens per crop, hidden).

        A session that keeps its prefix knows the last pixels again; what it returns is read-only.
        """
        pixel_values, vision = as_array("pixel_values", pixel_values), self._config.vision
        wanted = (3, vision.image_size, vision.image_size)
        if (
            pixel_values.ndim != 4
            or not len(pixel_values)
            or pixel_values.shape[1:] != wanted
            or pixel_values.dtype != np.float32
        ):
            raise UsageError(
                f"pixel_values is {pixel_values.dtype} {pixel_values.shape}, expected float32 (crops, {wanted[0]}, "
                f"{wanted[1]}, {wanted[2]}); make it with preprocess()"
            )
        if not self._keeps_prefix:
            return self._backend.encode(pixel_values)
        digest = hashlib.sha256(np.ascontiguousarray(pixel_values).data).digest()
        if self._encoded is None or self._encoded[0] != digest:
            embeds = self._backend.encode(pixel_values)
            embeds.flags.writeable = False  # it may be handed out again
            self._encoded = digest, embeds
        return self._encoded[1]

    @exclusive
    def prefill(self, input_ids: Ids, image_embeds: Floats | None = None, attention_mask: Ids | None = None) -> Floats:
        """Run the prompts of a fresh batch and return the logits of each row's last position, (batch, vocab).

        input_ids: int64 (batch, seq)
        image_embeds: float32 (crops, tokens, hidden), dealt to the image tokens of all rows in row-major order
        attention_mask: int64 (batch, seq), 0 at padding, which must be on the left; None: no padding

        A row of one token is a single pass, longer rows traverse every layer twice (the official rule). With a kept
        prefix the logits are those of a fresh batch too, within rounding.
        Raises UsageError for shapes that do not fit together, LimitError beyond the engine's batch or length.
        """
        prompts = self._reader.read(input_ids, image_embeds, attention_mask)
        if any(len(prompt) == len(prompt.image_embeds) == 1 for prompt in prompts):
            raise UsageError("a prompt of one image token has nothing to say about it; add text to the prompt")
        return self._read(prompts)

    @exclusive
    def extend(self, input_ids: Ids, image_embeds: Floats | None = None, attention_mask: Ids | None = None) -> Floats:
        """Append tokens to the prompt of every row; returns the logits of their last position, (batch, vocab).

        Inputs as in `prefill`, of the new tokens. The logits are those of a prefill of all tokens, decoded ones
        included, within rounding: decoded tokens were run once, so they are read again. Where a model's rotary tables
        change with the length ("su"), crossing that length reads all again, which a UserWarning says.
        Raises UsageError without a kept prefix and for wrong shapes, LimitError beyond the engine's length.
        """
        self._require_prefix("extend")
        if self._beams > 1:
            raise UsageError("extend() after a beam search: the rows are beams; prefill() the conversation instead")
        parts = self._reader.read(input_ids, image_embeds, attention_mask)
        if len(parts) != len(self._lengths):
            raise UsageError(f"{len(parts)} rows to extend, the session holds {len(self._lengths)}; prefill() first")
        return self._read([self._continued(*row) for row in zip(self._rows, self.lengths, parts, strict=True)])

    @exclusive
    def decode(self, token_ids: Ids) -> Floats:
        """Append one token to every row, int64 (batch,), and return the logits that follow, (batch, vocab).

        Raises UsageError for wrong ids, LimitError when a row is full. Without memory for the cache to grow
        (LimitError), and when the logits are no numbers (NumericError), no rows are left.
        """
        token_ids = as_array("token_ids", token_ids)
        if not len(self._lengths):
            raise UsageError("decode() before prefill(): there is no row to continue")
        if token_ids.shape != self._lengths.shape or token_ids.dtype != np.int64:
            raise UsageError(
                f"token_ids is {token_ids.dtype} {token_ids.shape}, expected int64 {self._lengths.shape}, one per row "
                "of the last prefill()"
            )
        if self._lengths.max() >= self._limits.max_seq:
            raise LimitError(
                f"the engine holds {self._limits.max_seq} tokens per row and row {self._lengths.argmax()} is full; "
                f"{self._reader.how_to_hold(self._limits.max_seq + ANSWER_TOKENS)}"
            )
        self._reader.check_vocabulary(token_ids)
        with self._no_rows_on_failure():
            self._cache.reserve(int(self._lengths.max()) + 1)
        if self._keeps_prefix and self._beams == 1:
            for row, length, token in zip(self._rows, self._lengths, token_ids.tolist(), strict=True):
                # Noted before it is run: whether Ctrl-C came before or behind the step, the length tells.
                row.decoded[int(length) - len(row.prompt) :] = [token]
        return self._checked(self._decode_step(self._cache, token_ids, self._lengths))

    @exclusive
    def begin(
        self, input_ids: Ids, image_embeds: Floats | None = None, attention_mask: Ids | None = None
    ) -> tuple[Floats, Rows, Ids]:
        """`prefill` for an answer: the logits, the rows it goes on from, and `reused`, all of this prompt.

        One call, so that no other thread's prompt comes in between.
        """
        logits = self.prefill(input_ids, image_embeds, attention_mask)
        return logits, Rows(self, self.prompts_read), self.reused

    @exclusive
    def if_unread(self, prompts_read: int, call: Callable[..., Any], argument: Any) -> Any:
        """call(self, argument); UsageError when there have been other prompts than the first `prompts_read`."""
        if self.prompts_read != prompts_read:
            raise UsageError(
                "the session has read another prompt since this answer began, so it cannot go on; finish an answer "
                "before the next, or give each a session of its own: new_session()"
            )
        return call(self, argument)

    def belongs_to(self, config: ModelConfig) -> bool:
        """Whether it was made for the engine that holds `config`, this very object: another's may be equal."""
        return self._config is config

    @exclusive
    def fork(self) -> Session:
        """A session of its own that holds the same rows: both go on from here, neither sees the other's tokens.

        Copies the cache. Raises UsageError without a kept prefix, LimitError without memory for the copy.
        """
        self._require_prefix("fork")
        fork = Session(self._backend, self._config, self._limits, True, self._chunk)
        fork._cache = self._cache.copy(max([*self._lengths.tolist(), *(row.kept for row in self._rows)], default=0))
        fork._rows = [row.copy() for row in self._rows]
        fork._beams, fork._lengths, fork.reused = self._beams, self._lengths.copy(), self.reused.copy()
        fork._encoded = self._encoded
        return fork

    @exclusive
    def drop_prefix(self) -> None:
        """Free what only the kept prefix needs; decoding goes on, every later prompt is read whole."""
        self._keeps_prefix = False
        self._cache.drop_second_pass()
        self._encoded = None
        for row in self._rows:
            row.kept = 0

    @exclusive
    def repeat(self, times: int) -> None:
        """Make `times` rows of every row, as neighbours, to go on differently: the beams of a search.

        Raises UsageError without rows, LimitError beyond the engine's batch, or without memory: then no rows are left.
        """
        if not isinstance(times, (int, np.integer)) or isinstance(times, bool) or times < 1:
            raise UsageError(f"times is {times!r}, expected a whole number, 1 or more")
        if not len(self._lengths):
            raise UsageError("repeat() before prefill(): there is no row to repeat")
        self.require_rows(len(self._lengths), times)
        with self._no_rows_on_failure():
            self._cache.repeat(times)
            self._lengths = np.repeat(self._lengths, times)
            self._beams *= times

    @exclusive
    def reorder(self, sources: Ids) -> None:
        """Row r goes on from what row sources[r], a beam of the same prompt, holds: int64 (batch,).

        Only what was decoded since the prompt is moved; the prompt is the same in all beams of a row.
        """
        sources = as_array("sources", sources)
        places = np.arange(len(self._lengths)) // self._beams
        fits = sources.dtype == np.int64 and sources.shape == places.shape
        if not fits or not np.array_equal(sources // self._beams, places):
            raise UsageError(
                f"sources is {sources.dtype} {sources.tolist()}, expected int64, for each of {len(places)} rows a beam "
                "of its prompt"
            )
        begin = np.repeat([len(row.prompt) for row in self._rows], self._beams)
        with self._no_rows_on_failure():
            self._cache.move(sources.tolist(), begin.tolist(), self._lengths.tolist())

    def prompts(self, input_ids: Ids, attention_mask: Ids | None = None) -> list[Ids]:
        """The prompts of a batch without their padding, int64 (tokens,) each; raises for ids that `prefill` refuses."""
        return self._reader.unpadded(input_ids, attention_mask)

    def room_behind(self, prompts: Sequence[Ids]) -> int:
        """How many tokens every one of these prompts leaves room for; raises LimitError when that is none."""
        return self._reader.room_behind(prompts)

    def require_rows(self, rows: int, beams: int = 1) -> None:
        """Raise LimitError unless the engine takes so many rows, each with so many beams."""
        self._reader.require_rows(rows, beams)

    def _continued(self, row: _Row, length: np.int64, part: Prompt) -> Prompt:
        """The `length` tokens that the row holds, and `part` behind them, as one prompt."""
        decoded = np.array(row.decoded[: int(length) - len(row.prompt)], np.int64)
        if self._reader.is_image(decoded).any():
            raise UsageError(
                f"the row holds a decoded image token (id {self._config.image_token_id}), which no prompt can hold "
                "without a picture; prefill() the conversation without it"
            )
        text = Prompt(decoded, row.prompt.image_embeds[:0])
        prompt = row.prompt.followed_by(text).followed_by(part)
        self._reader.require_length(prompt.ids)
        return prompt

    def _read(self, prompts: list[Prompt]) -> Floats:
        """Make the rows hold `prompts`, reusing what they hold already; returns the logits behind them."""
        if self._keeps_prefix:  # what later prompts are compared with must not be the caller's to change
            prompts = [Prompt(prompt.ids.copy(), prompt.image_embeds.copy()) for prompt in prompts]
        self.prompts_read += 1
        lengths = np.zeros(len(prompts), np.int64)
        self._lengths = lengths[:0]  # until all is read: a prefill that failed leaves no rows to decode
        self.reused = self._reusable(prompts)
        tokens = max(map(len, prompts)) + 1
        if self.reused.any():
            self._make_room(tokens)
        else:
            self._forget()
            self.reused = lengths.copy()
            self._cache.allocate(len(prompts), tokens)
            self._rows = [_Row(prompt) for prompt in prompts]
        logits = [self._read_row(row, prompt, lengths[row : row + 1]) for row, prompt in enumerate(prompts)]
        checked = self._checked(np.concatenate(logits))
        self._lengths = lengths
        return checked

    def _reusable(self, prompts: list[Prompt]) -> Ids:
        """How many tokens at the beginning of each prompt its row has read already, int64 (batch,).

        At least one token is left to read: the logits come from it.
        """
        if not self._keeps_prefix or len(prompts) != len(self._rows):
            return np.zeros(len(prompts), np.int64)
        shared = []
        for row, prompt in zip(self._rows, prompts, strict=True):
            kept = self._reader.part(row.prompt, 0, row.kept)
            tokens = min(self._reader.shared(kept, prompt), len(prompt) - 1)
            if tokens and row.long_factors != self._long_factors(prompt):
                warnings.warn(
                    f"the prompt is read again from its first token: it crosses "
                    f"{self._config.decoder.rope.original_max_positions} tokens, where the rotary factors change",
                    stacklevel=5,
                )
                tokens = 0
            shared.append(tokens)
        return np.array(shared, np.int64)

    def _make_room(self, tokens: int) -> None:
        """Fit the cache to rows of `tokens` that go on from what is reused: the prompt is the same in all beams."""
        for row, reused in zip(self._rows, self.reused.tolist(), strict=True):
            row.kept = min(row.kept, reused)  # what is not reused now may lose its place in the cache
        with self._no_rows_on_failure():
            if self._beams > 1:
                self._cache.thin(self._beams)
                self._beams = 1
            self._cache = self._cache.fitted(int(self.reused.max()), tokens)

    @contextmanager
    def _no_rows_on_failure(self) -> Iterator[None]:
        """A cache half made over holds nothing: without memory for it, or after Ctrl-C, no rows are left."""
        try:
            yield
        except BaseException:
            self._forget()
            raise

    def _read_row(self, index: int, prompt: Prompt, length: Ids) -> Floats:
        """Make row `index` hold `prompt`, all but its reused beginning; sets `length`, a view of one."""
        cache, row = self._cache.row(index), self._rows[index]
        start = int(self.reused[index])
        row.kept = start  # first of all: if Ctrl-C comes here, less is kept than there is
        row.prompt, row.decoded = prompt, []
        if len(prompt) == 1:
            return self._decode_step(cache, prompt.ids, length)
        if self._keeps_prefix or self._chunk is not None:
            logits = self._read_parts(cache, row, start)
        else:
            cos, sin = rope_rows(self._config.decoder, np.arange(len(prompt))[None], len(prompt))
            logits = self._backend.prefill(cache, prompt.ids[None], prompt.image_embeds, cos, sin)
        length[0] = len(prompt)
        return logits

    def _read_parts(self, cache: Cache, row: _Row, start: int) -> Floats:
        """The prompt of `row` from `start` on, a chunk at a time; each chunk that is read is kept."""
        prompt = row.prompt
        row.long_factors = self._long_factors(prompt)
        if not cache.second_pass:
            cache.add_second_pass()  # for as long as this prompt is read
        step = self._chunk or len(prompt)
        for begin in range(start, len(prompt), step):
            end = min(begin + step, len(prompt))
            part = self._reader.part(prompt, begin, end)
            positions = np.arange(begin, end)
            # The tables of a prompt follow its whole length, however it is divided.
            cos, sin = rope_rows(self._config.decoder, positions[None], len(prompt))
            mask = np.arange(cache.capacity) <= positions[:, None]
            write_index = np.array([begin])
            logits = self._backend.extend(
                cache, part.ids[None], part.image_embeds, write_index, mask[None, None], cos, sin
            )
            row.kept = end if self._keeps_prefix else 0
        return logits

    def _decode_step(self, cache: Cache, token_ids: Ids, lengths: Ids) -> Floats:
        """One token per row of `cache`, whose rows hold `lengths` tokens; counts them up in place."""
        # Each row its own tables: with "su" scaling the factors follow the length of that row.
        rows = [rope_rows(self._config.decoder, np.array([[n]]), int(n) + 1) for n in lengths]
        cos, sin = (np.concatenate(tables) for tables in zip(*rows, strict=True))
        mask = np.arange(cache.capacity) <= lengths[:, None]
        logits = self._backend.decode(cache, token_ids, lengths.copy(), mask[:, None, None], cos, sin)
        lengths += 1
        return logits

    def _long_factors(self, prompt: Prompt) -> bool:
        return uses_long_factors(self._config.decoder.rope, len(prompt))

    def _checked(self, logits: Floats) -> Floats:
        """The logits, if they are numbers; otherwise nothing is kept that a later answer could be infected by."""
        finite = np.isfinite(logits).all(axis=-1)
        if finite.all():
            return logits
        self._forget()
        raise NumericError(
            f"the logits of row {int(finite.argmin())} are not finite; check the weights with: "
            "trol-inspect ENGINE --verify, or export fp32"
        )

    def _require_prefix(self, call: str) -> None:
        if not self._keeps_prefix:
            raise UsageError(
                f"{call}() needs a kept prefix and this session has none (keep_prefix=False, or drop_prefix() was "
                "called); make it, or its chat, with keep_prefix=True, or prefill() all tokens"
            )
