"""A batch of prompts as arrays: checked, unpadded, image embeddings dealt out; and how much two prompts share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trol_runtime.array_types import Floats, Ids, as_array
from trol_runtime.errors import LimitError, UsageError
from trol_runtime.manifest import Limits
from trol_runtime.model_config import ModelConfig

ANSWER_TOKENS = 256  # room for an answer in what the messages suggest


@dataclass(frozen=True, eq=False)
class Prompt:
    """One row: ids int64 (s,); image_embeds float32 (n, hidden), one row per image token among them."""

    ids: Ids
    image_embeds: Floats

    def __len__(self) -> int:
        return len(self.ids)

    def followed_by(self, other: Prompt) -> Prompt:
        embeds = np.concatenate([self.image_embeds, other.image_embeds])
        return Prompt(np.concatenate([self.ids, other.ids]), embeds)


class PromptReader:
    """Reads batches for one engine; raises UsageError and LimitError for what it does not run."""

    def __init__(self, config: ModelConfig, limits: Limits) -> None:
        self._config = config
        self._limits = limits

    def read(self, input_ids: Ids, image_embeds: Floats | None, attention_mask: Ids | None) -> list[Prompt]:
        """A left-padded batch: ids and mask int64 (batch, seq), all its pictures float32 (crops, tokens, hidden)."""
        rows = self.unpadded(input_ids, attention_mask)
        return [Prompt(ids, part) for ids, part in zip(rows, self._deal(rows, image_embeds), strict=True)]

    def unpadded(self, input_ids: Ids, attention_mask: Ids | None) -> list[Ids]:
        """The rows of a left-padded batch without their padding, int64 (tokens,) each."""
        rows = _unpad(as_array("input_ids", input_ids), attention_mask)
        self.require_rows(len(rows))
        for ids in rows:
            self.check_vocabulary(ids)
            self.require_length(ids)
        return rows

    def require_rows(self, rows: int, beams: int = 1) -> None:
        """Raise LimitError unless the engine takes so many rows, each with so many beams."""
        wanted, limit = rows * beams, self._limits.max_batch
        if wanted <= limit:
            return
        if beams == 1:
            found, fewer = f"{rows} rows in a batch", "send fewer"
        else:
            found, fewer = f"{beams} beams for each of {rows} rows", "search with fewer beams or rows"
            if rows == 1:
                found, fewer = f"{beams} beams", "search with fewer"
        raise LimitError(f"{found}, the engine was built for {limit}; {fewer} or rebuild it with --max-batch {wanted}")

    def require_length(self, ids: Ids) -> None:
        """Raise LimitError for a prompt that is longer than the engine."""
        if len(ids) > self._limits.max_seq:
            raise LimitError(
                f"the prompt has {len(ids)} tokens ({int(self.is_image(ids).sum())} of pictures), the engine holds "
                f"{self._limits.max_seq} with the answer; {self.how_to_hold(len(ids) + ANSWER_TOKENS)}"
            )

    def room_behind(self, prompts: Sequence[Ids]) -> int:
        """How many tokens every one of these prompts leaves room for; raises LimitError when that is none."""
        longest = max(map(len, prompts), default=0)
        if longest >= self._limits.max_seq:
            raise LimitError(
                f"the prompt has {longest} tokens and fills the engine; {self.how_to_hold(longest + ANSWER_TOKENS)}"
            )
        return self._limits.max_seq - longest

    def how_to_hold(self, tokens: int) -> str:
        """What to do when a row of `tokens` tokens does not fit: a longer engine, as far as the model itself allows."""
        longest = self._config.decoder.max_positions
        if self._limits.max_seq >= longest:
            return f"shorten it, the model itself allows no more than {longest}"
        return f"shorten it or rebuild the engine with --max-seq {min(tokens, longest)}"

    def check_vocabulary(self, ids: Ids) -> None:
        """Raise UsageError for ids without a row in the embedding."""
        size = self._config.decoder.embedding_rows
        if ids.size and not (ids.min() >= 0 and ids.max() < size):
            bad = int(ids.min() if ids.min() < 0 else ids.max())
            raise UsageError(
                f"token id {bad} is outside the vocabulary of {size}; encode text with this engine's tokenizer"
            )

    def is_image(self, ids: Ids) -> NDArray[np.bool_]:
        return ids == self._config.image_token_id

    def part(self, prompt: Prompt, begin: int, end: int) -> Prompt:
        """The tokens from `begin` to `end` with their embeddings."""
        first, last = (int(self.is_image(prompt.ids[:place]).sum()) for place in (begin, end))
        return Prompt(prompt.ids[begin:end], prompt.image_embeds[first:last])

    def shared(self, a: Prompt, b: Prompt) -> int:
        """How many tokens both begin with: ids equal, and of image tokens the embeddings too."""
        length = min(len(a), len(b))
        same = _first(a.ids[:length] != b.ids[:length])
        images = np.flatnonzero(self.is_image(a.ids[:same]))
        equal = _first((a.image_embeds[: len(images)] != b.image_embeds[: len(images)]).any(axis=1))
        return same if equal == len(images) else int(images[equal])

    def _deal(self, rows: Sequence[Ids], image_embeds: Floats | None) -> list[Floats]:
        """Each row's share of the embeddings, (image tokens of the row, hidden)."""
        counts = [int(self.is_image(ids).sum()) for ids in rows]
        hidden = self._config.decoder.hidden_size
        flat = np.zeros((0, hidden), np.float32)
        if image_embeds is not None:
            image_embeds = as_array("image_embeds", image_embeds)
            if image_embeds.dtype != np.float32 or image_embeds.shape[-1:] != (hidden,):
                raise UsageError(
                    f"image_embeds is {image_embeds.dtype} {image_embeds.shape}, expected float32 (crops, tokens, "
                    f"{hidden}); make it with encode()"
                )
            if not np.isfinite(image_embeds).all():
                raise UsageError(
                    "image_embeds holds values that are no numbers; check the pixels that encode() was given"
                )
            flat = image_embeds.reshape(-1, hidden)
        if len(flat) != sum(counts):
            raise UsageError(
                f"{len(flat)} image embeddings for {sum(counts)} image tokens; encode exactly the pictures the "
                "prompt names"
            )
        return np.split(flat, np.cumsum(counts)[:-1])


