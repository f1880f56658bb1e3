"""A conversation of several turns about any number of pictures; a turn costs its own tokens where the prefix is kept.

The official code asks one question: how turns follow each other is ours (`PromptTemplate.next_turn`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trol_runtime.answering import Answerer, Picture, load_pictures
from trol_runtime.array_types import Floats, Ids
from trol_runtime.errors import LimitError, UsageError
from trol_runtime.generation import Generation
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.prompt_batch import Prompt
from trol_runtime.session import Session


@dataclass(frozen=True, eq=False)
class Turn:
    """A question and its answer so far.

    crops: of each picture of the question; image_embeds: float32 (image tokens, hidden), of all of them
    """

    question: str
    crops: tuple[int, ...]
    image_embeds: Floats
    answer: Generation


class Chat:
    """Made by `TroL.chat`. One answer at a time: the next question ends the one before it.

    session: where the conversation lies
    turns: oldest first
    """

    def __init__(self, answerer: Answerer, session: Session, config: GenerationConfig) -> None:
        self.session = session
        self.turns: list[Turn] = []
        self._answerer = answerer
        self._config = config

    def ask(self, question: str, images: Sequence[Picture] = (), *, exif: bool = False, **options: Any) -> Generation:
        """The next turn: its answer comes by iterating, as from `TroL.start`.

        images: of this question; those of earlier turns are known
        options: fields of GenerationConfig for this turn, in the place of the chat's
        Raises UsageError, PictureError, and LimitError when the conversation is too long, with the turns to drop.
        """
        config = self._config.replaced(**options)
        pictures = load_pictures(images, exif)
        crops = self._answerer.crops(pictures)
        parts = self._parts(question, crops)
        ids = np.concatenate(parts)
        self._require_room(parts)
        self._answerer.new_tokens(self.session, ids, config)  # what is refused is refused before pictures are encoded
        embeds, timings_ms = self._answerer.encode(self.session, pictures)
        all_embeds = np.concatenate([*(turn.image_embeds for turn in self.turns), embeds])
        self._end_answer()
        answer = self._answerer.answer(self.session, Prompt(ids, all_embeds), config, timings_ms)
        self.turns.append(Turn(question, crops, embeds, answer))
        return answer

    def drop(self, count: int = 1) -> None:
        """Forget the oldest `count` turns, pictures included. What is left is read anew with the next question."""
        if not self.turns:
            raise UsageError("the chat has no turns to drop; ask something first")
        if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or not 1 <= count <= len(self.turns):
            raise UsageError(f"{count!r} turns to drop, expected 1 to {len(self.turns)}, which the chat has")
        self._end_answer()
        del self.turns[:count]
        if not self.turns:
            self.session.reset()

    def fork(self) -> Chat:
        """A chat of its own with the same turns; neither sees what the other says from here on.

        Ends an answer that is not complete. Copies the cache. Raises UsageError without a kept prefix, LimitError
        without memory for the copy.
        """
        session = self.session.fork()
        self._end_answer()
        fork = Chat(self._answerer, session, self._config)
        fork.turns = list(self.turns)
        return fork

    def _end_answer(self) -> None:
        """No answer goes on once its session is used for something else."""
        if self.turns:
            self.turns[-1].answer.stop()

    def _parts(self, question: str, crops: Sequence[int]) -> list[Ids]:
        """The conversation up to the answer to `question`: ids of every question and answer, int64 (n,) each."""
        parts: list[Ids] = []
        for turn in self.turns:
            parts.append(self._answerer.turn_ids(turn.question, turn.crops, follows_answer=bool(parts)))
            parts.append(self._answerer.answer_ids(turn.answer))
        parts.append(self._answerer.turn_ids(question, crops, follows_answer=bool(parts)))
        return parts

    def _require_room(self, parts: Sequence[Ids]) -> None:
        """Raise LimitError when `parts` leave no room for an answer, but would without some of the oldest turns."""
        room = self.session.max_tokens
        tokens = sum(map(len, parts))
        if tokens < room:
            return
        # A question that becomes the first begins with the system's text in the place of the end of an answer.
        longer = len(self._answerer.turn_ids("", ())) - len(self._answerer.turn_ids("", (), follows_answer=True))
        for count in range(1, len(self.turns) + 1):
            if sum(map(len, parts[2 * count :])) + longer < room:
                dropped = "the oldest turn" if count == 1 else f"the oldest {count} of {len(self.turns)} turns"
                raise LimitError(
                    f"the chat has {tokens} tokens with this question and leaves no room for an answer in the engine's "
                    f"{room}; drop {dropped}: chat.drop({count}), or /drop {count} in trol-run"
                )
