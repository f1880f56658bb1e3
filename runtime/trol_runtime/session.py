"""One conversation with an engine at the level of arrays: encode pictures, prefill prompts, decode token by token.

    logits = session.prefill(ids, image_embeds)     # (batch, vocab)
    while ...:
        logits = session.decode(logits.argmax(-1))

Ids and masks are int64, embeddings and logits float32 at every precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trol_runtime.errors import LimitError, NumericError, UsageError
from trol_runtime.kv_cache import KVCache
from trol_runtime.manifest import Limits
from trol_runtime.model_config import ModelConfig
from trol_runtime.rope import rope_rows

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

ANSWER_TOKENS = 256  # room for an answer in what the messages suggest


class Backend(Protocol):
    """What runs the graphs; `trol_runtime.cpu_backend` says the shapes."""

    def encode(self, pixel_values: Floats) -> Floats: ...

    def prefill(
        self, cache: KVCache, input_ids: Ids, image_embeds: Floats | None, cos: Floats, sin: Floats
    ) -> Floats: ...

    def decode(
        self,
        cache: KVCache,
        token_ids: Ids,
        write_index: Ids,
        attention_mask: NDArray[np.bool_],
        cos: Floats,
        sin: Floats,
    ) -> Floats: ...


class Session:
    """Rows of one batch and their KV cache; rows may have different lengths. Not for use by two threads at once."""

    def __init__(self, backend: Backend, config: ModelConfig, limits: Limits) -> None:
        self._backend = backend
        self._config = config
        self._limits = limits
        self.reset()

    def reset(self) -> None:
        """Forget all rows and free their cache."""
        self._cache = KVCache(self._config.decoder, self._limits.max_seq)
        self._lengths: Ids = np.zeros(0, np.int64)

    @property
    def lengths(self) -> Ids:
        """Tokens in the cache of each row, int64 (batch,)."""
        return self._lengths.copy()

    @property
    def cache_bytes(self) -> int:
        """Bytes the KV cache takes now."""
        return self._cache.nbytes

    def encode(self, pixel_values: Floats) -> Floats:
        """Pixels (crops, 3, h, w) -> image embeddings (crops, tokens per crop, hidden)."""
        pixel_values, vision = np.asarray(pixel_values), self._config.vision
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
        return self._backend.encode(pixel_values)

    def prefill(self, input_ids: Ids, image_embeds: Floats | None = None, attention_mask: Ids | None = None) -> Floats:
        """Run the prompts of a fresh batch and return the logits of each row's last position, (batch, vocab).

        input_ids: int64 (batch, seq)
        image_embeds: float32 (crops, tokens, hidden), dealt to the image tokens of all rows in row-major order
        attention_mask: int64 (batch, seq), 0 at padding, which must be on the left; None: no padding

        A row of one token is a single pass, longer rows traverse every layer twice (the official rule).
        Raises UsageError for shapes that do not fit together, LimitError beyond the engine's batch or length.
        """
        self.reset()
        rows = self.prompts(input_ids, attention_mask)
        embeds = self._deal(rows, image_embeds)
        self._cache.allocate(len(rows), max(len(row) for row in rows) + 1)
        lengths = np.zeros(len(rows), np.int64)
        logits = [
            self._prefill_row(self._cache.row(row), lengths[row : row + 1], ids, part)
            for row, (ids, part) in enumerate(zip(rows, embeds, strict=True))
        ]
        checked = _checked(np.concatenate(logits))
        self._lengths = lengths  # not before: a prefill that failed leaves no rows to decode
        return checked

    def decode(self, token_ids: Ids) -> Floats:
        """Append one token to every row, int64 (batch,), and return the logits that follow, (batch, vocab).

        Raises UsageError for wrong ids, LimitError when a row is full, or when the cache cannot grow: then no rows are
        left.
        """
        token_ids = np.asarray(token_ids)
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
                f"{self._how_to_hold(self._limits.max_seq + ANSWER_TOKENS)}"
            )
        self._check_vocabulary(token_ids)
        try:
            self._cache.reserve(int(self._lengths.max()) + 1)
        except LimitError:
            self.reset()  # the cache is gone: no rows to decode either
            raise
        return _checked(self._decode_step(self._cache, token_ids, self._lengths))

    def _prefill_row(self, cache: KVCache, lengths: Ids, ids: Ids, image_embeds: Floats | None) -> Floats:
        """One prompt into `cache` of one row; sets that row's entry of `lengths`, a view of one."""
        if len(ids) == 1:
            if image_embeds is not None:
                raise UsageError("a prompt of one image token has nothing to say about it; add text to the prompt")
            return self._decode_step(cache, ids, lengths)
        cos, sin = rope_rows(self._config.decoder, np.arange(len(ids))[None], len(ids))
        logits = self._backend.prefill(cache, ids[None], image_embeds, cos, sin)
        lengths[0] = len(ids)
        return logits

    def _decode_step(self, cache: KVCache, token_ids: Ids, lengths: Ids) -> Floats:
        """One token per row of `cache`, whose rows hold `lengths` tokens; counts them up in place."""
        # Each row its own tables: with "su" scaling the factors follow the length of that row.
        rows = [rope_rows(self._config.decoder, np.array([[n]]), int(n) + 1) for n in lengths]
        cos, sin = (np.concatenate(tables) for tables in zip(*rows, strict=True))
        mask = np.arange(cache.capacity) <= lengths[:, None]
        logits = self._backend.decode(cache, token_ids, lengths.copy(), mask[:, None, None], cos, sin)
        lengths += 1
        return logits

    def prompts(self, input_ids: Ids, attention_mask: Ids | None = None) -> list[Ids]:
        """The prompts of a batch without their padding, int64 (tokens,) each; raises for ids that `prefill` refuses."""
        rows = _unpad(np.asarray(input_ids), attention_mask)
        if len(rows) > self._limits.max_batch:
            raise LimitError(
                f"{len(rows)} rows in a batch, the engine was built for {self._limits.max_batch}; send fewer or "
                f"rebuild it with --max-batch {len(rows)}"
            )
        for ids in rows:
            self._check_vocabulary(ids)
            if len(ids) > self._limits.max_seq:
                image = int((ids == self._config.image_token_id).sum())
                raise LimitError(
                    f"the prompt has {len(ids)} tokens ({image} of pictures), the engine holds {self._limits.max_seq} "
                    f"with the answer; {self._how_to_hold(len(ids) + ANSWER_TOKENS)}"
                )
        return rows

    def room_behind(self, prompts: Sequence[Ids]) -> int:
        """How many tokens every one of these prompts leaves room for; raises LimitError when that is none."""
        longest = max(map(len, prompts))
        if longest >= self._limits.max_seq:
            raise LimitError(
                f"the prompt has {longest} tokens and fills the engine; {self._how_to_hold(longest + ANSWER_TOKENS)}"
            )
        return self._limits.max_seq - longest

    def _how_to_hold(self, tokens: int) -> str:
        """What to do when a row of `tokens` tokens does not fit: a longer engine, as far as the model itself allows."""
        longest = self._config.decoder.max_positions
        if self._limits.max_seq >= longest:
            return f"shorten it, the model itself allows no more than {longest}"
        return f"shorten it or rebuild the engine with --max-seq {min(tokens, longest)}"

    def _check_vocabulary(self, ids: Ids) -> None:
        size = self._config.decoder.embedding_rows
        if ids.size and not (ids.min() >= 0 and ids.max() < size):
            bad = int(ids.min() if ids.min() < 0 else ids.max())
            raise UsageError(
                f"token id {bad} is outside the vocabulary of {size}; encode text with this engine's tokenizer"
            )

    def _deal(self, rows: Sequence[Ids], image_embeds: Floats | None) -> list[Floats | None]:
        """Each row's share of the embeddings, (image tokens of the row, hidden)."""
        counts = [int((ids == self._config.image_token_id).sum()) for ids in rows]
        hidden = self._config.decoder.hidden_size
        flat = np.zeros((0, hidden), np.float32)
        if image_embeds is not None:
            image_embeds = np.asarray(image_embeds)
            if image_embeds.dtype != np.float32 or image_embeds.shape[-1:] != (hidden,):
                raise UsageError(
                    f"image_embeds is {image_embeds.dtype} {image_embeds.shape}, expected float32 (crops, tokens, "
                    f"{hidden}); make it with encode()"
                )
            flat = image_embeds.reshape(-1, hidden)
        if len(flat) != sum(counts):
            raise UsageError(
                f"{len(flat)} image embeddings for {sum(counts)} image tokens; encode exactly the pictures the "
                "prompt names"
            )
        parts = np.split(flat, np.cumsum(counts)[:-1])
        return [part if len(part) else None for part in parts]


