"""The plugin's calls against the list of what NVIDIA documents; the graph that asks for it. Not run on a GPU yet."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from emitted_graphs import PlainSession, seeded_model, stored_graph, write_weights
from fake_tensorrt_plugin import DataType, Embedded, FakeTensorRT, parameters_of
from trol_engines.mixer_plugin import call_plugin, register_mixer
from trol_graphs.graph_io import Role
from trol_runtime.errors import MissingExtraError, TrolError

triton = pytest.importorskip("triton", reason="the mixer's kernel needs the extra plugin")

PLUGIN = "trol::Mixer"
ORIN, JETPACK_7 = 87, (13, 0)
FLOATS = [DataType.FLOAT, DataType.HALF, DataType.BF16]


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Each test is a process that has registered nothing."""
    register_mixer.cache_clear()
    yield
    register_mixer.cache_clear()


@pytest.fixture(autouse=True)
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


def installed(monkeypatch: pytest.MonkeyPatch, version: str = "11.1.0.106") -> FakeTensorRT:
    fake = FakeTensorRT(version)
    for name, module in fake.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return fake


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = installed(monkeypatch)
    register_mixer(ORIN, JETPACK_7)
    return fake


def embedded(fake: FakeTensorRT, dtype: DataType = DataType.HALF, hidden: int = 2048) -> Embedded:
    return fake.embed(PLUGIN, [dtype] * 4, hidden)


# What TensorRT is told


def test_it_goes_by_the_domain_and_name_of_the_function(registered: FakeTensorRT) -> None:
    assert list(registered.definitions) == [PLUGIN]
    assert registered.definitions[PLUGIN].tensors == ["first", "second", "weight", "bias"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_its_kernel_is_launched_with_inputs_and_output_and_takes_just_those(
    registered: FakeTensorRT, dtype: DataType
) -> None:
    plan = embedded(registered, dtype)
    assert parameters_of(plan.ptx) == ["u64"] * plan.arguments
    assert plan.arguments == 5


@pytest.mark.parametrize("tokens", [1, 1300, 4096])
def test_there_is_one_block_per_token_of_the_size_that_the_kernel_wants(registered: FakeTensorRT, tokens: int) -> None:
    plan = embedded(registered)
    wanted = re.search(rf"\.visible \.entry {plan.name}\(.*?\)\n\.reqntid (\d+)\n", plan.ptx, re.DOTALL)
    assert wanted
    assert plan.launch.at(tokens) == {
        **{"grid_x": tokens, "grid_y": 1, "grid_z": 1},
        **{"block_x": int(wanted[1]), "block_y": 1, "block_z": 1, "shared_mem": 16},
    }


def test_the_kernel_is_compiled_for_the_gpu_that_builds(registered: FakeTensorRT) -> None:
    assert ".target sm_87\n" in embedded(registered).ptx


@pytest.mark.parametrize(
    "dtypes",
    [
        pytest.param([DataType.INT8] * 4, id="int8"),
        pytest.param([DataType.HALF, DataType.HALF, DataType.FLOAT, DataType.FLOAT], id="weights of another type"),
    ],
)
def test_other_types_are_not_offered(registered: FakeTensorRT, dtypes: list[DataType]) -> None:
    with pytest.raises(ValueError, match="no combination of trol::Mixer takes"):
        registered.embed(PLUGIN, dtypes, 2048)


def test_it_is_registered_once_however_often_it_is_asked_for(registered: FakeTensorRT) -> None:
    register_mixer(ORIN, JETPACK_7)  # a second time, TensorRT raises


# Where only the function can be built


def refusal(sm: int = ORIN, cuda: tuple[int, int] = JETPACK_7) -> str:
    with pytest.raises(TrolError) as refused:
        register_mixer(sm, cuda)
    return str(refused.value)


def test_a_gpu_or_driver_that_does_not_load_the_kernel_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = installed(monkeypatch)
    assert refusal(sm=75).startswith("the mixer plugin does not exist for SM 7.5, expected one of 8.0, ")
    assert refusal(sm=110, cuda=(12, 6)).startswith("the driver's CUDA is 12.6; on SM 11.0 the mixer plugin needs 13.0")
    assert not fake.definitions


def test_without_triton_nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = installed(monkeypatch)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'trol-export\[plugin\]'"):
        register_mixer(ORIN, JETPACK_7)
    assert not fake.definitions


# The graph that asks for it


def unmarked(role: Role) -> ir.Model:
    config, _ = seeded_model("micro-internlm2")
    return ir.from_proto(stored_graph(config, role, "fp16"))


def marked(role: Role) -> ir.Model:
    model = unmarked(role)
    call_plugin(model)
    return model


@pytest.mark.parametrize("role", ["prefill", "extend"])
def test_every_mixer_names_the_plugin_and_nothing_else_does(role: Role) -> None:
    config, _ = seeded_model("micro-internlm2")
    named = [node for node in marked(role).graph.all_nodes() if "plugin_namespace" in node.attributes]
    assert [(node.domain, node.op_type) for node in named] == [("trol", "Mixer")] * config.decoder.layers
    assert {node.attributes.get_string("plugin_namespace") for node in named} == {"trol"}
    assert {node.attributes.get_int("aot") for node in named} == {1}


@pytest.mark.parametrize("role", ["prefill", "decode", "extend"])
def test_the_mixers_that_are_marked_are_counted(role: Role) -> None:
    config, _ = seeded_model("micro-internlm2")
    assert call_plugin(unmarked(role)) == (0 if role == "decode" else config.decoder.layers)


def test_a_graph_without_mixers_stays_as_it_is() -> None:
    config, _ = seeded_model("micro-internlm2")
    assert ir.to_proto(marked("decode")) == stored_graph(config, "decode", "fp16")


def test_a_runtime_without_plugins_takes_the_function_of_a_marked_graph(tmp_path: Path) -> None:
    config, read = seeded_model("micro-internlm2")
    PlainSession(ir.to_proto(marked("prefill")), write_weights(tmp_path, config, "fp16", read))


# The list itself is strict


def plugin_module(fake: FakeTensorRT) -> Any:
    return fake.modules()["tensorrt.plugin"]


def test_types_written_as_strings_are_refused() -> None:
    """As `from __future__ import annotations` makes them, in this module too."""

    def describe(first: Any) -> Any:
        return first.like()

    assert describe.__annotations__["first"] == "Any"
    with pytest.raises(TypeError):
        plugin_module(FakeTensorRT("11.1")).register("trol::Other")(describe)


def test_parameters_of_other_names_are_refused(registered: FakeTensorRT) -> None:
    with pytest.raises(ValueError, match=r"expected parameters \(first, second, weight, bias, outputs\)"):
        plugin_module(registered).autotune(PLUGIN)(lambda x1, x2, weight, bias, outputs: [])


def test_a_second_definition_is_refused(registered: FakeTensorRT) -> None:
    with pytest.raises(ValueError, match="already has a definition for 'Mixer'"):
        plugin_module(registered).register(PLUGIN)(lambda: None)


def test_what_is_not_listed_does_not_exist() -> None:
    trtp = plugin_module(FakeTensorRT("11.1"))
    with pytest.raises(AttributeError):
        _ = trtp.impl
    with pytest.raises(AttributeError, match="no attribute 'cluster_x'"):
        trtp.KernelLaunchParams().cluster_x = 2
