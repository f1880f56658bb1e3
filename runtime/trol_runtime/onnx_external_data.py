"""Point an ONNX model's external data at another file: a small edit of length-delimited protobuf fields, without onnx.

Stored graphs refer to `weights.safetensors` by offsets inside that file, so that extracted graphs run anywhere. ONNX
Runtime is to map the same bytes inside engine.plan, whatever that file is called now, and no others: it would read any
file beside the engine that a graph names, and older versions any file at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trol_runtime.bundle import ARENA_ENTRY
from trol_runtime.one_line import one_line

# Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.external_data and its key and
# value.
_GRAPH, _INITIALIZER, _EXTERNAL_DATA, _KEY, _VALUE = 7, 5, 13, 1, 2
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

_NEEDED_KEYS, _KNOWN_KEYS = {b"location", b"offset", b"length"}, {b"location", b"offset", b"length", b"checksum"}
_MOST_DIGITS = 18  # of a number that fits 64 bits whatever it begins with


def redirect_external_data(model: bytes, location: str, shift: int, size: int) -> bytes:
    """`model` with every initializer's external data at `location`, `shift` bytes further on.

    size: bytes of `weights.safetensors`
    ValueError if `model` is no protobuf, refers to another file than `weights.safetensors` or to bytes outside it, or
    has external data anywhere but in initializers of the main graph: the stored graphs keep none elsewhere.
    """
    redirected = 0

    def tensor(data: bytes) -> bytes:
        nonlocal redirected
        entries = [
            _entry(value) for number, kind, value, _ in _fields(data) if (number, kind) == (_EXTERNAL_DATA, _LENGTH)
        ]
        if not entries:
            return data
        redirected += 1
        offset = _checked_offset(entries, size)
        moved = {b"location": location.encode(), b"offset": str(offset + shift).encode()}
        edited = iter([(key, moved.get(key, value)) for key, value in entries])
        return _edit(data, _EXTERNAL_DATA, lambda _: _length_delimited_pair(*next(edited)))

    edited = _edit(model, _GRAPH, lambda graph: _edit(graph, _INITIALIZER, tensor))
    # Subgraphs, functions and attributes are not gone through: whatever they refer to, they would have to name the key.
    if model.count(b"location") != redirected:
        raise ValueError("it has external data that is no initializer of the main graph")
    return edited


def _entry(data: bytes) -> tuple[bytes, bytes]:
    """Key and value of a StringStringEntryProto."""
    fields = {number: value for number, _, value, _ in _fields(data)}
    return fields.get(_KEY, b""), fields.get(_VALUE, b"")


def _checked_offset(entries: list[tuple[bytes, bytes]], size: int) -> int:
    """Where a tensor's data begins in `weights.safetensors`, from its external data's keys and values."""
    values = dict(entries)
    if len(values) != len(entries) or not _NEEDED_KEYS <= values.keys() <= _KNOWN_KEYS:
        found = one_line([key for key, _ in entries])
        raise ValueError(f"external data has the keys {found}, expected location, offset, length")
    if values[b"location"] != ARENA_ENTRY.encode():
        raise ValueError(f"external data lies in {one_line(values[b'location'])}, expected {ARENA_ENTRY}")
    offset, length = (_count(values[key]) for key in (b"offset", b"length"))
    if offset + length > size:
        raise ValueError(f"external data ends at byte {offset + length} of {ARENA_ENTRY}, which has {size}")
    return offset


def _count(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > _MOST_DIGITS:
        raise ValueError(f"external data has the offset or length {one_line(digits)}, expected a count of bytes")
    return int(digits)


def _edit(message: bytes, field: int, edit: Callable[[bytes], bytes]) -> bytes:
    """`message` with every length-delimited occurrence of `field` replaced by `edit` of its content."""
    parts = []
    for number, kind, value, raw in _fields(message):
        parts.append(_length_delimited(number, edit(value)) if (number, kind) == (field, _LENGTH) else raw)
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """(field number, wire type, content, the field as it stands) one after the other."""
    position = 0
    while position < len(message):
        start = position
        tag, position = _read_varint(message, position)
        kind = tag & 7
        content = position
        if kind == _VARINT:
            _, position = _read_varint(message, position)
        elif kind == _LENGTH:
            length, content = _read_varint(message, position)
            position = content + length
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {start}")
        if position > len(message):
            raise ValueError(f"field at byte {start} ends beyond its message")
        yield tag >> 3, kind, message[content:position], message[start:position]


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError(f"bad varint at byte {position}")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _length_delimited(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(content)) + content


def _length_delimited_pair(key: bytes, value: bytes) -> bytes:
    return _length_delimited(_KEY, key) + _length_delimited(_VALUE, value)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
