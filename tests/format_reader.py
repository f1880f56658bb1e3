"""engine.plan read and verified by docs/format.md alone, with nothing but struct, json and hashlib."""

import hashlib
import json
import struct

WIDTH = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def read_engine(data: bytes) -> tuple[dict, dict[str, bytes], dict[str, tuple[str, list[int], bytes]]]:
    """Manifest, entries by name, tensors by name as (dtype as stored, shape, bytes); ValueError for a damaged file."""
    # 1. The end record: 22 bytes and a comment of 64 at the end of the file; saturated fields stand in a zip64 record.
    end = len(data) - 86
    require(end >= 0 and data[:4] == b"PK\3\4" and data[end : end + 4] == b"PK\5\6", "no end record")
    _, disks, count, total, size, start, comment = struct.unpack("<4sI2H2IH", data[end : end + 22])
    require(disks == 0 and count == total and comment == 64, "end record")
    if count == 0xFFFF or size == 0xFFFFFFFF or start == 0xFFFFFFFF:
        end -= 76
        zip64 = struct.unpack("<4sQ2H2I4Q4sIQI", data[end : end + 76])
        require((zip64[0], zip64[10], zip64[12]) == (b"PK\6\6", b"PK\6\7", end), "zip64 end record")
        count, size, start = zip64[7:10]
    require(start + size == end, "the directory does not end at the end record")
    # 2. The directory, and the local header in front of every entry's data.
    entries, place, at = {}, {}, start
    for _ in range(count):
        fields = struct.unpack("<4s6H3I5H2I", data[at : at + 46])
        name_end = at + 46 + fields[10]
        name, extra = data[at + 46 : name_end].decode("ascii"), data[name_end : name_end + fields[11]]
        wide = [fields[9], fields[8], fields[16]]  # size twice, then the offset: the order of the zip64 field
        values = iter(struct.unpack(f"<{(len(extra) - 4) // 8}Q", extra[4:]) if extra else ())
        size, packed, header = (next(values) if value == 0xFFFFFFFF else value for value in wide)
        require(fields[0] == b"PK\1\2" and fields[4] == 0 and size == packed and name not in entries, "directory")
        local = struct.unpack("<4s5H3I2H", data[header : header + 30])
        begin = header + 30 + local[9] + local[10]
        require(local[0] == b"PK\3\4" and data[header + 30 : begin - local[10]] == name.encode(), f"header of {name}")
        require(begin + size <= start, f"{name} ends outside the file")
        entries[name], place[name] = data[begin : begin + size], begin
        at = name_end + len(extra)
    # 3. The manifest, by the comment; then every other entry, by the manifest; the arena in blocks of 16 MiB.
    require(sha256(entries["manifest.json"]) == data[-64:].decode("ascii"), "manifest.json is damaged")
    manifest = json.loads(entries["manifest.json"])
    require(manifest["format"] == 1, "another format")
    arena, hashes = entries["weights.safetensors"], manifest["sha256"]
    require(entries.keys() == {*hashes["entries"], "manifest.json", "weights.safetensors"}, "entries")
    require(all(sha256(entries[name]) == digest for name, digest in hashes["entries"].items()), "an entry is damaged")
    blocks = [sha256(arena[block : block + 2**24]) for block in range(0, len(arena), 2**24)]
    require(blocks == hashes["arena_blocks"], "the weights are damaged")
    # 4. The tensors, which lie behind the arena's header, data byte 0 at a multiple of 64 KiB of the file.
    first = 8 + int.from_bytes(arena[:8], "little")
    require((place["weights.safetensors"] + first) % 65536 == 0, "the weights are not aligned")
    tensors = {}
    for name, tensor in manifest["tensors"].items():
        nbytes = WIDTH.get(tensor["stored"], 1)
        for axis in tensor["shape"]:
            nbytes *= axis
        begin = first + tensor["offset"]
        require(first <= begin and begin + nbytes <= len(arena), f"{name} ends outside the weights")
        tensors[name] = tensor["stored"], tensor["shape"], arena[begin : begin + nbytes]
    return manifest, entries, tensors


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)
