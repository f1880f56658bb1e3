"""Whether an answer about the drawn world is right, judged in the spirit of the official benchmarks."""

from __future__ import annotations

import re

from trol_benchmarks.world.description import miscounts, named
from trol_benchmarks.world.questions import Question


def is_right(question: Question, answer: str) -> bool:
    """Whether `answer`, as a model said it, is right; an empty answer is wrong.

    letter:      the answer is the letter, alone or as in "B.", "B. red" and "B) red"
    description: the answer names exactly what the picture shows, each with its colour, in any order and in many
      wordings, and does not say that there are more or fewer; what it calls a word or a number is not judged
    others:      equal but for case, outer white space and a full stop at the end
    """
    if question.form == "letter":
        return _letter(answer) == question.answer
    if question.family == "description":
        return named(answer) == named(question.answer) and not miscounts(answer)
    return normalised(answer) == normalised(question.answer)


def normalised(answer: str) -> str:
    """The answer in lower case without outer white space and without a full stop at its end."""
    return answer.strip().removesuffix(".").rstrip().lower()


def _letter(answer: str) -> str | None:
    """The letter that is the answer, or starts it before a full stop, colon or bracket."""
    match = re.match(r"([A-Z])(?:$|[.:)])", answer.strip())
    return match[1] if match else None
