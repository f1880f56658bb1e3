"""The memory an engine needs, said before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from recorded_machines import recorded
from small_engine import small_manifest
from trol_runtime import memory_need as module
from trol_runtime.errors import LimitError
from trol_runtime.manifest import Manifest, TensorEntry
from trol_runtime.memory_need import MemoryNeed, memory_need, require_memory

GIB = 2**30


def manifest_with(**tensors: TensorEntry) -> Manifest:
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return replace(small_manifest(), tensors=named)


def tensor(stored: str, *shape: int) -> TensorEntry:
    return TensorEntry(stored, stored, shape, 0)


FULL = tensor("F32", 256, 2**20)  # 1 GiB
HALF = tensor("F16", 512, 2**20)  # 1 GiB, 2 GiB as fp32


def test_fp32_weights_stay_in_the_file() -> None:
    need = memory_need(manifest_with(head=FULL, other=FULL))
    assert (need.mapped, need.anonymous) == (2 * GIB, 0)


def test_what_is_stored_in_less_is_copied_to_fp32() -> None:
    need = memory_need(manifest_with(head=HALF, other=tensor("BF16", 2), norm=FULL))
    assert (need.mapped, need.anonymous) == (2 * GIB + 4, 2 * GIB + 8)


@pytest.mark.parametrize(
    ("arch", "table"),
    [("internlm2", "model__tok_embeddings__weight"), ("phi3", "language_model__model__embed_tokens__weight")],
)
def test_the_token_table_is_never_copied(arch: Literal["internlm2", "phi3"], table: str) -> None:
    manifest = manifest_with(**{table: HALF, "head": HALF})
    need = memory_need(replace(manifest, model=replace(manifest.model, arch=arch)))
    assert (need.mapped, need.anonymous) == (2 * GIB, 2 * GIB)


def test_every_token_adds_its_keys_and_values_in_fp32() -> None:
    decoder = small_manifest().model.decoder
    assert memory_need(small_manifest()).kv_per_token == 2 * 4 * decoder.layers * decoder.kv_heads * decoder.head_dim


def test_a_token_whose_both_passes_are_kept_adds_twice_that() -> None:
    once, twice = (memory_need(small_manifest(), both_passes=both_passes) for both_passes in (False, True))
    assert twice == replace(once, kv_per_token=2 * once.kv_per_token)


def test_it_reads_as_one_line() -> None:
    assert str(MemoryNeed(mapped=3 * GIB, anonymous=0, kv_per_token=196_608)) == (
        "3.00 GiB of mapped weights + 192 KiB per token"
    )
    assert str(MemoryNeed(mapped=3 * GIB, anonymous=5 * GIB, kv_per_token=196_608)) == (
        "3.00 GiB of mapped weights + 5.00 GiB as fp32 copies + 192 KiB per token"
    )


def test_too_little_memory_is_one_line_with_the_need_and_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_available_bytes", lambda: 3 * GIB // 2)
    with pytest.raises(LimitError) as caught:
        require_memory(manifest_with(head=HALF))
    assert str(caught.value) == (
        "the engine needs 1.00 GiB of mapped weights + 2.00 GiB as fp32 copies + 768 bytes per token, 1.50 GiB are "
        "available; free memory, use a smaller model, or export it with --precision fp32, whose weights stay in the "
        "file"
    )


def test_a_jetson_without_room_for_fp32_copies_is_sent_to_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_available_bytes", lambda: 3 * GIB // 2)
    monkeypatch.setattr(module, "read_jetson", lambda debian: recorded("orin_nano_jetpack_6_2_2").jetson)
    with pytest.raises(LimitError, match=r"take --backend tensorrt, which keeps weights as they are stored$"):
        require_memory(manifest_with(head=HALF))


@pytest.mark.parametrize("available", [2 * GIB, None])
def test_enough_memory_or_an_unknown_amount_is_no_reason_to_refuse(
    monkeypatch: pytest.MonkeyPatch, available: int | None
) -> None:
    monkeypatch.setattr(module, "memory_available_bytes", lambda: available)
    require_memory(manifest_with(head=HALF))


def test_mapped_weights_need_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_available_bytes", lambda: 1000)
    require_memory(manifest_with(head=FULL))
