"""A test set of six questions about two pictures, for what runs or reports any test set."""

from __future__ import annotations

from io import BytesIO

from small_prompts import picture
from trol_benchmarks.world.questions import Question
from trol_benchmarks.world.test_set import AskedQuestion, QuestionSet

_QUESTIONS = (
    AskedQuestion("0-colour", "pictures/0.png", Question("colour", "plain", "What colour is the star?", "red"), True),
    AskedQuestion("0-count", "pictures/0.png", Question("count", "plain", "How many stars are there?", "2"), False),
    AskedQuestion("0-word", "pictures/0.png", Question("word", "plain", "Read the word.", "CAT"), True),
    AskedQuestion("1-colour", "pictures/1.png", Question("colour", "plain", "Which colour is the ring?", "blue"), True),
    AskedQuestion("1-word", "pictures/1.png", Question("word", "plain", "What word do you see?", "OWL"), False),
    AskedQuestion("1-existence", "pictures/1.png", Question("existence", "plain", "Is there a star?", "no"), True),
)


def small_question_set(seed: int = 3) -> QuestionSet:
    """The pictures are noise, another for another seed."""
    pictures = {f"pictures/{number}.png": _png(seed + number) for number in range(2)}
    return QuestionSet(seed, _QUESTIONS, pictures, {"pillow": "of the test"})


def _png(seed: int) -> bytes:
    file = BytesIO()
    picture(40, 50, seed).save(file, "PNG")
    return file.getvalue()