def _first(marks: NDArray[np.bool_]) -> int:
    """Index of the first True, or the length where there is none."""
    return int(marks.argmax()) if marks.any() else len(marks)


def _unpad(input_ids: Ids, attention_mask: Ids | None) -> list[Ids]:
    """The rows of a left-padded batch without their padding; raises UsageError for any other mask."""
    if input_ids.ndim != 2 or 0 in input_ids.shape or input_ids.dtype != np.int64:
        raise UsageError(f"input_ids is {input_ids.dtype} {input_ids.shape}, expected int64 (batch, tokens), not empty")
    if attention_mask is None:
        return list(input_ids)
    mask = as_array("attention_mask", attention_mask)
    if mask.shape != input_ids.shape:
        raise UsageError(f"attention_mask has shape {mask.shape}, expected that of input_ids, {input_ids.shape}")
    if not np.isin(mask, (0, 1)).all():
        raise UsageError("attention_mask holds other values than 0 and 1; expected 0 at padding and 1 elsewhere")
    keep = mask.astype(bool)
    if not keep.any(axis=1).all():
        empty = int(keep.any(axis=1).argmin())
        raise UsageError(f"row {empty} of attention_mask is all zeros; every row needs a prompt of 1 token or more")
    if not keep[:, -1].all() or (np.diff(keep.astype(np.int8), axis=1) < 0).any():
        raise UsageError("attention_mask has a 0 after a 1; padding must be on the left of every row")
    return [ids[kept] for ids, kept in zip(input_ids, keep, strict=True)]
