"""Point an ONNX model's external data at another file: a small edit of length-delimited protobuf fields, without onnx.

Stored graphs refer to `weights.safetensors` by offsets inside that file, so that extracted graphs run anywhere. ONNX
Runtime is to map the same bytes inside engine.plan, whatever that file is called now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

# Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.external_data and its key and
# value.
_GRAPH, _INITIALIZER, _EXTERNAL_DATA, _KEY, _VALUE = 7, 5, 13, 1, 2
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def redirect_external_data(model: bytes, location: str, shift: int) -> bytes:
    """`model` with every initializer's external data at `location`, `shift` bytes further on.

    Initializers of the main graph only: the stored graphs keep none in subgraphs. ValueError if `model` is no protobuf.
    """

    def entry(data: bytes) -> bytes:
        fields = dict((number, value) for number, _, value, _ in _fields(data))
        key, value = fields.get(_KEY, b""), fields.get(_VALUE, b"")
        if key == b"location":
            return _length_delimited(_KEY, key) + _length_delimited(_VALUE, location.encode())
        if key == b"offset":
            return _length_delimited(_KEY, key) + _length_delimited(_VALUE, str(int(value) + shift).encode())
        return data

    def tensor(data: bytes) -> bytes:
        return _edit(data, _EXTERNAL_DATA, entry)

    return _edit(model, _GRAPH, lambda graph: _edit(graph, _INITIALIZER, tensor))


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


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
