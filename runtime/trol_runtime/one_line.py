"""Text of files, libraries and users as it may stand in a message: one printable line that is not endless."""

from __future__ import annotations

MOST_CHARACTERS = 400


def one_line(text: object, most: int = MOST_CHARACTERS) -> str:
    """`str(text)` with white space as single spaces, what cannot be printed as an escape, and cut in the middle.

    Its beginning says what is meant and its end what to do: those stay.
    """
    line = " ".join(str(text).split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    if len(line) <= most:
        return line
    tail = most // 3
    return f"{line[: most - tail - 5]} ... {line[-tail:]}"
