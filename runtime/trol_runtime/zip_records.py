"""The subset of the zip format that engine.plan uses: stored entries, plain names, zip64 when needed, nothing else.

After the specification, PKWARE's APPNOTE.TXT. Python's `zipfile` is not used: writing needs a known place for every
byte (alignment, a manifest that is replaced), reading must stay within fixed bounds on hostile files.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from trol_runtime.errors import EngineFileError

# A size or offset of this value or more stands in a zip64 field instead.
ZIP64_LIMIT = 0xFFFFFFFF
ZIP64_COUNT_LIMIT = 0xFFFF

# Far above what an engine has (tens of entries), far below what would cost a reader time or memory.
MAX_DIRECTORY_BYTES = 4 << 20
_MOST_RECORDS = 100_000

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_ZIP64_END = struct.Struct("<4sQ2H2I4Q")
_ZIP64_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_RECORDS: dict[bytes, struct.Struct] = {
    b"PK\3\4": _LOCAL,
    b"PK\1\2": _CENTRAL,
    b"PK\6\6": _ZIP64_END,
    b"PK\6\7": _ZIP64_LOCATOR,
    b"PK\5\6": _END,
}
# 1980-01-01 00:00, the first date zip knows: the same export gives the same bytes.
_TIME, _DATE = 0, 0x21
_UNIX = 3 << 8
_REGULAR_FILE_0644 = 0o100644 << 16

_NAME_PART = r"(?!\.\.?(?:/|$))[A-Za-z0-9._+-]{1,128}"
_NAME = re.compile(rf"{_NAME_PART}(?:/{_NAME_PART}){{0,7}}")


@dataclass(frozen=True)
class Record:
    """One stored entry: CRC-32 and size of its data, and the absolute offset of its local header, all in bytes."""

    name: str
    crc: int
    size: int
    header_offset: int


@dataclass(frozen=True)
class Directory:
    """A central directory: its entries, the absolute offset where it starts, the archive comment after it."""

    records: Sequence[Record]
    offset: int
    comment: bytes


def is_plain_name(name: str) -> bool:
    """Whether `name` is a relative path of plain ASCII parts: nothing that could lead out of a directory."""
    return _NAME.fullmatch(name) is not None


def local_header(record: Record) -> bytes:
    """The header in front of an entry's data; its length depends only on the name and the size."""
    sizes = _saturated(record.size)
    extra = _zip64_extra([record.size, record.size]) if record.size >= ZIP64_LIMIT else b""
    name = record.name.encode("ascii")
    return (
        _LOCAL.pack(b"PK\3\4", _version(extra), 0, 0, _TIME, _DATE, record.crc, sizes, sizes, len(name), len(extra))
        + name
        + extra
    )


def directory(records: Sequence[Record], offset: int, comment: bytes) -> bytes:
    """The central directory of `records` as it stands at `offset`, with its end records and the archive comment."""
    headers = b"".join(_central_header(record) for record in records)
    count, size = len(records), len(headers)
    zip64 = b""
    if count >= ZIP64_COUNT_LIMIT or offset >= ZIP64_LIMIT or size >= ZIP64_LIMIT:
        zip64 = _ZIP64_END.pack(b"PK\6\6", _ZIP64_END.size - 12, _UNIX | 45, 45, 0, 0, count, count, size, offset)
        zip64 += _ZIP64_LOCATOR.pack(b"PK\6\7", 0, offset + size, 1)
    short_count = min(count, ZIP64_COUNT_LIMIT)
    end = _END.pack(b"PK\5\6", 0, 0, short_count, short_count, _saturated(size), _saturated(offset), len(comment))
    return headers + zip64 + end + comment


def read_directory(file: BinaryIO, end: int, comment_bytes: int) -> Directory:
    """Read the directory that ends, with an archive comment of `comment_bytes` bytes, at byte `end` of the file.

    Raises EngineFileError when a record is damaged or uses a zip feature that engine.plan does not.
    """
    end_offset = end - comment_bytes - _END.size
    _require(end_offset >= 0, "the end record is missing")
    tail = _read_at(file, end_offset, _END.size + comment_bytes)
    signature, disk, first_disk, count_here, count, size, offset, comment_length = _END.unpack_from(tail)
    _require(signature == b"PK\5\6" and comment_length == comment_bytes, "the end record is missing")
    if count == ZIP64_COUNT_LIMIT or size == 0xFFFFFFFF or offset == 0xFFFFFFFF:
        end_offset -= _ZIP64_LOCATOR.size + _ZIP64_END.size
        _require(end_offset >= 0, "the zip64 end record is missing")
        zip64 = _read_at(file, end_offset, _ZIP64_END.size + _ZIP64_LOCATOR.size)
        signature, length, _, _, disk, first_disk, count_here, count, size, offset = _ZIP64_END.unpack_from(zip64)
        locator = _ZIP64_LOCATOR.unpack_from(zip64, _ZIP64_END.size)
        _require(
            signature == b"PK\6\6" and length == _ZIP64_END.size - 12 and locator == (b"PK\6\7", 0, end_offset, 1),
            "the zip64 end record is damaged",
        )
    _require(disk == first_disk == 0 and count == count_here, "the end record names several disks")
    _require(
        size <= MAX_DIRECTORY_BYTES and count <= size // _CENTRAL.size, f"its directory cannot hold {count} entries"
    )
    _require(offset + size == end_offset, "the directory is not where the end record says")
    return Directory(_parse_central(_read_at(file, offset, size), count), offset, tail[_END.size :])


