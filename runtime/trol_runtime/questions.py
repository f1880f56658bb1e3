"""Questions in, one JSON object a line; answers out, one JSON object a line, in the same order.

    {"prompt": "What is it?", "image": "a.png", "id": 1}
    {"prompt": "<image> or <image>?", "images": ["a.png", "b.png"], "num_beams": 5}

A line that cannot be answered has its error in the place of its answer, and the others go on.
"""

from __future__ import annotations

import json
import math
import reprlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from trol_runtime.answer_report import answer_record, kept_memory, summary
from trol_runtime.errors import TrolError, UsageError
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.picture import load_picture
from trol_runtime.prompt import DEFAULT_QUESTION

if TYPE_CHECKING:
    from trol_runtime.engine import TroL

MAX_LINE = 2**20  # characters; the longest prompt that any engine holds is far shorter

_MAX_DIGITS = 64
_EXPECTED = 'expected an object such as {"prompt": "What is it?", "image": "x.png"}'
_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
_OPTIONS = tuple(field.name for field in fields(GenerationConfig))
_KEYS = ("prompt", "image", "images", "id", *_OPTIONS)


@dataclass(frozen=True)
class Question:
    """One line: prompt, paths of its pictures, how to answer."""

    prompt: str
    images: tuple[str, ...]
    config: GenerationConfig


def read_question(line: str, defaults: Mapping[str, Any] = _NO_OPTIONS) -> Question:
    """One line of JSON as a question; an option that is null is that of `GenerationConfig()`.

    defaults: the options of GenerationConfig that the line does not give
    Raises UsageError for what is no JSON object, for keys that are unknown, twice or contradictory, for values of the
    wrong kind, and where options contradict each other. Whether pictures exist is not looked at.
    """
    return _question(_Line(line), defaults)


class _Line:
    """What a line holds; UsageError unless that is a JSON object.

    faults: why the values cannot be asked as they are, though they can be read: one message each
    values: of a number beyond bounds its text, of a key that comes twice the last; so an `id` can be echoed in any case
    """

    def __init__(self, line: str) -> None:
        self.faults: list[str] = []
        if len(line) > MAX_LINE:
            raise UsageError(f"the line is longer than {MAX_LINE} characters; no engine holds such a prompt")
        try:
            values = json.loads(
                line,
                parse_int=self._integer,
                parse_float=self._finite,
                parse_constant=self._constant,
                object_pairs_hook=self._object,
            )
        except RecursionError:
            raise UsageError("the line is nested too deeply; expected one object of texts and numbers") from None
        except ValueError as error:
            raise UsageError(f"the line is no JSON ({error}); {_EXPECTED}") from None
        if not isinstance(values, dict):
            raise UsageError(f"the line is {reprlib.repr(values)}; {_EXPECTED}")
        self.values: dict[str, Any] = values

    def _integer(self, digits: str) -> int | str:
        if len(digits) <= _MAX_DIGITS:
            return int(digits)
        self.faults.append(f"a number has {len(digits)} digits; expected {_MAX_DIGITS} or fewer")
        return digits

    def _finite(self, digits: str) -> float | str:
        value = float(digits)
        if math.isfinite(value):
            return value
        self.faults.append(f"the number {reprlib.repr(digits)} is beyond what a float holds")
        return digits

    def _constant(self, name: str) -> str:
        self.faults.append(f"{name} is no JSON; expected a number")
        return name

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                self.faults.append(f"key {reprlib.repr(key)} is given twice; keep one")
            values[key] = value
        return values


def _question(line: _Line, defaults: Mapping[str, Any]) -> Question:
    if line.faults:
        raise UsageError(line.faults[0])
    values = line.values
    unknown = [key for key in values if key not in _KEYS]
    if unknown:
        raise UsageError(f"unknown key {reprlib.repr(unknown[0])}; known are: {', '.join(_KEYS)}")
    images = _images(values)
    if "prompt" not in values and not images:
        raise UsageError('nothing to ask: give "prompt", or "image", or both')
    prompt = _text("prompt", values.get("prompt", DEFAULT_QUESTION))
    options = {**defaults, **{key: values[key] for key in values if key in _OPTIONS}}
    config = GenerationConfig(**{key: value for key, value in options.items() if value is not None})
    return Question(prompt, images, config)


def answer_questions(
    model: TroL, lines: BinaryIO, defaults: Mapping[str, Any], *, keep_prefix: bool, exif: bool, load_ms: float
) -> None:
    """Answer every line on stdout, all of them through one session; times go to stderr.

    defaults: options of GenerationConfig for lines that do not give them
    keep_prefix: read a picture, or whatever else questions begin with, once for all neighbouring lines that share it
    exif: turn pictures upright
    Raises TrolError at the end when lines could not be answered.
    """
    session = model.new_session(keep_prefix=keep_prefix)
    asked = failed = kept_bytes = 0
    for number, text in _numbered_lines(lines):
        asked += 1
        known: dict[str, Any] = {}
        try:
            line = _Line(text)
            known = {"id": line.values["id"]} if "id" in line.values else {}
            question = _question(line, defaults)
            pictures = [load_picture(image, exif) for image in question.images]
            answer = model.start(question.prompt, pictures, config=question.config, session=session)
            for _ in answer:  # to its end
                pass
            record = answer_record(answer, load_ms) | {"reused_tokens": answer.reused_tokens}
            print(f"line {number}: {summary(answer, model)}", file=sys.stderr)
        except TrolError as error:
            failed += 1
            record = {"line": number, "error": str(error)}
        print(json.dumps(known | record), flush=True)
        if session.prefix_bytes > kept_bytes:
            kept_bytes = session.prefix_bytes
            print(kept_memory(session), file=sys.stderr)
    if failed:
        raise TrolError(f"{failed} of {asked} questions failed; their errors stand in the place of their answers")


def _images(values: dict[str, Any]) -> tuple[str, ...]:
    if "image" in values and "images" in values:
        raise UsageError('both "image" and "images" are given; name one picture or list several')
    if "image" in values:
        return (_text("image", values["image"]),)
    images = values.get("images", [])
    if not isinstance(images, list):
        raise UsageError(f'"images" is {reprlib.repr(images)}, expected a list of file names; one goes into "image"')
    return tuple(_text(f"images[{place}]", image) for place, image in enumerate(images))


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f'"{key}" is {reprlib.repr(value)}, expected a text')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f'character {error.start + 1} of "{key}" is {value[error.start]!r}, no Unicode text: write it in UTF-8'
        ) from None
    return value


def _numbered_lines(lines: BinaryIO) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers; of one that is too long only enough to see that it is."""
    most = 4 * (MAX_LINE + 1)  # bytes: a character has four at most
    number = 0
    while line := lines.readline(most):
        number += 1
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = lines.readline(most)
        # Bytes that are no UTF-8 become characters that no text may hold; a file may begin with a byte order mark.
        text = line.decode("utf-8", "surrogateescape").removeprefix("\ufeff" if number == 1 else "")
        if text.strip():
            yield number, text
