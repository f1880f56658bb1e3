"""A plan that was built here is found again, in the file or in the cache; nothing else is ever handed out."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from small_engine import small_layout, small_manifest, small_source, write_small_engine
from small_plan import SMALL_CONTENTS, SMALL_DEVICE, small_plan
from trol_export.arena import stream_arena
from trol_runtime.bundle import Bundle
from trol_runtime.bundle_appender import BundleAppender
from trol_runtime.bundle_writer import BundleWriter
from trol_runtime.errors import EngineFileError, TrolError
from trol_runtime.manifest import PlanEntry
from trol_runtime.plan_choice import entry_of
from trol_runtime.plan_signature import signed
from trol_runtime.plan_store import StoredPlan, add_plan, describe_plan, find_plan, keep_plan, why_none


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trol-export"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_small_engine(tmp_path / "engine.plan")


def refuse_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a read-only disk does; permissions would not stop a test that runs as root."""

    def refuse(appender: BundleAppender) -> BundleAppender:
        raise TrolError("cannot be written (Read-only file system)")

    monkeypatch.setattr(BundleAppender, "__enter__", refuse)


def kept(engine: Path) -> StoredPlan:
    bundle = Bundle.open(engine)
    return keep_plan(bundle, small_plan(bundle.manifest), SMALL_CONTENTS)


def found(engine: Path, trust_plans: bool = False) -> StoredPlan | None:
    return find_plan(Bundle.open(engine), SMALL_DEVICE, trust_plans=trust_plans)


def contents_of(stored: StoredPlan | None) -> dict[str, bytes]:
    assert stored is not None
    return {role: stored.read(role) for role in SMALL_CONTENTS}


def become_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))


def resealed(engine: Path, plan: PlanEntry, contents: dict[str, bytes]) -> None:
    """What anybody can write: the plan's record and contents with hashes that fit."""
    with BundleAppender(engine) as appender:
        for entry, data in contents.items():
            appender.add(entry, data)
        appender.finish(replace(appender.manifest, plans=(*appender.manifest.plans[:-1], plan)))


# In the engine file.


def test_a_plan_is_kept_in_the_engine_file_and_found_there(engine: Path, cache: Path) -> None:
    stored = kept(engine)
    assert stored.place == engine
    assert contents_of(stored) == contents_of(found(engine)) == SMALL_CONTENTS
    assert Bundle.open(engine).manifest.plans == (*small_manifest().plans, stored.plan)
    Bundle.open(engine).verify()
    assert [path.name for path in cache.iterdir()] == ["key"]


def test_a_plan_for_another_machine_is_not_found_and_the_reason_is_that(engine: Path) -> None:
    kept(engine)
    bundle = Bundle.open(engine)
    other = replace(SMALL_DEVICE, version="11.4.1")
    assert find_plan(bundle, other) is None
    assert "found cpu and tensorrt 10.16.2.10 (JetPack 7.2) for SM 8.7" in why_none(bundle, other)
    assert why_none(bundle, other).endswith(f"add one with: trol-export --add-target tensorrt {engine}")


def test_a_rebuilt_plan_takes_the_place_of_the_old_one(engine: Path) -> None:
    plan = small_plan(Bundle.open(engine).manifest)
    add_plan(engine, plan, {"prefill": b"old", "decode": b"old"})
    add_plan(engine, plan, SMALL_CONTENTS)
    assert len(Bundle.open(engine).manifest.plans) == 2
    assert contents_of(found(engine)) == SMALL_CONTENTS


def test_plans_for_several_machines_stand_beside_each_other(engine: Path) -> None:
    manifest = Bundle.open(engine).manifest
    for version in ("10.3.0", SMALL_DEVICE.version):
        add_plan(engine, small_plan(manifest, version=version), {"prefill": version.encode(), "decode": b""})
    for version in ("10.3.0", SMALL_DEVICE.version):
        stored = find_plan(Bundle.open(engine), replace(SMALL_DEVICE, version=version))
        assert stored is not None
        assert stored.read("prefill") == version.encode()


