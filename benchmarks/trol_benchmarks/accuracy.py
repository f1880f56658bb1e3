"""An engine asked the questions of a test set: greedy, and each picture is read once for all questions about it."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trol_benchmarks.world.test_set import AskedQuestion, QuestionSet
from trol_runtime.backends import CPU
from trol_runtime.bundle import Bundle
from trol_runtime.engine import TOKENIZER_ENTRY, TroL
from trol_runtime.errors import EngineFileError, LimitError, UsageError
from trol_runtime.generation import Generation
from trol_runtime.session import Session

# More than any right answer takes. A model that does not come to an end is wrong either way, and should not take long.
MOST_NEW_TOKENS = 192

_PROGRESS_EVERY = 100  # questions
_READ_BYTES = 4 << 20


@dataclass(frozen=True)
class EngineIdentity:
    """Which engine answered.

    sha256: of the engine file
    target: what it ran on
    tokenizer_sha256: of its tokenizer.json; ids of engines are comparable where it is the same
    """

    sha256: str
    precision: str
    target: str
    tokenizer_sha256: str


@dataclass(frozen=True)
class Answer:
    """What an engine said; the ids include the one that ended it."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """Of one engine, by the id of the question."""

    engine: EngineIdentity
    of: dict[str, Answer]


def open_engine(path: str) -> Bundle:
    """An engine file that can be asked; raises as Bundle.open does, UsageError for one without a tokenizer."""
    bundle = Bundle.open(path)
    if bundle.manifest.prompt is None:
        raise UsageError(f"{path}: has no tokenizer, so it cannot be asked; export it without --no-tokenizer")
    return bundle


def require_askable(
    bundle: Bundle, question_set: QuestionSet, questions: Sequence[AskedQuestion], threads: int | None = None
) -> None:
    """Let an engine begin to answer the longest of `questions`, and forget it; raises as `ask_engine`.

    What stops an engine then stops it before others have answered for minutes.
    """
    longest = max(questions, key=lambda question: len(question.question.text))
    model = TroL(bundle, threads)
    _begin(model, bundle, question_set, longest, model.new_session()).stop()


def ask_engine(
    bundle: Bundle,
    question_set: QuestionSet,
    questions: Sequence[AskedQuestion],
    threads: int | None = None,
    backend: str = CPU,
) -> Answers:
    """The greedy answers to `questions` of `question_set`; progress goes to stderr.

    threads: cores of one run on the CPU; None: all physical ones. backend: what runs the engine
    Raises what TroL and its `start` raise, and LimitError where the engine has no room for a question and an answer.
    """
    model = TroL(bundle, threads, backend=backend)
    identity = _identity(bundle, backend)
    session = model.new_session(keep_prefix=True)
    begin = time.perf_counter()
    answers = {}
    for question in questions:
        answer = _begin(model, bundle, question_set, question, session)
        for _ in answer:  # to its end
            pass
        answers[question.id] = Answer(answer.text, tuple(answer.token_ids))
        if len(answers) % _PROGRESS_EVERY == 0 or len(answers) == len(questions):
            seconds = time.perf_counter() - begin
            print(f"{bundle.path.name}: {len(answers)} of {len(questions)} answered, {seconds:.1f} s", file=sys.stderr)
    return Answers(identity, answers)


def _begin(
    model: TroL, bundle: Bundle, question_set: QuestionSet, question: AskedQuestion, session: Session
) -> Generation:
    """The answer to a question, not yet generated.

    Raises LimitError where it would be cut: that would count as wrong, and the engine for worse than it is.
    """
    picture = question_set.pictures[question.picture]
    answer = model.start(question.question.text, [picture], session=session, max_new_tokens=MOST_NEW_TOKENS)
    if answer.max_new_tokens < MOST_NEW_TOKENS:
        raise LimitError(
            f"{bundle.path}: holds {bundle.manifest.limits.max_seq} tokens, of which a question leaves "
            f"{answer.max_new_tokens} for its answer, expected {MOST_NEW_TOKENS} or more; export it with a larger "
            "--max-seq"
        )
    return answer


def _identity(bundle: Bundle, backend: str) -> EngineIdentity:
    manifest = bundle.manifest
    sha256 = _file_sha256(bundle.path)
    bundle.require_same_file()  # it is that of the engine which answers
    return EngineIdentity(sha256, manifest.precision, backend, manifest.sha256.entries[TOKENIZER_ENTRY])


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise EngineFileError(f"{path}: cannot be read ({error.strerror}); check the path and the disk") from error
    return digest.hexdigest()
