"""Prompts to token ids and token ids back to text, as they arrive.

Pieces are SentencePiece's: "▁" stands for a space and `<0xE2>` for one byte, so text is the concatenation of what each
id stands for, and can be streamed. `tokenizer.json` was checked to be of that kind when the checkpoint was exported.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trol_runtime.errors import EngineFileError, UsageError
from trol_runtime.prompt import PromptTemplate

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")

# Unicode's White_Space, which `tokenizers` strips beside a mark; str.strip() would also take U+001C to U+001F.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
_WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"


class TextTokenizer:
    """The tokenizer of an engine together with its prompt template."""

    def __init__(self, tokenizer_json: bytes, template: PromptTemplate) -> None:
        """Read `tokenizer.json`. Raises EngineFileError when the library cannot, or when a piece is missing."""
        self.template = template
        self._tokenizer = _load(tokenizer_json)
        # Special pieces inside text are text; the template's own marks go in as ids.
        self._tokenizer.encode_special_tokens = True
        self._added: dict[int, AddedToken] = self._tokenizer.get_added_tokens_decoder()
        self._mark_ids = {piece: self._mark_id(piece) for piece in template.control_pieces}

    def encode_prompt(self, question: str, crops: Sequence[int], tokens_per_crop: int) -> np.ndarray:
        """The whole prompt as ids, int64 (1, s), image tokens expanded.

        crops: crops of each picture, in the order of the pictures; empty for a text-only prompt.
        Raises UsageError for a wrong number of picture tags and for text that is not Unicode.
        """
        segments = self.template.segments(_unicode(question), [n * tokens_per_crop for n in crops])
        ids: list[int] = []
        for i, segment in enumerate(segments):
            if segment.is_mark:
                ids += [self._mark_ids[segment.text]] * segment.repeat
                continue
            text = segment.text  # its neighbours, if any, are marks
            if i > 0 and self._strips(segments[i - 1].text, "rstrip"):
                text = text.lstrip(_WHITE_SPACE)
            if i + 1 < len(segments) and self._strips(segments[i + 1].text, "lstrip"):
                text = text.rstrip(_WHITE_SPACE)
            ids += self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array([ids], dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The answer that `ids` (new ids only) spell: up to the first turn-end mark, without white space around it."""
        return "".join(self.stream(ids))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The answer in non-empty parts, each as early as no later id can change it; together they are `decode(ids)`.

        Takes no further ids once the turn-end mark is complete.
        """
        texts = _TEXT_OF_PIECES[self.template.broken_utf8](self._pieces(ids))
        return _stripped(_until(self.template.turn_end, texts))

    def _mark_id(self, piece: str) -> int:
        token = self._tokenizer.token_to_id(piece)
        if token is None:
            raise EngineFileError(
                f"the engine's tokenizer.json lacks {piece!r}, a piece of its prompt: export the engine again"
            )
        return token

    def _strips(self, piece: str, side: str) -> bool:
        token = self._added.get(self._mark_ids[piece])
        return token is not None and getattr(token, side)

    def _pieces(self, ids: Iterable[int]) -> Iterator[str | bytes]:
        """What each id stands for, text or a single byte; an id without a piece is passed over."""
        for token in map(int, ids):
            added = self._added.get(token)
            piece = added.content if added else self._tokenizer.id_to_token(token)
            if piece is None:
                continue
            byte = None if added else _BYTE_PIECE.fullmatch(piece)
            yield bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ")


def _load(tokenizer_json: bytes) -> Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the library raises nothing more specific
        raise EngineFileError(
            f"tokenizers {tokenizers.__version__} cannot read the engine's tokenizer.json ({error}): "
            "pip install -U tokenizers, or export the engine again"
        ) from error


def _unicode(question: str) -> str:
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"character {error.start + 1} of the prompt is {question[error.start]!r}, no Unicode text: pass it as UTF-8"
        ) from None
    return question


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    # Python's own "replace" writes one U+FFFD for several bytes.
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("trol_runtime.replace_each_byte", _replace_each_byte)


def _text_by_bytes(pieces: Iterable[str | bytes]) -> Iterator[str]:
    """Text of pieces and single bytes; of the bytes, each that belongs to no character becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("trol_runtime.replace_each_byte")
    for piece in pieces:
        if isinstance(piece, bytes):
            yield decoder.decode(piece)
        else:
            yield decoder.decode(b"", final=True) + piece
    yield decoder.decode(b"", final=True)


def _text_by_runs(pieces: Iterable[str | bytes]) -> Iterator[str]:
    """Text of pieces and single bytes; a run of bytes that is not UTF-8 throughout becomes U+FFFD throughout."""
    run = b""
    for piece in pieces:
        if isinstance(piece, bytes):
            run += piece
        else:
            yield _run_text(run) + piece
            run = b""
    yield _run_text(run)


def _run_text(run: bytes) -> str:
    try:
        return run.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(run)


_TEXT_OF_PIECES = {"byte": _text_by_bytes, "run": _text_by_runs}


def _until(mark: str, texts: Iterable[str]) -> Iterator[str]:
    """The text before the first `mark`, wherever the parts are divided; a possible beginning of it is held back."""
    held = ""
    for text in texts:
        held += text
        before, found, _ = held.partition(mark)
        if found:
            yield before
            return
        safe = len(held) - _overlap(held, mark)
        yield held[:safe]
        held = held[safe:]
    yield held


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a beginning of `mark`."""
    return next((n for n in range(min(len(text), len(mark)), 0, -1) if mark.startswith(text[-n:])), 0)


def _stripped(texts: Iterable[str]) -> Iterator[str]:
    """The text without white space around it, in non-empty parts; white space waits for what follows it."""
    started = False
    space = ""
    for text in texts:
        text = space + text
        if not started:
            text = text.lstrip()
        body = text.rstrip()
        space = text[len(body) :]
        if body:
            started = True
            yield body