def _unpad(input_ids: Ids, attention_mask: Ids | None) -> list[Ids]:
    """The rows of a left-padded batch without their padding; raises UsageError for any other mask."""
    if input_ids.ndim != 2 or 0 in input_ids.shape or input_ids.dtype != np.int64:
        raise UsageError(f"input_ids is {input_ids.dtype} {input_ids.shape}, expected int64 (batch, tokens), not empty")
    if attention_mask is None:
        return list(input_ids)
    mask = np.asarray(attention_mask)
    if mask.shape != input_ids.shape:
        raise UsageError(f"attention_mask has shape {mask.shape}, expected that of input_ids, {input_ids.shape}")
    keep = mask.astype(bool)
    if not keep.any(axis=1).all():
        empty = int(keep.any(axis=1).argmin())
        raise UsageError(f"row {empty} of attention_mask is all zeros; every row needs a prompt of 1 token or more")
    if not keep[:, -1].all() or (np.diff(keep.astype(np.int8), axis=1) < 0).any():
        raise UsageError("attention_mask has a 0 after a 1; padding must be on the left of every row")
    return [ids[kept] for ids, kept in zip(input_ids, keep, strict=True)]


def _checked(logits: Floats) -> Floats:
    if not np.isfinite(logits).all():
        row = int(np.argmin(np.isfinite(logits).all(axis=-1)))
        raise NumericError(
            f"the logits of row {row} are not finite; check the weights with: trol-inspect ENGINE --verify, or "
            "export fp32"
        )
    return logits
