"""Small seeded damage to bytes and to JSON documents. What a change was is told in words, for the record of a failure.

A JSON document is damaged as a value, then written out again, so that the change reaches the code behind the parser.
Some of what may stand in a file no Python value can say (NaN, a key twice, brackets without end): such text is put in
afterwards, in the place of a marked string.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

Path = tuple[str | int, ...]


class Changed(NamedTuple):
    """Damaged bytes, and in words what was done to them."""

    data: bytes
    change: str


# --- bytes ------------------------------------------------------------------------------------------------------------

# Where sizes, offsets and counts turn over, or turn negative.
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
MOST_BYTES = 64  # moved, doubled or removed at once: more only looks like less of the same


def damaged_bytes(data: bytes, rng: Random, places: Sequence[range] = ()) -> Changed:
    """One to three changes, each at a random byte of a random range of `places` (all of `data` when there is none)."""
    changes = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not data:
            break
        place = rng.choice([place for place in places if place] or [range(len(data))])
        at = min(rng.choice(place), len(data) - 1)
        change = rng.choice(_BYTE_CHANGES)
        data = change(data, at, rng)
        changes.append(f"{change.__name__.strip('_')} at byte {at}")
    return Changed(data, ", ".join(changes))


def flipped(data: bytes, at: int, bit: int) -> bytes:
    """One bit of one byte inverted."""
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def _bit_flipped(data: bytes, at: int, rng: Random) -> bytes:
    return flipped(data, at, rng.randrange(8))


def _byte_set(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at] + bytes([rng.choice((0, 1, 0x20, 0x2F, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) + data[at + 1 :]


def _number_set(data: bytes, at: int, rng: Random) -> bytes:
    width, layout = rng.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
    number = struct.pack(rng.choice("<>") + layout, rng.choice(EDGES) % 256**width)
    return data[:at] + number + data[at + width :]


def _bytes_removed(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at] + data[at + rng.randint(1, MOST_BYTES) :]


def _bytes_doubled(data: bytes, at: int, rng: Random) -> bytes:
    piece = data[at : at + rng.randint(1, MOST_BYTES)]
    return data[:at] + piece * rng.choice((2, 2, 50)) + data[at + len(piece) :]


def _bytes_inserted(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at] + rng.randbytes(rng.randint(1, MOST_BYTES)) + data[at:]


def _bytes_moved(data: bytes, at: int, rng: Random) -> bytes:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randint(1, MOST_BYTES)]
    return data[:at] + piece + data[at + len(piece) :]


def _bytes_zeroed(data: bytes, at: int, rng: Random) -> bytes:
    count = min(rng.randint(1, MOST_BYTES), len(data) - at)
    return data[:at] + bytes(count) + data[at + count :]


def _cut(data: bytes, at: int, rng: Random) -> bytes:
    return data[:at]


_BYTE_CHANGES: tuple[Callable[[bytes, int, Random], bytes], ...] = (
    *(_bit_flipped, _bit_flipped, _byte_set, _number_set, _number_set, _bytes_removed),
    *(_bytes_doubled, _bytes_inserted, _bytes_moved, _bytes_zeroed, _cut),
)

# --- JSON -------------------------------------------------------------------------------------------------------------


class Raw(str):
    """Text that stands in a document as it is, in the place of a value."""


HOSTILE_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 65_536, 10**6, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1),
    *(2**63, 2**64, -(2**31), -(2**63) - 1, 10**30, 0.5, 1.0, -0.0, 1e-320, 1e38, 1e300, -1e300),
    *("", " ", "x", "0", "-1", "nan", "\0", "a\nb", "\x1b[31m", "\u2028", "é", "\U0001f600", "%s%n{0}", "x" * 10_000),
    *("../escape", "/etc/passwd", "..", "a/b", "C:\\x", "weights.safetensors", "manifest.json", "__class__"),
    *([], {}, [[]], [None], [0], [-1], [2**64], [""], {"": None}, {"type": "x"}, {"kind": "clip"}, [1] * 10_000),
    *map(Raw, ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, '"\\ud800"', '"\\udc00x"')),
    *map(Raw, ("[" * 150 + "]" * 150, "[" * 900 + "]" * 900, '{"a":' * 400 + "1" + "}" * 400)),
    *map(Raw, ("[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "[" * 200_000, "", "}", "tru")),
)


def damaged_json(document: Any, rng: Random) -> Changed:
    """One change, now and then two, at places of any depth: an entry of a large table is as likely as a key beside it.

    document: what `json.loads` gives; it stays as it is
    """
    document = copy.deepcopy(document)
    changes = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        path = random_path(document, rng)
        document, change = rng.choice(_JSON_CHANGES)(document, path, rng)
        changes.append(f"{'.'.join(map(str, path)) or 'the document'} {change}")
    return Changed(json_bytes(document), ", ".join(changes))


def replaced(document: Any, path: Path, value: Any) -> Any:
    """A copy of `document` with the value at `path` replaced."""
    if not path:
        return value
    document = copy.deepcopy(document)
    _container(document, path)[path[-1]] = value
    return document


def paths(document: Any, prefix: Path = ()) -> Iterator[Path]:
    """The place of every value in the document, the whole first."""
    yield prefix
    for key, value in _children(document):
        yield from paths(value, (*prefix, key))


def random_path(document: Any, rng: Random) -> Path:
    """A place found by going down at random, so that many entries of one table do not outweigh everything else."""
    path: Path = ()
    while (children := list(_children(document))) and rng.random() > 0.15:
        key, document = rng.choice(children)
        path = (*path, key)
    return path


def json_bytes(document: Any) -> bytes:
    """The document as JSON, `Raw` texts in their places; what Unicode has no bytes for stays an escape."""
    raws: list[str] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            raws.append(value)
            return f"\ue000{len(raws) - 1}\ue000"
        if isinstance(value, dict):
            return {key: marked(item) for key, item in value.items()}
        return [marked(item) for item in value] if isinstance(value, list) else value

    text = json.dumps(marked(document), separators=(",", ":"))
    for index, raw in enumerate(raws):
        text = text.replace(f'"\\ue000{index}\\ue000"', raw)
    return text.encode()


def _children(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _container(document: Any, path: Path) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


def _value_replaced(document: Any, path: Path, rng: Random) -> tuple[Any, str]:
    value = rng.choice(HOSTILE_VALUES)
    return replaced(document, path, value), f"is now {_shortened(value)}"


def _value_varied(document: Any, path: Path, rng: Random) -> tuple[Any, str]:
    """Something of the same type, which a check of types does not see."""
    value = document
    for key in path:
        value = value[key]
    varied = _varied(value, rng)
    return replaced(document, path, varied), f"is now {_shortened(varied)}"


def _varied(value: Any, rng: Random) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, 2 * value, value // 2, value * 10**9, value ^ 1, 0))
    if isinstance(value, float):
        return rng.choice((-value, value * 1e3, value / 1e3, 0.0, Raw("NaN"), Raw("1e999")))
    if isinstance(value, str):
        other = rng.randrange(len(value) + 1)
        return rng.choice((value[:other], value[::-1], value * 2, value.upper(), value[:other] + "\0" + value[other:]))
    if isinstance(value, list):
        return rng.choice((value[:-1], value * 2, value[::-1], value[:1], [*value, *value[:1]], [*value, None]))
    items = list(value.items())
    return dict(rng.choice((items[1:], items[::-1], items[: len(items) // 2], [*items, ("unknown key", 1)])))


def _key_removed(document: Any, path: Path, rng: Random) -> tuple[Any, str]:
    if path:
        del _container(document, path)[path[-1]]
    return document, "is gone"


def _key_doubled(document: Any, path: Path, rng: Random) -> tuple[Any, str]:
    """The key stands twice in its object, the second time with another value."""
    container = _container(document, path) if path else None
    if not isinstance(container, dict):
        return _value_replaced(document, path, rng)
    value = rng.choice([item for item in HOSTILE_VALUES if not isinstance(item, Raw)])
    again = f"{json.dumps(container[path[-1]])},{json.dumps(path[-1])}:{json.dumps(value)}"
    return replaced(document, path, Raw(again)), f"stands twice, the second time as {_shortened(value)}"


def _key_renamed(document: Any, path: Path, rng: Random) -> tuple[Any, str]:
    container = _container(document, path) if path else None
    if not isinstance(container, dict):
        return _value_varied(document, path, rng)
    name = rng.choice(["", "__pad.0", "../x", "x" * 1000, "\n", "é", *container])
    container[name] = container.pop(path[-1])
    return document, f"is called {_shortened(name)} now"


def _values_swapped(document: Any, path: Path, rng: Random) -> tuple[Any, str]:
    other = random_path(document, rng)
    if not path or not other or path[: len(other)] == other or other[: len(path)] == path:
        return _value_varied(document, path, rng)
    first, second = _container(document, path), _container(document, other)
    first[path[-1]], second[other[-1]] = second[other[-1]], first[path[-1]]
    return document, f"is swapped with {'.'.join(map(str, other))}"


_JSON_CHANGES = (
    *(_value_replaced, _value_replaced, _value_replaced, _value_varied, _value_varied),
    *(_key_removed, _key_doubled, _key_renamed, _values_swapped),
)


def _shortened(value: Any) -> str:
    text = repr(str(value) if isinstance(value, Raw) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
