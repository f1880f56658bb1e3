"""A plan runs if this user built it, exactly as it is, or if the user trusts the file."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from small_engine import write_small_engine
from small_plan import SMALL_CONTENTS, small_plan
from trol_runtime.bundle import Bundle
from trol_runtime.manifest import Limits, PlanEntry
from trol_runtime.plan_signature import built_here, refusal, signed, trusted
from trol_runtime.plan_store import add_plan
from trol_runtime.user_cache import cache_directory


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A small engine with a plan that this user built."""
    path = write_small_engine(tmp_path / "engine.plan")
    add_plan(path, small_plan(Bundle.open(path).manifest), SMALL_CONTENTS)
    return path


def in_file(engine: Path) -> tuple[PlanEntry, Bundle]:
    bundle = Bundle.open(engine)
    return bundle.manifest.plans[-1], bundle


def become_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))


def test_a_plan_that_was_built_here_is_trusted(engine: Path) -> None:
    plan, bundle = in_file(engine)
    assert built_here(plan, bundle.manifest.sha256.entries)
    assert trusted(plan, bundle, trust_plans=False)


def test_a_plan_of_another_user_is_not_trusted_unless_asked_for(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    become_another_user(tmp_path, monkeypatch)
    plan, bundle = in_file(engine)
    assert not trusted(plan, bundle, trust_plans=False)
    assert trusted(plan, bundle, trust_plans=True)
    assert refusal(plan, bundle) == (
        f"{engine}: its tensorrt plan {plan.key} was signed by another user, or changed since; expected one that was "
        "built here, because a plan is code; have it built anew from the graphs, or trust whoever made the file: "
        "--trust-plans"
    )


def test_a_plan_without_a_signature_is_not_trusted(engine: Path) -> None:
    plan, bundle = in_file(engine)
    bare = replace(plan, signature=None)
    assert not trusted(bare, bundle, trust_plans=False)
    assert f"plan {plan.key} has no signature; expected one that was built here" in refusal(bare, bundle)


def test_asking_leaves_no_key_behind(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become_another_user(tmp_path, monkeypatch)
    assert not trusted(*in_file(engine), trust_plans=False)
    assert not cache_directory().exists()


CHANGED: dict[str, Any] = {
    "target": "tensorrt-rtx",
    "key": "another",
    "roles": ("decode", "prefill"),
    "precision": "int8",
    "entries": ("graphs/prefill.onnx",),
    "versions": {"tensorrt": "10.3.0"},
    "sm": "8.9",
    "gpu": "Orin",
    "platform": None,
    "limits": Limits(64, 1),
    "weights": "embedded",
    "mixer": "function",
    "opset": "legacy",
    "computes": {"decode": {"attention": "fp32 2"}},
    "graphs": "00",
    "signature": "00" * 32,
}


def test_every_field_of_a_record_is_tried() -> None:
    assert CHANGED.keys() == {field.name for field in fields(PlanEntry)}


@pytest.mark.parametrize("field", CHANGED)
def test_a_record_with_any_field_changed_is_not_trusted(engine: Path, field: str) -> None:
    plan, bundle = in_file(engine)
    assert not trusted(replace(plan, **{field: CHANGED[field]}), bundle, trust_plans=False)


@pytest.mark.parametrize("signature", ["", "é", "x" * 64])
def test_a_signature_that_is_none_is_not_trusted(engine: Path, signature: str) -> None:
    plan, bundle = in_file(engine)
    assert not trusted(replace(plan, signature=signature), bundle, trust_plans=False)


def test_a_plan_whose_contents_were_changed_is_not_trusted_though_all_hashes_fit(engine: Path) -> None:
    plan, bundle = in_file(engine)
    sha256 = {**bundle.manifest.sha256.entries, plan.entries[0]: "00" * 32}
    assert not built_here(plan, sha256)
    del sha256[plan.entries[0]]
    assert not built_here(plan, sha256)


def test_a_signature_does_not_depend_on_other_entries_of_the_file() -> None:
    plan = PlanEntry("tensorrt", "key", ("decode",), "fp16", ("plans/a",), {})
    assert built_here(signed(plan, {"plans/a": "11"}), {"plans/a": "11", "plans/b": "22"})
