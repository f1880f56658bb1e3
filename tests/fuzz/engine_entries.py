"""Engine files with another tokenizer or other graphs, signed anew: what reaches the libraries behind the reader.

A graph says what is computed, so that another one may answer otherwise. But it must not make ONNX Runtime read
anything beside the weights in the engine file: after `redirect_external_data` every reference in the whole model, its
subgraphs and constants included, must stay within the arena.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import onnx
from onnx import TensorProto

from fuzz.case import Case, Rule, WrongAnswerError
from fuzz.engine_file import ENGINE, EngineParts, answer, contents
from fuzz.mutations import damaged_bytes, damaged_json, json_bytes
from fuzz.seeds import ARCHS, engine_path
from fuzz.tokenizer_files import STRANGE_PARTS
from trol_runtime.bundle import ARENA_ENTRY, Bundle
from trol_runtime.onnx_external_data import redirect_external_data

TOKENIZER = "tokenizer.json"
DECOY = "decoy.bin"  # a file beside the engine: as long as its weights, and never to be read

LOCATIONS = (
    *("../decoy.bin", "decoy.bin", "/etc/passwd", "./weights.safetensors", "", ".", "..", "engine.plan", "a\0b"),
    *("weights.safetensors/../decoy.bin", "*/_ORT_MEM_ADDR_/*", "file:///etc/passwd", "x" * 5000, "\u202e"),
)
NUMBERS = (
    *("-1", "-4096", "-100000", "0", "1", "387072", "388356", "1000000000", "18446744073709551615", "9" * 400),
    *("", "x", "1e3", " 4096", "4_096", "+4096", "0x10", "٤٠٩٦", "4096.0", "nan"),
)


class EngineEntries:
    """Bytes of graphs and tokenizer, keys of the tokenizer, references to weights, one entry in place of another."""

    name = "engine entries"
    seeds = ARCHS

    def __init__(self, seeds: Path) -> None:
        self._parts = {arch: EngineParts.of(engine_path(seeds, arch).read_bytes()) for arch in ARCHS}
        self._answers = {arch: answer(engine_path(seeds, arch)) for arch in ARCHS}
        self._graphs = {
            arch: [record.name for record in parts.records if record.name.endswith(".onnx")]
            for arch, parts in self._parts.items()
        }
        arena = self._parts["internlm2"].content(ARENA_ENTRY)
        self._decoy = bytes(len(arena))

    @property
    def systematic(self) -> int:
        return 0

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, {ENGINE: self._parts[seed].data, DECOY: self._decoy})

    def case(self, number: int) -> Case:
        rng = Random(f"{self.name} {number}")
        seed = rng.choice(self.seeds)
        parts = self._parts[seed]
        graph = rng.choice(self._graphs[seed])
        kind = rng.choice(("bytes", "references", "references", "tokenizer", "tokenizer", "swap"))
        if kind == "tokenizer":
            name = TOKENIZER
            document = json.loads(parts.content(name))
            if rng.random() < 0.3:
                part = rng.choice(STRANGE_PARTS)
                data, change = json_bytes({**document, **part}), f"has {part}"[:200]
            else:
                data, change = damaged_json(document, rng)
        elif kind == "references":
            name = graph
            data, change = _with_other_references(parts.content(name), rng)
        elif kind == "bytes":
            name = rng.choice((*self._graphs[seed], TOKENIZER))
            data, change = damaged_bytes(parts.content(name), rng)
        else:
            name, other = graph, rng.choice((*self._graphs[seed], TOKENIZER, ""))
            data, change = (parts.content(other) if other else b""), f"is now {other or 'empty'}"
        # The CPU runs what is below plans/; graphs/ is for other tools.
        rule = Rule.SAME if name.startswith("graphs/") else Rule.OWN
        files = {ENGINE: parts.with_entries({name: data}), DECOY: self._decoy}
        return Case(number, seed, f"{name}: {change}", rule, files)

    def read(self, folder: Path, case: Case) -> bool:
        path = folder / ENGINE
        contents(path)
        bundle = Bundle.open(path)
        for name in ("plans/cpu/model.onnx", "plans/cpu/vision.onnx"):
            _require_own_weights(bundle, name)
        return answer(path) == self._answers[case.seed]

    def extra_memory(self, case: Case) -> int:
        return 0


def _with_other_references(data: bytes, rng: Random) -> tuple[bytes, str]:
    """The graph with the external data of one tensor changed, or moved to where a reader may not look."""
    model = onnx.load_model_from_string(data)
    tensors = [tensor for tensor in model.graph.initializer if tensor.external_data]
    tensor = rng.choice(tensors)
    entries = {entry.key: entry for entry in tensor.external_data}
    kind = rng.choice(("location", "offset", "length", "key again", "key gone", "constant", "subgraph"))
    if kind == "location":
        entries["location"].value = rng.choice(LOCATIONS)
    elif kind in ("offset", "length"):
        entries[kind].value = rng.choice((*NUMBERS, entries["offset"].value, entries["length"].value))
    elif kind == "key again":
        key = rng.choice(("location", "offset", "length"))
        tensor.external_data.add(key=key, value=rng.choice(LOCATIONS if key == "location" else NUMBERS))
    elif kind == "key gone":
        del tensor.external_data[rng.randrange(len(tensor.external_data))]
    else:
        entries["location"].value = rng.choice(LOCATIONS)
        entries["offset"].value = "0"
        _move(model, tensor, into_subgraph=kind == "subgraph")
    detail = ", ".join(f"{entry.key}={entry.value[:40]!r}" for entry in tensor.external_data)
    return model.SerializeToString(), f"{kind} of {tensor.name}: {detail}"


def _move(model: onnx.ModelProto, tensor: TensorProto, into_subgraph: bool) -> None:
    """Take an initializer out of the main graph and into a node: a Constant's value, or one in a branch."""
    moved = TensorProto()
    moved.CopyFrom(tensor)
    model.graph.initializer.remove(tensor)
    if not into_subgraph:
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [moved.name], value=moved))
        return
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [moved.name], ["moved"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("moved", moved.data_type, list(moved.dims))],
        initializer=[moved],
    )
    node = onnx.helper.make_node("If", ["always"], [moved.name], then_branch=branch, else_branch=branch)
    model.graph.node.insert(0, node)
    model.graph.initializer.append(onnx.helper.make_tensor("always", TensorProto.BOOL, [], [True]))


def _require_own_weights(bundle: Bundle, name: str) -> None:
    """Raise WrongAnswerError if the redirected graph refers to anything but the arena of its own file."""
    arena = bundle.entries[ARENA_ENTRY]
    try:
        redirected = redirect_external_data(bundle.read(name), bundle.path.name, arena.offset, arena.size)
        model = onnx.load_model_from_string(redirected)
    except Exception:
        return  # refused, or no model: the backend will say so
    for tensor in _tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("location", bundle.path.name) != bundle.path.name:
            raise WrongAnswerError(f"{name}: {tensor.name} would be read from {entries['location']!r}")
        if tensor.external_data:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
            if not (arena.offset <= offset and length >= 0 and offset + length <= arena.offset + arena.size):
                raise WrongAnswerError(f"{name}: {tensor.name} would be read at {offset}, {length} bytes")


def _tensors(message: object) -> Iterator[TensorProto]:
    """Every tensor anywhere in a protobuf message."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is None:
            continue
        for item in value if field.is_repeated else [value]:
            yield from _tensors(item)