def test_a_plan_can_come_with_a_new_file(engine: Path, tmp_path: Path) -> None:
    """As an export for several targets writes it."""
    whole = Bundle.open(engine)
    plan = small_plan(whole.manifest)
    entries = {entry_of(plan, role): data for role, data in SMALL_CONTENTS.items()}
    plan = signed(plan, {entry: sha256(data).hexdigest() for entry, data in entries.items()})
    with BundleWriter(tmp_path / "new.plan") as writer:
        for name in ("graphs/prefill.onnx", "graphs/decode.onnx", "tokenizer.json"):
            writer.add(name, whole.read(name))
        for entry, data in entries.items():
            writer.add(entry, data)
        writer.add_arena(small_layout(), stream_arena(small_layout(), small_source))
        writer.finish(replace(small_manifest(), plans=(plan,)))
    assert contents_of(found(tmp_path / "new.plan")) == SMALL_CONTENTS


def test_a_plan_of_other_graphs_is_not_added(engine: Path) -> None:
    before = engine.read_bytes()
    with pytest.raises(TrolError) as caught:
        add_plan(engine, small_plan(Bundle.open(engine).manifest, graphs="00"), SMALL_CONTENTS)
    assert str(caught.value) == (
        f"{engine}: holds other graphs than those the plan was built from; run the command again"
    )
    assert engine.read_bytes() == before


def test_a_role_that_was_not_built_is_named(engine: Path) -> None:
    with pytest.raises(EngineFileError, match="has no vision, only prefill, decode; export the engine again"):
        kept(engine).read("vision")


def test_by_role_the_plans_are_read_when_they_are_asked_for(engine: Path) -> None:
    asked = []

    def read(entry: str) -> bytes:
        asked.append(entry)
        return b"a plan"

    stored = StoredPlan(kept(engine).plan, engine, read)
    assert list(stored) == ["prefill", "decode"]
    assert asked == []
    assert stored["decode"] == b"a plan"
    assert asked == [stored.plan.entries[1]]


COMPUTES = {"prefill": {"as built": "fp16 7"}, "decode": {"as built": "fp32 2"}}


