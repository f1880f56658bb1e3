"""What a machine builds and runs, what it says where it does not, and that it says so before anything is built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from recorded_machines import NAMES, recorded
from trol_runtime.errors import MissingExtraError, TrolError, UsageError
from trol_runtime.machine import MachineDescription
from trol_runtime.manifest import PlanEntry
from trol_runtime.nvidia_driver import Gpu, NvidiaDriver
from trol_runtime.target_support import (
    BUILD_TARGETS,
    RUN_TARGETS,
    build_answers,
    known_sm,
    opset_for,
    require_buildable,
    require_runnable,
    run_answers,
)


def with_packages(name: str, **versions: str | None) -> MachineDescription:
    """A recorded machine with other packages; `_` in a name stands for `-`."""
    machine = recorded(name)
    named = {package.replace("_", "-"): version for package, version in versions.items()}
    return replace(machine, packages={**machine.packages, **named})


def with_gpu(machine: MachineDescription, sm: str | None) -> MachineDescription:
    return replace(machine, nvidia=NvidiaDriver("580.95.05", "13.0", (Gpu("a GPU", sm, 2**33),)))


def test_who_builds_what() -> None:
    assert {name: [answer[:4] for answer in build_answers(recorded(name)).values()] for name in NAMES} == {
        "agx_orin_with_tensorrt_11": ["expo", "Tens", "Tens"],
        "no_gpu": ["yes", "yes", "tens"],
        "orin_nano_jetpack_6_2_2": ["expo", "Tens", "Tens"],
        "orin_nano_jetpack_7_2": ["expo", "Tens", "yes"],
        "rtx_4090": ["yes", "yes", "tens"],
        "thor_jetpack_7_1": ["expo", "Tens", "yes"],
    }


def test_who_runs_what() -> None:
    yes = {
        name: [target for target, answer in run_answers(recorded(name)).items() if answer == "yes"] for name in NAMES
    }
    assert yes == {
        "agx_orin_with_tensorrt_11": [],
        "no_gpu": ["cpu"],
        "orin_nano_jetpack_6_2_2": [],
        "orin_nano_jetpack_7_2": ["cpu", "tensorrt"],
        "rtx_4090": ["cpu", "cuda", "tensorrt-rtx"],
        "thor_jetpack_7_1": ["cpu", "tensorrt"],
    }


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_of_yes_and_nothing_raised_are_the_same(name: str) -> None:
    machine = recorded(name)
    for target in BUILD_TARGETS:
        assert (error_of_building(target, machine) is None) == (build_answers(machine)[target] == "yes")
    for target in RUN_TARGETS:
        assert str(error_of_running(target, machine) or "yes") == run_answers(machine)[target]


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_one_printable_line(name: str) -> None:
    machine = recorded(name)
    for answer in [*build_answers(machine).values(), *run_answers(machine).values()]:
        assert answer.isprintable()
        assert len(answer) < 300


def error_of_building(target: str, machine: MachineDescription, **how: Any) -> TrolError | None:
    try:
        require_buildable(target, machine, **how)
    except TrolError as error:
        return error
    return None


def error_of_running(target: str, machine: MachineDescription, plan: PlanEntry | None = None) -> TrolError | None:
    try:
        require_runnable(target, machine, plan)
    except TrolError as error:
        return error
    return None


# cpu


@pytest.mark.parametrize("package", ["onnxruntime", "onnxruntime-gpu"])
def test_either_onnxruntime_runs_cpu_engines(package: str) -> None:
    machine = recorded("no_gpu")
    packages = {**machine.packages, "onnxruntime": None, "onnxruntime-gpu": None, package: "1.31.1"}
    require_runnable("cpu", replace(machine, packages=packages))


def test_without_onnxruntime_the_pip_command_is_told() -> None:
    error = error_of_running("cpu", with_packages("no_gpu", onnxruntime=None))
    assert isinstance(error, MissingExtraError)
    assert str(error) == "onnxruntime is missing; run: pip install 'trol-export[cpu]'"


def test_on_python_3_10_there_is_no_onnxruntime_to_install() -> None:
    machine = replace(with_packages("no_gpu", onnxruntime=None), python="3.10.12")
    assert str(error_of_running("cpu", machine)) == "onnxruntime needs Python 3.11 or newer, this is 3.10.12"


def test_exporting_lists_everything_that_is_missing_at_once() -> None:
    error = error_of_building("cpu", with_packages("no_gpu", torch=None, tqdm=None))
    assert isinstance(error, MissingExtraError)
    assert str(error) == (
        "exporting needs torch, tqdm, not installed here; install with: pip install 'trol-export[export,cpu]'"
    )


def test_two_onnxruntimes_stop_cpu_and_cuda() -> None:
    machine = with_packages("rtx_4090", onnxruntime="1.31.1")
    for error in (
        error_of_building("cpu", machine),
        *(error_of_running(target, machine) for target in ("cpu", "cuda")),
    ):
        assert str(error).startswith(
            "onnxruntime beside onnxruntime-gpu: onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 "
        )


# cuda


def test_cuda_needs_onnxruntime_gpu() -> None:
    error = error_of_running("cuda", with_packages("rtx_4090", onnxruntime_gpu=None))
    assert str(error) == "onnxruntime-gpu is missing; run: pip install 'trol-export[gpu]'"


def test_onnxruntime_makes_room_for_onnxruntime_gpu() -> None:
    error = error_of_running("cuda", with_packages("rtx_4090", onnxruntime="1.31.1", onnxruntime_gpu=None))
    assert str(error) == (
        "onnxruntime-gpu is missing, and onnxruntime 1.31.1 is where it would be; run: "
        "pip uninstall -y onnxruntime && pip install 'trol-export[gpu]'"
    )


def test_cuda_needs_the_bindings_of_the_drivers_cuda() -> None:
    error = error_of_running("cuda", with_packages("rtx_4090", cuda_bindings=None))
    assert str(error) == (
        "running on a GPU needs cuda-bindings, not installed here; install with: pip install 'cuda-bindings==13.*'"
    )


@pytest.mark.parametrize("target", ["cuda", "tensorrt-rtx", "tensorrt"])
def test_without_a_gpu_the_cpu_is_what_runs(target: str) -> None:
    error = error_of_running(target, recorded("no_gpu"))
    assert str(error) == f"{target} needs an NVIDIA GPU, none to be seen here; run the target cpu"


# tensorrt-rtx


@pytest.mark.parametrize("sm", ["7.5", "8.0", "8.6", "8.9", "12.0"])
def test_tensorrt_rtx_runs_on_its_gpus(sm: str) -> None:
    require_runnable("tensorrt-rtx", with_gpu(recorded("rtx_4090"), sm))


@pytest.mark.parametrize("sm", ["7.0", "9.0", "10.0"])
def test_tensorrt_rtx_names_the_gpus_it_runs_on(sm: str) -> None:
    assert str(error_of_running("tensorrt-rtx", with_gpu(recorded("rtx_4090"), sm))) == (
        f"tensorrt-rtx runs on SM 7.5, 8.0, 8.6, 8.9, 12.0, 12.1 under x86-64 and on DGX Spark, this is SM {sm} under "
        "x86_64; take the target tensorrt"
    )


def test_a_gpu_that_does_not_tell_its_sm_is_given_a_try() -> None:
    require_runnable("tensorrt-rtx", with_gpu(recorded("rtx_4090"), None))


def test_tensorrt_rtx_builds_without_a_gpu() -> None:
    require_buildable("tensorrt-rtx", recorded("no_gpu"))


def test_tensorrt_rtx_does_not_build_on_an_arm_server_without_a_gpu() -> None:
    error = error_of_building("tensorrt-rtx", replace(recorded("no_gpu"), architecture="aarch64"))
    assert str(error) == (
        "tensorrt-rtx plans are built on x86-64, with or without a GPU, or on DGX Spark, not on aarch64; "
        "build them there"
    )


def test_dgx_spark_builds_and_runs_tensorrt_rtx() -> None:
    spark = replace(with_gpu(recorded("rtx_4090"), "12.1"), architecture="aarch64")
    require_buildable("tensorrt-rtx", spark)
    require_runnable("tensorrt-rtx", spark)


@pytest.mark.parametrize("name", [name for name in NAMES if "orin" in name or "thor" in name])
def test_a_jetson_neither_builds_nor_runs_tensorrt_rtx(name: str) -> None:
    message = "TensorRT-RTX on Jetson: its GPU is not supported; take the target tensorrt"
    assert str(error_of_building("tensorrt-rtx", recorded(name))) == message
    assert str(error_of_running("tensorrt-rtx", recorded(name))) == message


def test_an_old_tensorrt_rtx_is_told_to_be_upgraded() -> None:
    error = error_of_building("tensorrt-rtx", with_packages("no_gpu", tensorrt_rtx="1.5.0.114"))
    assert str(error) == "tensorrt-rtx 1.5.0.114 is older than 1.7; run: pip install -U 'trol-export[rtx]'"


def test_a_missing_tensorrt_rtx_is_told_with_the_pip_command() -> None:
    error = error_of_building("tensorrt-rtx", with_packages("no_gpu", tensorrt_rtx=None))
    assert str(error) == "tensorrt-rtx is missing; run: pip install 'trol-export[rtx]'"


# tensorrt


def test_full_tensorrt_is_built_where_the_gpu_is() -> None:
    error = error_of_building("tensorrt", with_packages("no_gpu", tensorrt="10.16.1.11"))
    assert str(error) == "tensorrt needs an NVIDIA GPU, none to be seen here; build on the device itself"


@pytest.mark.parametrize("version", ["10.15.1.29", "10.16.1.11", "11.4.1.36"])
def test_from_10_15_on_tensorrt_builds_modern_graphs_unless_legacy_ones_are_asked_for(version: str) -> None:
    machine = with_packages("rtx_4090", tensorrt=version)
    assert opset_for("tensorrt", version) == "modern"
    for opset in (None, "modern", "legacy"):
        require_buildable("tensorrt", machine, opset=opset)
    require_runnable("tensorrt", machine)


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3.9", "10.14.1.48"])
def test_from_10_3_to_10_14_tensorrt_builds_legacy_graphs_and_no_others(version: str) -> None:
    machine = with_packages("rtx_4090", tensorrt=version)
    assert opset_for("tensorrt", version) == "legacy"
    require_buildable("tensorrt", machine, opset="legacy")
    error = error_of_building("tensorrt", machine, opset="modern")
    assert isinstance(error, UsageError)
    assert str(error) == (
        f"TensorRT {version} does not read modern graphs (opset 24), 10.15 and newer do; leave out --opset modern"
    )
    assert build_answers(machine)["tensorrt"] == "yes"
    assert run_answers(machine)["tensorrt"] == "yes"


def test_tensorrt_rtx_reads_modern_graphs_and_builds_legacy_ones_if_asked_to() -> None:
    assert opset_for("tensorrt-rtx", "1.7.1.116") == "modern"
    require_buildable("tensorrt-rtx", recorded("no_gpu"), opset="legacy")


def test_jetpack_6_builds_and_runs_tensorrt_on_its_python_3_10() -> None:
    machine = with_packages(
        "orin_nano_jetpack_6_2_2", tensorrt="10.3.0", cuda_bindings="12.9.10", onnx="1.23.0", onnx_ir="1.1.0"
    )
    assert (machine.python, machine.tensorrt) == ("3.10.12", "10.3.0.30")
    assert (build_answers(machine)["tensorrt"], run_answers(machine)["tensorrt"]) == ("yes", "yes")


def test_an_older_tensorrt_does_neither() -> None:
    error = error_of_building("tensorrt", with_packages("rtx_4090", tensorrt="8.6.1"), opset="legacy")
    assert str(error) == (
        "TensorRT 8.6.1 is older than 10.3, the oldest with which engines run; "
        "run: pip install -U 'trol-export[tensorrt]'"
    )


def test_an_older_tensorrt_on_a_jetson_comes_with_an_older_jetpack() -> None:
    machine = replace(with_packages("orin_nano_jetpack_6_2_2", tensorrt="8.6.2"), tensorrt_library="8.6.2.3")
    assert str(error_of_running("tensorrt", machine)) == (
        "TensorRT 8.6.2.3 is older than 10.3, the oldest with which engines run; update JetPack"
    )


def test_a_tensorrt_that_the_environment_hides_is_found() -> None:
    message = (
        "TensorRT 10.3.0.30 is on the system, and not to be seen from this environment; make one that sees it: "
        "/usr/bin/python3 -m venv --system-site-packages ENVIRONMENT"
    )
    assert str(error_of_building("tensorrt", recorded("orin_nano_jetpack_6_2_2"))) == message
    assert str(error_of_running("tensorrt", recorded("orin_nano_jetpack_6_2_2"))) == message


def test_a_jetson_without_tensorrt_takes_it_from_jetpack() -> None:
    machine = replace(recorded("orin_nano_jetpack_6_2_2"), tensorrt_library=None)
    assert str(error_of_running("tensorrt", machine)) == (
        "TensorRT is missing, it comes with JetPack; run: sudo apt install nvidia-jetpack"
    )


def test_building_plans_needs_the_packages_that_change_graphs() -> None:
    error = error_of_building("tensorrt", with_packages("orin_nano_jetpack_7_2", onnx_ir=None))
    assert str(error) == "building plans needs onnx-ir, not installed here; install with: pip install onnx onnx-ir"


@pytest.mark.parametrize(("cuda", "package"), [("12.6", "'cuda-bindings==12.*'"), (None, "cuda-bindings")])
def test_running_plans_needs_the_bindings_of_the_drivers_cuda(cuda: str | None, package: str) -> None:
    machine = with_packages("orin_nano_jetpack_7_2", cuda_bindings=None)
    assert machine.nvidia is not None
    machine = replace(machine, nvidia=replace(machine.nvidia, cuda=cuda))
    assert str(error_of_running("tensorrt", machine)) == (
        f"running on a GPU needs cuda-bindings, not installed here; install with: pip install {package}"
    )


def test_int8_is_refused_on_orin_before_the_build_and_fp16_is_not() -> None:
    orin = recorded("orin_nano_jetpack_7_2")
    require_buildable("tensorrt", orin)
    assert str(error_of_building("tensorrt", orin, precision="int8")) == (
        "INT8 Q/DQ on SM 8.7 with TensorRT 10.16.2.10: builds end in "
        '"Could not infer output types for operation: dequantize"; build --precision fp16'
    )


def test_tensorrt_11_is_refused_on_jetpack_6_before_the_build() -> None:
    assert str(error_of_building("tensorrt", recorded("agx_orin_with_tensorrt_11"))) == (
        "TensorRT 11 on JetPack: JetPack 6.2.1 (L4T 36.4.4) does not support TensorRT 11.4.1.36 (11.4.1 needs JetPack "
        "7.2.2); use the one that came with JetPack: pip uninstall -y tensorrt"
    )


def test_a_plan_of_another_jetpack_is_refused_and_one_of_this_is_not() -> None:
    orin = recorded("orin_nano_jetpack_7_2")
    foreign = PlanEntry("tensorrt", "key", ("decode",), "fp16", ("plans/x",), {"tensorrt": "10.3.0"}, "8.7")
    require_runnable("tensorrt", orin, replace(foreign, versions={"tensorrt": "10.16.2"}))
    assert str(error_of_running("tensorrt", orin, foreign)).startswith(
        "plan of another JetPack: built by TensorRT 10.3.0"
    )


def test_a_gpu_that_says_nothing_of_itself_is_one_line() -> None:
    machine = recorded("rtx_4090")
    assert known_sm(machine) == "8.9"
    assert machine.nvidia is not None
    unknown = replace(machine, nvidia=replace(machine.nvidia, gpus=(replace(machine.nvidia.gpus[0], sm=None),)))
    with pytest.raises(TrolError, match="the GPU's compute capability is not known here: nvidia-smi does not say; "):
        known_sm(unknown)
