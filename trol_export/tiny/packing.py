"""Packs pictures with several questions each into rows of tokens that a network reads at once.

A row is [beginning of the prompt with its picture | rest of the prompt of each question | answer to each question].
Every token sees what it would see if its question were the only one: the beginning, its own question, its own answer so
far, at the positions these have then. So one row stands for as many prompts as it has questions, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trol_benchmarks.world.questions import Question
from trol_runtime.tokenizer import TextTokenizer

IGNORED = -100  # the target of a token after which nothing is to be predicted

Ids = list[int]


@dataclass(frozen=True)
class Conversation:
    """The ids of a question: its prompt behind the part that all prompts of a row share, and the answer."""

    prompt: Ids
    answer: Ids  # the turn-end mark included


@dataclass(frozen=True)
class Batch:
    """b rows of p prompt tokens and a answer tokens, t = p + a; rows are filled up at the end of both parts.

    shared:    tokens that every prompt of a row begins with
    ids:       int64 (b, t)
    positions: int64 (b, t), of each token in its own prompt
    sees:      bool (b, 1, t, t), True where the token of that row may look
    targets:   int64 (b, t), the id that follows a token, IGNORED where that is not asked for
    weights:   float32 (b, t), of each target in the loss
    questions: int64 (b, t), number of the question in its row that a token belongs to, -1 for the others
    """

    shared: int
    prompt_tokens: int
    ids: Tensor
    positions: Tensor
    sees: Tensor
    targets: Tensor
    weights: Tensor
    questions: Tensor


class Room(NamedTuple):
    """How many tokens the questions of a row have: behind the shared beginning of their prompts, and for answers.

    The same for every batch, so that shapes never change.
    """

    prompts: int
    answers: int


class Packer:
    """Texts to rows, by an engine's own tokenizer and prompt template."""

    def __init__(self, tokenizer: TextTokenizer, image_tokens: int, image_token_id: int) -> None:
        """image_tokens: of a picture; 0 for prompts without one"""
        self.tokenizer = tokenizer
        self.image_tokens = image_tokens
        self.shared = self._prompt("")
        if image_tokens:
            self.shared = self.shared[: self.shared.index(image_token_id) + image_tokens]
        else:
            # Up to where prompts begin to differ.
            other = self._prompt("What")
            same = [one == two for one, two in zip(self.shared, other, strict=False)]
            self.shared = self.shared[: same.index(False)]

    def _prompt(self, question: str) -> Ids:
        crops = [1] if self.image_tokens else []
        return self.tokenizer.encode_prompt(question, crops, self.image_tokens)[0].tolist()

    def conversation(self, question: Question) -> Conversation:
        prompt = self._prompt(question.text)
        assert prompt[: len(self.shared)] == self.shared
        answer = [*self.tokenizer.encode_text(question.answer), self.tokenizer.turn_end_id]
        return Conversation(prompt[len(self.shared) :], answer)

    def pack(self, rows: Sequence[Sequence[Question]], room: Room) -> Batch:
        """One row of the batch for each row of questions, with as many of them, in order, as there is room for."""
        shared = len(self.shared)
        arrays = _Arrays(len(rows), shared, shared + room.prompts, room.answers)
        for number, row in enumerate(rows):
            arrays.fill(number, self.shared, list(self._fitting(row, room)))
        return arrays.batch()

    def _fitting(self, row: Sequence[Question], room: Room) -> Iterator[tuple[int, Conversation]]:
        """The conversations that fit, each with the number of its question."""
        prompts, answers = room
        for number, question in enumerate(row):
            conversation = self.conversation(question)
            prompts_left = prompts - len(conversation.prompt)
            answers_left = answers - len(conversation.answer) + 1
            if min(prompts_left, answers_left) >= 0:
                prompts, answers = prompts_left, answers_left
                yield number, conversation


class _Arrays:
    """A batch while it is filled."""

    def __init__(self, rows: int, shared: int, prompt_tokens: int, answer_tokens: int) -> None:
        self.shared, self.prompt_tokens = shared, prompt_tokens
        shape = rows, prompt_tokens + answer_tokens
        self.ids = np.zeros(shape, np.int64)
        self.positions = np.zeros(shape, np.int64)
        self.targets = np.full(shape, IGNORED, np.int64)
        self.weights = np.zeros(shape, np.float32)
        self.questions = np.full(shape, -1, np.int64)

    def fill(self, row: int, shared: Ids, conversations: Sequence[tuple[int, Conversation]]) -> None:
        self._put(row, 0, shared, 0, -1)
        prompt_end, answer_end = len(shared), self.prompt_tokens
        for number, conversation in conversations:
            prompt, answer = conversation.prompt, conversation.answer
            known = answer[:-1]  # nothing follows the turn-end mark
            prompt_end = self._put(row, prompt_end, prompt, len(shared), number)
            answer_end = self._put(row, answer_end, known, len(shared) + len(prompt), number)
            predictors = [prompt_end - 1, *range(answer_end - len(known), answer_end)]
            self.targets[row, predictors] = answer
            # A question of one token counts as much as half of a description of four.
            self.weights[row, predictors] = len(answer) ** -0.5

    def _put(self, row: int, start: int, ids: Ids, position: int, question: int) -> int:
        end = start + len(ids)
        self.ids[row, start:end] = ids
        self.positions[row, start:end] = np.arange(position, position + len(ids))
        self.questions[row, start:end] = question
        return end

    def batch(self) -> Batch:
        return Batch(
            shared=self.shared,
            prompt_tokens=self.prompt_tokens,
            ids=torch.from_numpy(self.ids),
            positions=torch.from_numpy(self.positions),
            sees=torch.from_numpy(self._sees()),
            targets=torch.from_numpy(self.targets),
            weights=torch.from_numpy(self.weights),
            questions=torch.from_numpy(self.questions),
        )

    def _sees(self) -> NDArray[np.bool_]:
        """A token sees what comes before it, of the beginning and of its own question; filling sees itself."""
        own = self.questions[:, :, None] == self.questions[:, None, :]
        tokens = self.ids.shape[1]
        return ((own | (np.arange(tokens) < self.shared)) & np.tri(tokens, dtype=np.bool_))[:, None]