@pytest.mark.parametrize("place", ["file", "cache"])
def test_what_is_found_out_about_a_plan_that_is_kept_is_put_into_its_record(
    engine: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "cache":
        refuse_additions(monkeypatch)
    stored = kept(engine)
    described = describe_plan(Bundle.open(engine), stored, COMPUTES)
    again = found(engine)
    assert again is not None
    assert again.plan == described.plan
    assert (again.place, again.plan.computes) == (stored.place, COMPUTES)
    assert contents_of(again) == contents_of(described) == SMALL_CONTENTS
    assert len(Bundle.open(engine).manifest.plans) == (2 if place == "file" else 1)


def test_a_plan_stays_as_it_is_where_its_record_cannot_be_changed(engine: Path) -> None:
    stored = kept(engine)
    bundle = Bundle.open(engine)
    with BundleAppender(engine), pytest.raises(TrolError, match="another process is adding to it"):
        describe_plan(bundle, stored, COMPUTES)
    again = found(engine)
    assert again is not None
    assert again.plan == stored.plan


# Foreign, tampered, damaged.


def test_a_plan_of_somebody_else_is_found_only_by_those_who_trust_it(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(engine)
    become_another_user(tmp_path, monkeypatch)
    assert found(engine) is None
    assert "was signed by another user, or changed since; expected one that was built here" in why_none(
        Bundle.open(engine), SMALL_DEVICE
    )
    assert contents_of(found(engine, trust_plans=True)) == SMALL_CONTENTS


def test_two_users_of_one_file_do_not_replace_each_others_plans(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(engine)
    before = engine.read_bytes()
    become_another_user(tmp_path, monkeypatch)
    assert kept(engine).place.is_relative_to(tmp_path / "another")
    assert contents_of(found(engine)) == SMALL_CONTENTS
    assert engine.read_bytes() == before


@pytest.mark.parametrize("content", [b"prefill plaN", b"prefill pla", b"", b"evil" * 100])
def test_a_tampered_plan_is_not_found_though_every_hash_in_the_file_fits(engine: Path, content: bytes) -> None:
    plan = kept(engine).plan
    resealed(engine, plan, {plan.entries[0]: content})
    Bundle.open(engine).verify()
    assert found(engine) is None
    assert "or changed since" in why_none(Bundle.open(engine), SMALL_DEVICE)


def test_a_plan_that_is_said_to_be_for_this_machine_is_not_found(engine: Path) -> None:
    other = add_plan(engine, small_plan(Bundle.open(engine).manifest, sm=("8.9",)), SMALL_CONTENTS).plan
    resealed(engine, replace(other, sm="8.7"), {})
    assert found(engine) is None


def test_a_plan_with_a_flipped_bit_is_never_handed_out(engine: Path) -> None:
    plan = kept(engine).plan
    place = Bundle.open(engine).entries[plan.entries[1]]
    data = bytearray(engine.read_bytes())
    data[place.offset + 3] ^= 1
    engine.write_bytes(data)
    for trust_plans in (False, True):
        stored = found(engine, trust_plans)
        assert stored is not None
        assert stored.read("prefill") == SMALL_CONTENTS["prefill"]
        with pytest.raises(EngineFileError, match=r"decode.plan' is damaged, or changed since the file was") as caught:
            stored.read("decode")
        assert str(caught.value).endswith(", or build plans anew with: trol-export --add-target tensorrt FILE")


# In the cache.


def test_a_plan_for_a_file_that_cannot_be_added_to_is_kept_in_the_cache(
    engine: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_additions(monkeypatch)
    stored = kept(engine)
    assert stored.place.is_relative_to(cache / "plans")
    assert contents_of(stored) == contents_of(found(engine)) == SMALL_CONTENTS


def test_a_plan_is_kept_in_the_cache_while_another_process_adds_to_the_file(engine: Path, cache: Path) -> None:
    with BundleAppender(engine):
        assert kept(engine).place.is_relative_to(cache)
    assert contents_of(found(engine)) == SMALL_CONTENTS


def test_the_cache_knows_an_engine_by_its_content(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse_additions(patch)
        kept(engine)
    moved = engine.rename(tmp_path / "moved.plan")
    assert contents_of(found(moved)) == SMALL_CONTENTS
    add_plan(moved, small_plan(Bundle.open(moved).manifest, version="10.3.0"), SMALL_CONTENTS)
    assert contents_of(found(moved)) == SMALL_CONTENTS


def test_an_engine_of_other_weights_does_not_get_the_plan(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_additions(monkeypatch)
    kept(engine)
    bundle = Bundle.open(engine)
    hashes = replace(bundle.manifest.sha256, arena_blocks=("00" * 32,))
    other = replace(bundle, manifest=replace(bundle.manifest, sha256=hashes))
    assert find_plan(other, SMALL_DEVICE) is None


def test_another_machine_that_shares_the_cache_does_not_get_the_plan(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_additions(monkeypatch)
    kept(engine)
    assert find_plan(Bundle.open(engine), replace(SMALL_DEVICE, sm="8.9")) is None


@pytest.mark.parametrize("file", ["prefill.plan", "decode.plan", "plan.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "removed"])
def test_a_damaged_plan_in_the_cache_is_as_good_as_none_and_can_be_kept_anew(
    engine: Path, monkeypatch: pytest.MonkeyPatch, file: str, damage: str
) -> None:
    refuse_additions(monkeypatch)
    path = kept(engine).place / file
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes({"flipped": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "emptied": b""}[damage])
    assert found(engine) is None
    kept(engine)
    assert contents_of(found(engine)) == SMALL_CONTENTS


@pytest.mark.parametrize("change", [{"sm": "8.9"}, {"signature": None}, {"roles": ["x"]}, {"entries": [7]}])
def test_a_record_in_the_cache_that_was_changed_counts_for_nothing(
    engine: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    refuse_additions(monkeypatch)
    path = kept(engine).place / "plan.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "plan": {**record["plan"], **change}}))
    assert found(engine) is None
    assert find_plan(Bundle.open(engine), replace(SMALL_DEVICE, sm="8.9")) is None


def test_a_plan_in_the_cache_that_changes_after_it_was_found_is_not_handed_out(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_additions(monkeypatch)
    kept(engine)
    stored = found(engine)
    assert stored is not None
    (stored.place / "decode.plan").write_bytes(b"other")
    with pytest.raises(EngineFileError, match=r"decode.plan: damaged \(SHA-256 differs\); run the command"):
        stored.read("decode")
    (stored.place / "decode.plan").unlink()
    with pytest.raises(EngineFileError, match=r"decode.plan: cannot be read \(No such file or directory\)"):
        stored.read("decode")


def test_a_cache_that_cannot_be_written_either_is_one_line(
    engine: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_additions(monkeypatch)
    cache.parent.write_text("a file")
    with pytest.raises(TrolError, match=r"cannot be made \(.*\); set XDG_CACHE_HOME to a folder that can be written"):
        kept(engine)