def directory_ends(file: BinaryIO, file_bytes: int) -> Iterator[int]:
    """Where the file's directories end, from the first one on: there is a further one each time something was added.

    Goes from record to record by their lengths, from the start of the file to the first bytes that are none: quickly,
    however large the entries are. What ends there is for `read_directory` to say.
    """
    position = 0
    for _ in range(_MOST_RECORDS):
        try:
            signature, position = _pass_record(file, position)
        except EngineFileError:
            return
        if position > file_bytes:
            return
        if signature == b"PK\5\6":
            yield position


def data_offset(file: BinaryIO, record: Record) -> int:
    """Absolute offset of the entry's first data byte.

    Raises EngineFileError unless the local header agrees with `record`.
    """
    fields = _LOCAL.unpack(_read_at(file, record.header_offset, _LOCAL.size))
    expected = local_header(record)
    start = record.header_offset + _LOCAL.size
    variable = _read_at(file, start, fields[-2] + fields[-1])
    _require(_LOCAL.pack(*fields) + variable == expected, f"the header of entry {record.name!r} is damaged")
    return record.header_offset + len(expected)


def _pass_record(file: BinaryIO, offset: int) -> tuple[bytes, int]:
    """Signature of the record at `offset`, and where it ends, with the data behind it if it is an entry's header."""
    signature = _read_at(file, offset, 4)
    _require(signature in _RECORDS, f"there is no record at byte {offset}")
    record = _RECORDS[signature]
    fields = record.unpack(_read_at(file, offset, record.size))
    end = offset + record.size
    if record is _LOCAL:
        packed, size, name_length, extra_length = fields[-4:]
        _, size = _widened("", _read_at(file, end + name_length, extra_length), packed, size)
        end += name_length + extra_length + size
    elif record is _CENTRAL:
        end += sum(fields[10:13])  # name, extra field, comment
    elif record is _END:
        end += fields[-1]
    return signature, end


def _central_header(record: Record) -> bytes:
    sizes, offset = _saturated(record.size), _saturated(record.header_offset)
    large = [record.size] * 2 if sizes == 0xFFFFFFFF else []
    large += [record.header_offset] if offset == 0xFFFFFFFF else []
    extra = _zip64_extra(large) if large else b""
    name = record.name.encode("ascii")
    version = _version(extra)
    fixed = _CENTRAL.pack(
        *(b"PK\1\2", _UNIX | version, version, 0, 0, _TIME, _DATE, record.crc, sizes, sizes),
        *(len(name), len(extra), 0, 0, 0, _REGULAR_FILE_0644, offset),
    )
    return fixed + name + extra


def _parse_central(data: bytes, count: int) -> list[Record]:
    records = []
    start = 0
    for _ in range(count):
        _require(start + _CENTRAL.size <= len(data), "the directory is cut short")
        fields = _CENTRAL.unpack_from(data, start)
        signature, method, crc, packed, size, name_length, extra_length = (fields[i] for i in (0, 4, 7, 8, 9, 10, 11))
        _require(signature == b"PK\1\2", "the directory is damaged")
        name_end = start + _CENTRAL.size + name_length
        end = name_end + extra_length
        name = data[start + _CENTRAL.size : name_end].decode("latin-1")
        _require(is_plain_name(name), f"entry name {name[:80]!r} is not a plain relative path")
        _require(method == 0, f"entry {name!r} is compressed; engine files hold stored entries only")
        _, size, header_offset = _widened(name, data[name_end:end], packed, size, fields[-1])
        record = Record(name, crc, size, header_offset)
        _require(data[start:end] == _central_header(record), f"the directory's record of {name!r} is damaged")
        records.append(record)
        start = end
    _require(start == len(data), "the directory is longer than its entries")
    return records


def _widened(name: str, extra: bytes, *fields: int) -> list[int]:
    """`fields` with each saturated one replaced by its 64-bit value from the zip64 extra field."""
    saturated = [i for i, field in enumerate(fields) if field == 0xFFFFFFFF]
    expected_length = 4 + 8 * len(saturated) if saturated else 0
    _require(len(extra) == expected_length, f"the zip64 field of entry {name!r} is damaged")
    wide = list(fields)
    if saturated:
        kind, length, *values = struct.unpack(f"<2H{len(saturated)}Q", extra)
        _require((kind, length) == (1, expected_length - 4), f"the zip64 field of entry {name!r} is damaged")
        for i, value in zip(saturated, values, strict=True):
            wide[i] = value
    return wide


def _saturated(value: int) -> int:
    return 0xFFFFFFFF if value >= ZIP64_LIMIT else value


def _zip64_extra(values: Sequence[int]) -> bytes:
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def _version(extra: bytes) -> int:
    return 45 if extra else 20


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    _require(len(data) == size, "the file is cut short")
    return data


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise EngineFileError(problem)
