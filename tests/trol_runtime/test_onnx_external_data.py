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


SIZE = 2**40  # bytes of weights.safetensors: large enough for what is not about its end
STORED = small_model(
    external_tensor("a", location="weights.safetensors", offset="4096", length="16"),
    external_tensor("b", location="weights.safetensors", offset="4352", length="16", checksum="abc"),
    helper.make_tensor("inline", TensorProto.FLOAT, [2], [1.0, 2.0]),
)


def test_location_and_offset_of_every_initializer_change() -> None:
    edited = onnx.load_from_string(redirect_external_data(STORED.SerializeToString(), "engine.plan", 1_000_000, SIZE))
    assert entries_of(edited) == {
        "a": {"location": "engine.plan", "offset": "1004096", "length": "16"},
        "b": {"location": "engine.plan", "offset": "1004352", "length": "16", "checksum": "abc"},
        "inline": {},
    }


def test_nothing_else_changes() -> None:
    edited = redirect_external_data(STORED.SerializeToString(), "engine.plan", 1_000_000, SIZE)
    expected = onnx.load_from_string(STORED.SerializeToString())
    for tensor, offset in zip(expected.graph.initializer[:2], ("1004096", "1004352"), strict=True):
        entries = {entry.key: entry for entry in tensor.external_data}
        entries["location"].value, entries["offset"].value = "engine.plan", offset
    assert edited == expected.SerializeToString()


@pytest.mark.parametrize("name", ["engine.plan", "a b.plan", "моя модель.plan", "x" * 255])
@pytest.mark.parametrize("shift", [0, 1, 2**40])
def test_names_and_offsets_may_be_long(name: str, shift: int) -> None:
    edited = onnx.load_from_string(redirect_external_data(STORED.SerializeToString(), name, shift, SIZE))
    assert entries_of(edited)["a"] == {"location": name, "offset": str(4096 + shift), "length": "16"}


@pytest.mark.parametrize("model", [b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 11, b"\x3a\x05ab", b"\x0b", b"\x3a"])
def test_what_is_no_protobuf_is_a_value_error(model: bytes) -> None:
    with pytest.raises(ValueError, match=r"at byte \d+"):
        redirect_external_data(model, "engine.plan", 0, SIZE)


GOOD = {"location": "weights.safetensors", "offset": "4096", "length": "16"}


@pytest.mark.parametrize("location", ["../weights.safetensors", "/etc/passwd", "engine.plan", "", "x" * 9999])
def test_another_file_is_a_value_error(location: str) -> None:
    model = small_model(external_tensor("a", **{**GOOD, "location": location})).SerializeToString()
    with pytest.raises(ValueError, match=r"external data lies in .*, expected weights\.safetensors") as caught:
        redirect_external_data(model, "engine.plan", 0, SIZE)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("digits", ["", "-1", "+1", " 1", "1e3", "0x10", "4_096", "x", "9" * 19, "\u0664"])
def test_what_is_no_count_of_bytes_is_a_value_error(key: str, digits: str) -> None:
    model = small_model(external_tensor("a", **{**GOOD, key: digits})).SerializeToString()
    with pytest.raises(ValueError, match="expected a count of bytes"):
        redirect_external_data(model, "engine.plan", 0, SIZE)


@pytest.mark.parametrize(("offset", "length"), [("4097", "16"), ("0", "4113"), ("9" * 18, "1"), ("4113", "0")])
def test_data_beyond_the_weights_is_a_value_error(offset: str, length: str) -> None:
    model = small_model(external_tensor("a", **{**GOOD, "offset": offset, "length": length})).SerializeToString()
    with pytest.raises(ValueError, match=r"ends at byte \d+ of weights\.safetensors, which has 4112"):
        redirect_external_data(model, "engine.plan", 0, 4112)


def test_data_up_to_the_last_byte_is_taken() -> None:
    redirect_external_data(small_model(external_tensor("a", **GOOD)).SerializeToString(), "engine.plan", 0, 4112)


@pytest.mark.parametrize("keys", [["location"], ["location", "offset"], ["location", "offset", "length", "other"]])
def test_other_keys_are_a_value_error(keys: list[str]) -> None:
    model = small_model(external_tensor("a", **{key: GOOD.get(key, "1") for key in keys})).SerializeToString()
    with pytest.raises(ValueError, match="external data has the keys"):
        redirect_external_data(model, "engine.plan", 0, SIZE)


def test_a_key_that_stands_twice_is_a_value_error() -> None:
    tensor = external_tensor("a", **GOOD)
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(ValueError, match="external data has the keys"):
        redirect_external_data(small_model(tensor).SerializeToString(), "engine.plan", 0, SIZE)


@pytest.mark.parametrize("place", ["constant", "branch", "function"])
def test_external_data_that_is_no_initializer_of_the_main_graph_is_a_value_error(place: str) -> None:
    """ONNX Runtime would read it from whatever file it names."""
    hidden = external_tensor("hidden", location="neighbour.bin", offset="0", length="16")
    model = small_model(external_tensor("a", **GOOD))
    constant = helper.make_node("Constant", [], ["hidden"], value=hidden)
    if place == "constant":
        model.graph.node.insert(0, constant)
    elif place == "branch":
        outputs = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [4])]
        branch = helper.make_graph([], "branch", [], outputs, initializer=[hidden])
        model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
    else:
        opsets = [helper.make_opsetid("", 24)]
        model.functions.append(helper.make_function("trol", "Mixer", [], ["hidden"], [constant], opsets))
    with pytest.raises(ValueError, match="external data that is no initializer of the main graph"):
        redirect_external_data(model.SerializeToString(), "engine.plan", 0, SIZE)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_come_back_or_are_a_value_error(noise: bytes) -> None:
    with contextlib.suppress(ValueError):
        redirect_external_data(noise, "engine.plan", 1, SIZE)


@given(st.data())
@settings(deadline=None)
def test_a_damaged_model_comes_back_or_is_a_value_error(data: st.DataObject) -> None:
    model = bytearray(STORED.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        redirect_external_data(bytes(model[: data.draw(st.integers(0, len(model)))]), "engine.plan", 1, SIZE)
