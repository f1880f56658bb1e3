"""How weights go into plans is what a probe on this machine found, and shared where none ran."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trol_runtime import weight_form
from trol_runtime.errors import TrolError
from trol_runtime.plan_choice import Device
from trol_runtime.weight_form import Probe, best_form, record_probe, recorded_probe

ORIN = Device("tensorrt", "10.16.2.10", "8.7", "linux-aarch64")
FASTER_INSIDE = Probe(shared_us=30.0, embedded_us=20.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "trol-export"


def test_without_a_probe_weights_are_shared() -> None:
    assert recorded_probe(ORIN, "fp16") is None
    assert best_form(ORIN, "fp16") == "shared"


def test_what_a_probe_found_is_used_from_then_on() -> None:
    record_probe(FASTER_INSIDE, ORIN, "fp16")
    assert recorded_probe(ORIN, "fp16") == FASTER_INSIDE
    assert best_form(ORIN, "fp16") == "embedded"
    record_probe(Probe(20.0, 20.0), ORIN, "fp16")
    assert best_form(ORIN, "fp16") == "shared"


@pytest.mark.parametrize(
    ("shared_us", "embedded_us", "form"),
    [(20.0, 30.0, "shared"), (20.0, 20.0, "shared"), (21.9, 20.0, "shared"), (22.1, 20.0, "embedded")],
)
def test_more_than_twice_the_memory_must_be_worth_a_tenth(shared_us: float, embedded_us: float, form: str) -> None:
    assert Probe(shared_us, embedded_us).form == form


@pytest.mark.parametrize(
    "other", [{"version": "10.3.0"}, {"sm": "11.0"}, {"target": "tensorrt-rtx"}], ids=["version", "GPU", "library"]
)
def test_it_says_nothing_about_another_library_or_gpu(other: dict[str, str]) -> None:
    record_probe(FASTER_INSIDE, ORIN, "fp16")
    assert best_form(replace(ORIN, **other), "fp16") == "shared"


def test_it_says_nothing_about_another_precision() -> None:
    record_probe(FASTER_INSIDE, ORIN, "fp16")
    assert best_form(ORIN, "fp32") == "shared"


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b'{"shared_us": null, "embedded_us": 1}', b'{"shared_us": 1}'])
def test_a_damaged_record_is_as_good_as_none(cache: Path, damaged: bytes) -> None:
    record_probe(FASTER_INSIDE, ORIN, "fp16")
    (path,) = (cache / "probes").iterdir()
    path.write_bytes(damaged)
    assert best_form(ORIN, "fp16") == "shared"


def test_what_the_probe_says_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_form, "run_builder", lambda *words: '{"shared_us": 30.0, "embedded_us": 20.0}\n')
    assert weight_form.probe("tensorrt") == FASTER_INSIDE


@pytest.mark.parametrize("said", ["", "[TRT] [E] something", '{"other": 1}'])
def test_anything_else_is_an_error_in_one_line(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(weight_form, "run_builder", lambda *words: said)
    with pytest.raises(TrolError, match=r"^the probe of tensorrt says .*, expected two times; please report this$"):
        weight_form.probe("tensorrt")
