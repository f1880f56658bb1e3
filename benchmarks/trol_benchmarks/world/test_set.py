"""The fixed test set: questions about drawn pictures with their answers, in one versioned and hashed file.

It is drawn once and shipped: another version of Pillow, FreeType or matplotlib draws other pixels of the same scene,
and a device that runs an engine has none of the fonts. A zip file, all entries stored:

    set.json         {"version", "seed", "sha256", "drawn_with"}
    questions.jsonl  one question a line, those about one picture together, pictures of all kinds mixed
    pictures/*.jpg

`sha256` is of the list that `sha256sum pictures/* questions.jsonl` prints.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trol_benchmarks.world.questions import FAMILIES, FORMS, Question
from trol_benchmarks.world.scene import require_known
from trol_runtime.atomic_file import write_whole
from trol_runtime.dataclass_json import dataclass_from_json
from trol_runtime.errors import EngineFileError, TrolError, UsageError
from trol_runtime.one_line import one_line

VERSION = 1
RELEASED = Path(__file__).with_name(f"test_set_{VERSION}.zip")

_ABOUT, _QUESTIONS = "set.json", "questions.jsonl"
_MOST_BYTES = 256 << 20  # of all entries; the released set has a hundredth
# What Python raises for damaged archives and JSON: it has no one class for them.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError),
    *(KeyError, TypeError, ValueError, EngineFileError, UsageError),
)
OPTION = "FILE"  # that `write_test_set` is given the path by, for messages
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that zip knows: the same set is the same bytes


@dataclass(frozen=True)
class AskedQuestion:
    """A question of the set.

    picture: the key in `QuestionSet.pictures` of the picture it is about
    seen: whether training may have shown what it is about: the word or number to be read, else every pair of colour and
      shape in the picture; for a description both
    """

    id: str
    picture: str
    question: Question
    seen: bool


@dataclass(frozen=True)
class QuestionSet:
    """A test set.

    seed: of the random numbers that it was drawn with
    pictures: by name, image files as `TroL.generate` takes them
    drawn_with: versions of what drew it
    """

    seed: int
    questions: tuple[AskedQuestion, ...]
    pictures: Mapping[str, bytes]
    drawn_with: Mapping[str, str]
    version: int = VERSION

    @cached_property
    def sha256(self) -> str:
        """What tells this set from any other, in hex."""
        return _sha256(_content(self))


def read_question_set(path: Path = RELEASED) -> QuestionSet:
    """The test set in a file, verified.

    Raises TrolError in one line for a file that is missing, damaged, edited, or of a version that this release does not
    know.
    """
    remedy = "install trol-export again" if path == RELEASED else "give an undamaged test set, or leave out --set"
    try:
        entries = _read_entries(path)
        about = json.loads(entries.pop(_ABOUT))
        _require_known_version(path, about["version"])
        if _sha256(entries) != about["sha256"]:
            raise TrolError(
                f"{path}: damaged or edited: the SHA-256 of its content is {_sha256(entries)[:16]}..., expected "
                f"{one_line(about['sha256'])[:16]}...; {remedy}"
            )
        lines = entries.pop(_QUESTIONS).decode().splitlines()
        questions = tuple(dataclass_from_json(AskedQuestion, json.loads(line)) for line in lines)
        _check(questions, entries)
        question_set = QuestionSet(about["seed"], questions, entries, about["drawn_with"])
        if question_set.sha256 != about["sha256"]:
            raise ValueError(f"{_QUESTIONS} is not in the form that write_test_set gives it")
        return question_set
    except OSError as error:
        raise TrolError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from error
    except _UNREADABLE as error:
        raise TrolError(f"{path}: no test set, or a damaged one ({_reason(error)}); {remedy}") from error


def write_question_set(path: Path, question_set: QuestionSet) -> None:
    """Write the file, complete or not at all; equal sets are equal bytes. Raises as AtomicFile does."""
    content = _content(question_set)
    about = {
        "version": question_set.version,
        "seed": question_set.seed,
        "sha256": _sha256(content),
        "drawn_with": dict(question_set.drawn_with),
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as file:
        for name, data in {_ABOUT: _json(about), **content}.items():
            file.writestr(zipfile.ZipInfo(name, _DATE), data)
    write_whole(path, packed.getbuffer(), option=OPTION)


def _content(question_set: QuestionSet) -> dict[str, bytes]:
    """All entries that the hash covers, by name."""
    lines = b"".join(_json(asdict(question)) for question in question_set.questions)
    return {_QUESTIONS: lines, **dict(sorted(question_set.pictures.items()))}


def _check(questions: Sequence[AskedQuestion], pictures: Mapping[str, bytes]) -> None:
    """Raise ValueError, UsageError or KeyError unless every question can be asked, scored and counted once."""
    if not questions:
        raise ValueError("it has no questions")
    repeated = [name for name, times in Counter(question.id for question in questions).items() if times > 1]
    if repeated:
        raise ValueError(f"the id {one_line(repeated[0], 40)} occurs twice")
    for question in questions:
        require_known("family of questions", question.question.family, FAMILIES)
        require_known("form of questions", question.question.form, FORMS)
        if question.picture not in pictures:
            raise KeyError(question.picture)


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _sha256(content: Mapping[str, bytes]) -> str:
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(content.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        if sum(entry.file_size for entry in file.infolist()) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES:,} bytes")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
            raise ValueError("compressed entries")
        return {entry.filename: file.read(entry) for entry in file.infolist()}


def _require_known_version(path: Path, version: object) -> None:
    if version != VERSION:
        raise TrolError(
            f"{path}: a test set of version {one_line(version, 40)}, this release knows version {VERSION}; leave out "
            "--set, or install the release that it belongs to"
        )


def _reason(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else one_line(error, 120) or type(error).__name__
