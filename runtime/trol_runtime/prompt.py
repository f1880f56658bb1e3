"""The prompt of a TroL model as data: which pieces are control marks, which are text, where pictures go.

A prompt is a list of segments. A mark is one vocabulary piece that goes in as its id; text is text, whatever it spells,
so a user who types `<|end|>` ends nothing. Turning segments into ids is `trol_runtime.tokenizer`'s part. Generation
stops at `ModelConfig.eos_token_ids`, not at `turn_end`: that mark only cuts the answer's text.

The official code asks one question. How a further turn follows an answer, `PromptTemplate.next_turn`, is ours: the end
of a turn and the beginning of a user's, written with the marks of the official single turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from trol_runtime.errors import UsageError

PICTURE_TAG = "<image>"  # what a user types to place a picture, in both architectures
DEFAULT_QUESTION = "Describe this picture in detail."  # what commands ask about a picture when nothing is asked

_SYSTEM_TEXT = (
    "You are AI model created by Byung-Kwan Lee, Ph.D. candidate, KAIST EE, of which AI model name is TroL "
    "(Traversal of Layers). You must give helpful, detailed, and polite answers to the user's questions"
)


Arch = Literal["internlm2", "phi3"]
BrokenUtf8 = Literal["byte", "run"]


class Segment(NamedTuple):
    """A stretch of a prompt: plain text, or one control piece `repeat` times in a row."""

    text: str
    is_mark: bool = False
    repeat: int = 1


@dataclass(frozen=True)
class PromptTemplate:
    """One user turn and what ends the answer, as the model was trained on them; stored in the manifest."""

    before_question: str
    after_question: str
    next_turn: str  # between an answer and the question after it; not official, the official code has one turn
    marks: tuple[str, ...]  # the pieces inside the three texts above that are ids, not text
    image_piece: str  # one per image token
    image_start: str  # mark in front of a picture's image tokens, "" for none
    image_end: str
    turn_end: str  # mark that the model writes after its answer
    # Bytes in an answer that are no UTF-8 become U+FFFD: each of them, or the whole run of byte pieces around them.
    broken_utf8: BrokenUtf8

    @property
    def control_pieces(self) -> tuple[str, ...]:
        """Every piece the vocabulary must hold for this template, without repetition."""
        pieces = (*self.marks, self.image_start, self.image_piece, self.image_end, self.turn_end)
        return tuple(dict.fromkeys(piece for piece in pieces if piece))

    def segments(self, question: str, image_tokens: Sequence[int], *, follows_answer: bool = False) -> list[Segment]:
        """One turn: `question` with a picture per entry of `image_tokens` (its number of image tokens).

        The whole prompt, or with `follows_answer` what comes behind an answer whose turn-end mark is left out.
        Neighbouring texts are one segment. UsageError: the question holds picture tags, but not one per picture.
        """
        parts = self._split_marks(self.next_turn if follows_answer else self.before_question)
        for part in _place_pictures(question, image_tokens):
            parts += [Segment(part)] if isinstance(part, str) else self._picture(part)
        parts += self._split_marks(self.after_question)
        return list(_join_texts(parts))

    def _split_marks(self, text: str) -> list[Segment]:
        pattern = "(" + "|".join(re.escape(mark) for mark in self.marks) + ")"
        return [Segment(part, is_mark=part in self.marks) for part in re.split(pattern, text)]

    def _picture(self, image_tokens: int) -> list[Segment]:
        return [
            Segment(self.image_start, is_mark=True),
            Segment(self.image_piece, is_mark=True, repeat=image_tokens),
            Segment(self.image_end, is_mark=True),
        ]


def official_template(arch: Arch) -> PromptTemplate:
    """The prompt of the released models: TroL-1.8B and 7B are "internlm2", 3.8B is "phi3"."""
    return {"internlm2": _INTERNLM2, "phi3": _PHI3}[arch]


_INTERNLM2 = PromptTemplate(
    before_question=f"<s>[UNUSED_TOKEN_146]system\n{_SYSTEM_TEXT}[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]user\n",
    after_question="[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]assistant\n",
    next_turn="[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]user\n",
    marks=("<s>", "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"),
    image_piece="<image>",
    image_start="",
    image_end="",
    turn_end="[UNUSED_TOKEN_145]",
    broken_utf8="byte",  # SentencePiece's rule
)

_PHI3 = PromptTemplate(
    before_question=f"<s><|system|>\n{_SYSTEM_TEXT}<|end|>\n<|user|>\n",
    after_question="<|end|>\n<|assistant|>\n",
    next_turn="<|end|>\n<|user|>\n",
    marks=("<s>", "<|system|>", "<|end|>", "<|user|>", "<|assistant|>"),
    image_piece="<IMG_CONTEXT>",
    image_start="<img>",
    image_end="</img>",
    turn_end="<|end|>",
    broken_utf8="run",  # the tokenizers library's rule
)


def _place_pictures(question: str, image_tokens: Sequence[int]) -> Iterator[str | int]:
    """The question's texts, with a picture's number of image tokens wherever a picture stands."""
    if not image_tokens:
        yield question
        return
    if PICTURE_TAG not in question:
        question = f"{PICTURE_TAG}\n" * len(image_tokens) + question
    first, *rest = question.split(PICTURE_TAG)
    if len(rest) != len(image_tokens):
        raise UsageError(
            f"the prompt holds {len(rest)} {PICTURE_TAG} for {len(image_tokens)} picture(s): "
            f"write one {PICTURE_TAG} per picture, or none to put all pictures in front"
        )
    yield first
    for tokens, text in zip(image_tokens, rest, strict=True):
        yield tokens
        yield text


def _join_texts(segments: Sequence[Segment]) -> Iterator[Segment]:
    """The same prompt without empty segments, neighbouring texts joined: a tokenizer may merge across their border."""
    text = ""
    for segment in segments:
        if not segment.is_mark:
            text += segment.text
            continue
        if text:
            yield Segment(text)
            text = ""
        if segment.text:
            yield segment
    if text:
        yield Segment(text)
