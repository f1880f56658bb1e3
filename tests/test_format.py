"""docs/format.md is enough to read an engine file: a reader written from it sees what the house and safetensors see."""

from __future__ import annotations

import ast
import hashlib
import hmac
import json
import re
import struct
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import safetensors.numpy

import format_reader
from conftest import EngineOf, Precision
from format_reader import read_engine
from small_engine import write_small_engine
from small_plan import SMALL_CONTENTS, small_plan
from trol_runtime import zip_records
from trol_runtime.bundle import ARENA_ENTRY, Bundle
from trol_runtime.manifest import FORMAT_VERSION, Manifest
from trol_runtime.plan_store import add_plan
from trol_runtime.prompt import Arch

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("arch", "precision"), [("internlm2", "fp32"), ("phi3", "fp16")])
def test_the_reader_sees_what_the_house_sees(arch: Arch, precision: Precision, micro_engine: EngineOf) -> None:
    path = micro_engine(arch, precision)
    bundle = Bundle.open(path)
    manifest, entries, tensors = read_engine(path.read_bytes())
    assert manifest == json.loads(bundle.manifest_bytes)
    assert entries.keys() == bundle.entries.keys()
    assert all(entries[name] == bundle.read(name) for name in entries if name != ARENA_ENTRY)
    library = safetensors.numpy.load(entries[ARENA_ENTRY])
    assert tensors.keys() == {name for name in library if not name.startswith("__pad.")}
    for name, (dtype, shape, data) in tensors.items():
        assert (dtype, shape) == (bundle.manifest.tensors[name].stored, [*library[name].shape])
        assert data == library[name].tobytes()


def test_the_reader_follows_zip64_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a file of more than 4 GB, with a limit that only the weights reach, and what comes after them."""
    whole = write_small_engine(tmp_path / "whole.plan").read_bytes()
    monkeypatch.setattr(zip_records, "ZIP64_LIMIT", 70_000)
    wide = write_small_engine(tmp_path / "wide.plan").read_bytes()
    (_, entries, tensors), (_, same_entries, same_tensors) = read_engine(whole), read_engine(wide)
    assert wide.count(b"PK\6\6") == 1
    assert tensors == same_tensors
    # Longer headers leave less to be filled in front of the weights, of which the manifest has the hash.
    assert {name for name in entries if entries[name] != same_entries[name]} == {"alignment.pad", "manifest.json"}


def test_the_reader_sees_what_was_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_small_engine(tmp_path / "engine.plan")
    _, before, tensors = read_engine(path.read_bytes())
    plan = add_plan(path, small_plan(Bundle.open(path).manifest), SMALL_CONTENTS).plan
    manifest, entries, same_tensors = read_engine(path.read_bytes())
    assert tensors == same_tensors
    assert entries.keys() - before.keys() == {*plan.entries}
    assert [entries[entry] for entry in plan.entries] == [*SMALL_CONTENTS.values()]
    assert manifest["plans"][-1]["signature"] == plan.signature


def test_signature_and_hash_of_the_graphs_can_be_computed_after_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_small_engine(tmp_path / "engine.plan")
    add_plan(path, small_plan(Bundle.open(path).manifest), SMALL_CONTENTS)
    manifest, _, _ = read_engine(path.read_bytes())
    hashes, plan = manifest["sha256"]["entries"], manifest["plans"][-1]
    signature = plan.pop("signature")
    message = json.dumps(
        [plan, {name: hashes[name] for name in plan["entries"]}], sort_keys=True, separators=(",", ":")
    )
    key = (tmp_path / "cache" / "trol-export" / "key").read_bytes()
    assert signature == hmac.new(key, message.encode(), "sha256").hexdigest()
    graphs = json.dumps({role: hashes[graph["entry"]] for role, graph in manifest["graphs"].items()}, sort_keys=True)
    assert plan["graphs"] == hashlib.sha256(graphs.encode()).hexdigest()


def test_the_reader_refuses_what_was_changed(tmp_path: Path) -> None:
    whole = write_small_engine(tmp_path / "engine.plan").read_bytes()
    entries = Bundle.open(tmp_path / "engine.plan").entries.values()
    for at in [entry.offset + place for entry in entries for place in (0, entry.size // 2, entry.size - 1)]:
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with pytest.raises((ValueError, struct.error)):
            read_engine(changed)
    for size in range(len(whole) - 90, len(whole)):
        with pytest.raises(ValueError, match="no end record"):
            read_engine(whole[:size])


def test_the_reader_needs_nothing_but_struct_json_and_hashlib() -> None:
    source = Path(format_reader.__file__).read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import hashlib", "import json", "import struct"]
    code = [line for line in source.splitlines() if line.strip() and not line.strip().startswith(("#", '"""'))]
    assert len(code) <= 60
    assert "(../tests/format_reader.py)" in PAGE


def keys_of(cls: Any) -> set[str]:
    """Names of all fields of a dataclass and of the dataclasses it is made of."""
    names = set()
    hints = get_type_hints(cls)
    for field in fields(cls):
        names.add(field.name)
        pending = [hints[field.name]]
        while pending:
            hint = pending.pop()
            if is_dataclass(hint):
                names |= keys_of(hint)
            pending += get_args(hint)
    return names


def test_the_page_names_every_key_of_the_manifest() -> None:
    documented = set(re.findall(r"`([a-z0-9_]+)`", PAGE))
    assert keys_of(Manifest) - documented == set()


def test_the_page_is_about_this_version() -> None:
    assert f"Format version {FORMAT_VERSION}" in PAGE
