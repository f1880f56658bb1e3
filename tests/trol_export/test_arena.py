"""The arena is a valid safetensors file whose tensors are aligned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from trol_export.arena import plan_arena, stream_arena
from trol_export.weight_files import TensorInfo
from trol_runtime.errors import TrolError

NUMPY_DTYPES = {"F32": np.float32, "F16": np.float16, "U8": np.uint8}

some_tensors = st.lists(
    st.tuples(st.sampled_from(sorted(NUMPY_DTYPES)), st.lists(st.integers(0, 40), max_size=3)), max_size=12
)


def named(tensors: list[tuple[str, list[int]]]) -> list[TensorInfo]:
    return [TensorInfo(f"layer.{i}.weight", dtype, tuple(shape)) for i, (dtype, shape) in enumerate(tensors)]


def values_of(tensor: TensorInfo) -> np.ndarray:
    count = int(np.prod(tensor.shape))
    return (np.arange(count) % 251).astype(NUMPY_DTYPES[tensor.dtype]).reshape(tensor.shape)


@settings(deadline=None)
@given(some_tensors)
def test_safetensors_reads_back_what_was_streamed(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[tuple[str, list[int]]]
) -> None:
    arrays = {tensor.name: values_of(tensor) for tensor in named(tensors)}
    layout = plan_arena(named(tensors))
    data = b"".join(stream_arena(layout, lambda name: iter([arrays[name].data])))
    assert len(data) == layout.data_bytes
    path = tmp_path_factory.mktemp("arena") / "weights.safetensors"
    path.write_bytes(layout.header + data)
    with safe_open(path, framework="np") as file:
        names = set(file.keys())
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
    assert {name for name in names if not name.startswith("__pad.")} == set(arrays)


@settings(deadline=None)
@given(some_tensors)
def test_every_tensor_starts_at_a_multiple_of_256_and_the_data_at_one_of_4096(
    tensors: list[tuple[str, list[int]]],
) -> None:
    layout = plan_arena(named(tensors))
    assert all(offset % 256 == 0 for offset in layout.offsets.values())
    assert len(layout.header) % 4096 == 0


def test_tensors_lie_in_the_given_order_and_holes_are_filled_by_pads() -> None:
    layout = plan_arena([TensorInfo("z", "F16", (3,)), TensorInfo("a", "F32", (64,)), TensorInfo("m", "U8", (1,))])
    assert layout.offsets == {"z": 0, "a": 256, "m": 512}
    assert layout.data_bytes == 513
    assert b'"__pad.0":{"dtype":"U8","shape":[250],"data_offsets":[6,256]}' in layout.header
    assert b"__pad.1" not in layout.header


def test_the_same_tensors_give_the_same_header() -> None:
    tensors = named([("F32", [3]), ("F16", [5, 7])])
    assert plan_arena(tensors).header == plan_arena(tensors).header


def test_a_tensor_is_passed_on_chunk_by_chunk_without_a_copy() -> None:
    layout = plan_arena([TensorInfo("w", "U8", (6,))])
    chunks = [memoryview(b"abcd"), memoryview(b"ef")]
    assert [id(chunk) for chunk in stream_arena(layout, lambda name: iter(chunks))] == [id(chunk) for chunk in chunks]


@pytest.mark.parametrize(
    ("came", "message"),
    [
        (b"12345", "tensor 'w': 5 bytes came, F16 [3] needs 6; check the checkpoint with: trol-export --check DIR"),
        (b"1234567", "tensor 'w': 7 or more bytes came, F16 [3] needs 6; "),
    ],
)
def test_a_tensor_of_another_length_is_named(came: bytes, message: str) -> None:
    layout = plan_arena([TensorInfo("w", "F16", (3,))])
    with pytest.raises(TrolError) as caught:
        list(stream_arena(layout, lambda name: iter([memoryview(came)])))
    assert str(caught.value).startswith(message)


def test_an_endless_tensor_is_cut_off_at_once() -> None:
    layout = plan_arena([TensorInfo("w", "U8", (4,))])

    def endless(name: str) -> Iterator[memoryview]:
        while True:
            yield memoryview(b"xxx")

    with pytest.raises(TrolError, match="6 or more bytes came"):
        list(stream_arena(layout, endless))


@pytest.mark.parametrize("names", [["a", "a"], ["__pad.0"], ["__metadata__"]])
def test_a_name_that_is_taken_or_reserved_is_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="is taken or reserved"):
        plan_arena(TensorInfo(name, "F32", (1,)) for name in names)


def test_the_header_of_seven_billion_parameters_is_planned_without_data() -> None:
    layout = plan_arena(TensorInfo(f"layers.{i}", "F16", (4096, 14336)) for i in range(128))
    assert layout.data_bytes == 128 * 4096 * 14336 * 2
    assert layout.offsets["layers.127"] == 127 * 4096 * 14336 * 2
