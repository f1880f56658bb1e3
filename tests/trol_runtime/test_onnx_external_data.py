"""The protobuf edit that points a model's weights into engine.plan, held against the onnx library's own reading."""

from __future__ import annotations

import contextlib

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from trol_runtime.onnx_external_data import redirect_external_data


def external_tensor(name: str, **entries: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def small_model(*initializers: TensorProto) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    nodes = [helper.make_node("Add", ["x", initializers[0].name], ["y"], name="add")]
    graph = helper.make_graph(nodes, "graph", [x], [y], initializer=initializers, doc_string="kept")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], producer_name="kept")
    helper.set_model_props(model, {"key": "kept"})
    return model


def entries_of(model: onnx.ModelProto) -> dict[str, dict[str, str]]:
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in model.graph.initializer
    }


STORED = small_model(
    external_tensor("a", location="weights.safetensors", offset="4096", length="16"),
    external_tensor("b", location="weights.safetensors", offset="4352", length="16", checksum="abc"),
    helper.make_tensor("inline", TensorProto.FLOAT, [2], [1.0, 2.0]),
)


def test_location_and_offset_of_every_initializer_change() -> None:
    edited = onnx.load_from_string(redirect_external_data(STORED.SerializeToString(), "engine.plan", 1_000_000))
    assert entries_of(edited) == {
        "a": {"location": "engine.plan", "offset": "1004096", "length": "16"},
        "b": {"location": "engine.plan", "offset": "1004352", "length": "16", "checksum": "abc"},
        "inline": {},
    }


def test_nothing_else_changes() -> None:
    edited = redirect_external_data(STORED.SerializeToString(), "engine.plan", 1_000_000)
    there_and_back = redirect_external_data(edited, "weights.safetensors", -1_000_000)
    assert there_and_back == STORED.SerializeToString()


@pytest.mark.parametrize("name", ["engine.plan", "a b.plan", "моя модель.plan", "x" * 255])
@pytest.mark.parametrize("shift", [0, 1, 2**40])
def test_names_and_offsets_may_be_long(name: str, shift: int) -> None:
    edited = onnx.load_from_string(redirect_external_data(STORED.SerializeToString(), name, shift))
    assert entries_of(edited)["a"] == {"location": name, "offset": str(4096 + shift), "length": "16"}


@pytest.mark.parametrize("model", [b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 11, b"\x3a\x05ab", b"\x0b", b"\x3a"])
def test_what_is_no_protobuf_is_a_value_error(model: bytes) -> None:
    with pytest.raises(ValueError, match=r"at byte \d+"):
        redirect_external_data(model, "engine.plan", 0)


def test_an_offset_without_a_number_is_a_value_error() -> None:
    tensor = external_tensor("a", location="weights.safetensors")
    tensor.external_data.add(key="offset")
    with pytest.raises(ValueError, match="int"):
        redirect_external_data(small_model(tensor).SerializeToString(), "engine.plan", 0)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_come_back_or_are_a_value_error(noise: bytes) -> None:
    with contextlib.suppress(ValueError):
        redirect_external_data(noise, "engine.plan", 1)


@given(st.data())
@settings(deadline=None)
def test_a_damaged_model_comes_back_or_is_a_value_error(data: st.DataObject) -> None:
    model = bytearray(STORED.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        redirect_external_data(bytes(model[: data.draw(st.integers(0, len(model)))]), "engine.plan", 1)
