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
from numpy.typing import NDArray

from trol_runtime.errors import EngineFileError, UsageError
from trol_runtime.one_line import one_line
from trol_runtime.prompt import PromptTemplate
from trol_runtime.tokenizer_form import read_sentencepiece_form

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")

# Unicode's White_Space, which `tokenizers` strips beside a mark; str.strip() would also take U+001C to U+001F.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
_WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"


class TextTokenizer:
    """The tokenizer of an engine together with its prompt template.

    turn_end_id: the mark that the model writes after its answer
    """

    def __init__(self, tokenizer_json: bytes, template: PromptTemplate) -> None:
        """Read `tokenizer.json`. Raises EngineFileError when the library cannot, or when a piece is missing."""
        self.template = template
        self._tokenizer = _load(tokenizer_json)
        # Special pieces inside text are text; the template's own marks go in as ids.
        self._tokenizer.encode_special_tokens = True
        self._added: dict[int, AddedToken] = self._tokenizer.get_added_tokens_decoder()
        self._mark_ids = {piece: self._mark_id(piece) for piece in template.control_pieces}
        self.turn_end_id = self._mark_ids[template.turn_end]

    def encode_prompt(
        self, question: str, crops: Sequence[int], tokens_per_crop: int, *, follows_answer: bool = False
    ) -> NDArray[np.int64]:
        """One turn as ids, int64 (1, s), image tokens expanded: the whole prompt, or a further turn of a chat.

        crops: crops of each picture, in the order of the pictures; empty for a text-only prompt.
        follows_answer: the ids begin with the end of the answer before. The whole conversation is the ids of its first
          turn, of the answer without its turn-end mark and eos, of the second turn, and so on.
        Raises UsageError for a wrong number of picture tags and for text that is not Unicode.
        """
        image_tokens = [n * tokens_per_crop for n in crops]
        segments = self.template.segments(_unicode(question), image_tokens, follows_answer=follows_answer)
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
            ids += self.encode_text(text)
        return np.array([ids], dtype=np.int64)

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text alone; whatever it spells is text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], stop: Sequence[str] = ()) -> str:
        """The answer that `ids` (new ids only) spell, without white space around it.

        It ends in front of the turn-end mark or of a text of `stop` (none of them empty), whichever is complete first;
        of several that are complete at the same character, the longest.
        """
        return "".join(self.stream(ids, stop))

    def stream(self, ids: Iterable[int], stop: Sequence[str] = ()) -> Iterator[str]:
        """The answer in non-empty parts, each as early as no later id can change it; together they are `decode`'s.

        Takes no further ids once the turn-end mark or a text of `stop` is complete.
        """
        texts = _TEXT_OF_PIECES[self.template.broken_utf8](self._pieces(ids))
        return _stripped(_until((self.template.turn_end, *stop), texts))

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
        read_sentencepiece_form(tokenizer_json)
    except (ValueError, RecursionError) as error:
        raise EngineFileError(
            f"the engine's tokenizer.json is no SentencePiece BPE ({one_line(error)}): export the engine again"
        ) from None
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json)
        # Prompts are counted, and refused when too long; nothing may shorten or fill them unseen.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises nothing more specific; its panics are no Exception
        raise EngineFileError(
            f"tokenizers {tokenizers.__version__} cannot read the engine's tokenizer.json ({one_line(error)}): "
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


def _until(stops: Sequence[str], texts: Iterable[str]) -> Iterator[str]:
    """The text before the first of `stops`, wherever the parts are divided; a possible beginning of one is held back.

    First is what is complete first: that is known as it comes. What starts first is not: after "ab", stops "abcd" and
    "b" would have to wait for two more characters.
    """
    held = ""
    for text in texts:
        held += text
        found = [(start + len(stop), start) for stop in stops if (start := held.find(stop)) >= 0]
        if found:
            yield held[: min(found)[1]]
            return
        safe = len(held) - max(_overlap(held, stop) for stop in stops)
        yield held[:safe]
        held = held[safe:]
    yield held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if stop.startswith(text[-n:])), 0)


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
