"""What a machine builds and runs, what it says where it does not, and that it says so before anything is built."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from recorded_machines import NAMES, recorded
from trol_runtime.errors import MissingExtraError, TrolError, UsageError
from trol_runtime.machine import MachineDescription
from trol_runtime.nvidia_driver import Gpu, NvidiaDriver
from trol_runtime.target_support import (
    BUILD_TARGETS,
    RUN_TARGETS,
    build_answers,
    known_sm,
    opset_for,
    require_buildable,
    require_exporting_python,
    require_runnable,
    run_answers,
)


def with_packages(name: str, **versions: str | None) -> MachineDescription:
    """A recorded machine with other packages; `_` in a name stands for `-`."""
    machine = recorded(name)
    named = {package.replace("_", "-"): version for package, version in versions.items()}
    return replace(machine, packages={**machine.packages, **named})


def with_driver(machine: MachineDescription, version: str, cuda: str) -> MachineDescription:
    assert machine.nvidia is not None
    return replace(machine, nvidia=replace(machine.nvidia, version=version, cuda=cuda))


def dgx_spark(**versions: str | None) -> MachineDescription:
    """The RTX PC, as its release notes of TensorRT-RTX describe a DGX Spark, and with other packages."""
    machine = with_gpu(with_packages("rtx_4090", **versions), "12.1")
    return replace(machine, architecture="aarch64", system="Linux 6.11.0-1016-nvidia aarch64")


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


def error_of_running(target: str, machine: MachineDescription) -> TrolError | None:
    try:
        require_runnable(target, machine)
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
    assert str(error_of_running("cpu", machine)) == (
        "ONNX Runtime 1.24 or newer needs Python 3.11 or newer, this is 3.10.12; make an environment of a newer Python"
    )


def test_on_jetpack_6_tensorrt_is_what_runs_in_the_place_of_onnxruntime() -> None:
    assert str(error_of_running("cpu", recorded("orin_nano_jetpack_6_2_2"))) == (
        "ONNX Runtime 1.24 or newer needs Python 3.11 or newer, this is 3.10.12; take --backend tensorrt"
    )


@pytest.mark.parametrize(("package", "extra"), [("onnxruntime", "cpu"), ("onnxruntime_gpu", "gpu")])
def test_an_onnxruntime_that_the_system_shows_may_be_too_old(package: str, extra: str) -> None:
    machine = with_packages("no_gpu", **{"onnxruntime": None, "onnxruntime_gpu": None, package: "1.23.2"})
    line = f"{package.replace('_', '-')} 1.23.2 is older than 1.24; run: pip install -U 'trol-export[{extra}]'"
    assert str(error_of_running("cpu", machine)) == str(error_of_building("cpu", machine)) == line


def test_the_oldest_onnxruntime_for_the_cpu_runs_it() -> None:
    require_runnable("cpu", with_packages("no_gpu", onnxruntime="1.24.0"))


def test_python_3_10_exports_nowhere() -> None:
    line = "exporting needs Python 3.11 or newer, this is 3.10.12; do it on another machine and copy the file here"
    assert str(error_of_building("cpu", recorded("orin_nano_jetpack_6_2_2"))) == line
    with pytest.raises(TrolError) as refused:
        require_exporting_python("exporting", "3.10.12")
    assert str(refused.value) == line
    require_exporting_python("exporting", "3.11.0")


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


def test_cuda_needs_the_onnxruntime_gpu_that_tells_which_nodes_run_where() -> None:
    assert str(error_of_running("cuda", with_packages("rtx_4090", onnxruntime_gpu="1.25.1"))) == (
        "onnxruntime-gpu 1.25.1 is older than 1.26; run: pip install -U 'trol-export[gpu]'"
    )
    require_runnable("cuda", with_packages("rtx_4090", onnxruntime_gpu="1.26.0"))


@pytest.mark.parametrize("version", [None, "1.23.2"])
def test_a_jetson_finds_no_onnxruntime_gpu_on_the_package_index(version: str | None) -> None:
    machine = with_packages("thor_jetpack_7_1", onnxruntime=None, onnxruntime_gpu=version)
    assert str(error_of_running("cuda", machine)) == (
        "onnxruntime-gpu 1.26 or newer is missing, and the package index has none for Jetson; install one built for "
        "this system, or take the target tensorrt"
    )


def test_on_other_aarch64_machines_the_extra_installs_onnxruntime_gpu() -> None:
    assert str(error_of_running("cuda", dgx_spark(onnxruntime_gpu=None))) == (
        "onnxruntime-gpu is missing; run: pip install 'trol-export[gpu]'"
    )


def test_packages_for_a_newer_cuda_than_the_drivers_are_named_with_what_takes_their_place() -> None:
    machine = with_driver(recorded("rtx_4090"), "570.211.01", "12.8")
    assert str(error_of_running("cuda", machine)) == (
        "onnxruntime-gpu 1.31.1, cuda-bindings 13.5.0: built for CUDA 13, the driver runs CUDA up to 12.8; "
        "update the driver, or run: pip install 'onnxruntime-gpu[cuda,cudnn]==1.26.*' 'cuda-bindings==12.*'"
    )
    assert str(error_of_running("tensorrt-rtx", machine)) == (
        "tensorrt-rtx 1.7.1.116, cuda-bindings 13.5.0: built for CUDA 13, the driver runs CUDA up to 12.8; "
        "update the driver, or run: pip uninstall -y tensorrt-rtx tensorrt-rtx-cu13 tensorrt-rtx-cu13-bindings "
        "tensorrt-rtx-cu13-libs && pip install tensorrt-rtx-cu12 'cuda-bindings==12.*'"
    )
    assert str(error_of_building("tensorrt-rtx", machine)) == (
        "tensorrt-rtx 1.7.1.116: built for CUDA 13, the driver runs CUDA up to 12.8; update the driver, or "
        "run: pip uninstall -y tensorrt-rtx tensorrt-rtx-cu13 tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs && pip "
        "install tensorrt-rtx-cu12"
    )


def test_full_tensorrt_for_a_newer_cuda_than_the_drivers_is_refused_before_the_build_and_the_run() -> None:
    machine = with_driver(with_packages("rtx_4090", tensorrt="11.4.0.106"), "570.211.01", "12.8")
    machine = replace(machine, cuda_majors={**machine.cuda_majors, "tensorrt": 13})
    for error in (error_of_building("tensorrt", machine), error_of_running("tensorrt", machine)):
        assert str(error).startswith("tensorrt 11.4.0.106")
        assert "pip uninstall -y tensorrt tensorrt-cu13 " in str(error)
        assert "pip install tensorrt-cu12" in str(error)


def test_packages_for_cuda_12_run_on_every_driver_of_cuda_12_and_later() -> None:
    machine = replace(
        with_packages("rtx_4090", onnxruntime_gpu="1.26.0", cuda_bindings="12.9.10"),
        cuda_majors={"onnxruntime-gpu": 12, "tensorrt-rtx": 12, "cuda-bindings": 12},
    )
    for driver in (("535.54.03", "12.2"), ("570.211.01", "12.8"), ("580.95.05", "13.0")):
        for target in ("cuda", "tensorrt-rtx"):
            require_runnable(target, with_driver(machine, *driver))


def test_a_driver_older_than_cuda_12_must_be_updated() -> None:
    assert str(error_of_running("cuda", with_driver(recorded("rtx_4090"), "470.256.02", "11.4"))) == (
        "onnxruntime-gpu 1.31.1, cuda-bindings 13.5.0: built for CUDA 13, the driver runs CUDA up to 11.4; "
        "update the driver"
    )


def test_the_driver_of_a_jetson_is_that_of_its_jetpack() -> None:
    machine = with_packages("orin_nano_jetpack_6_2_2", tensorrt="10.3.0", cuda_bindings="13.5.0")
    machine = replace(machine, cuda_majors={"cuda-bindings": 13})
    assert str(error_of_running("tensorrt", machine)) == (
        "cuda-bindings 13.5.0: built for CUDA 13, the driver runs CUDA up to 12.6; run: pip install "
        "'cuda-bindings==12.*'"
    )


def test_a_tensorrt_for_a_newer_cuda_than_a_jetsons_gives_way_to_the_one_of_jetpack() -> None:
    machine = with_packages("orin_nano_jetpack_6_2_2", tensorrt="10.16.2.10", cuda_bindings="12.6.2")
    machine = replace(machine, cuda_majors={"tensorrt": 13, "cuda-bindings": 12})
    assert str(error_of_running("tensorrt", machine)) == (
        "tensorrt 10.16.2.10: built for CUDA 13, the driver runs CUDA up to 12.6; run: pip uninstall -y tensorrt "
        "tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs"
    )


def test_a_driver_that_does_not_tell_its_cuda_is_given_a_try() -> None:
    machine = recorded("rtx_4090")
    assert machine.nvidia is not None
    require_runnable("tensorrt-rtx", replace(machine, nvidia=replace(machine.nvidia, cuda=None)))


@pytest.mark.parametrize("target", ["cuda", "tensorrt-rtx", "tensorrt"])
def test_gpus_are_used_under_linux_alone(target: str) -> None:
    windows = replace(recorded("rtx_4090"), system="Windows 11 AMD64", architecture="AMD64")
    line = f"{target} is for Linux, this is Windows 11 AMD64; take a Linux machine, or the target cpu"
    assert str(error_of_running(target, windows)) == line
    if target != "cuda":
        assert str(error_of_building(target, windows)) == line


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
    require_buildable("tensorrt-rtx", dgx_spark())
    require_runnable("tensorrt-rtx", dgx_spark())


def test_the_extra_that_dgx_spark_is_told_of_brings_tensorrt_rtx_there() -> None:
    assert str(error_of_running("tensorrt-rtx", dgx_spark(tensorrt_rtx=None))) == (
        "tensorrt-rtx is missing; run: pip install 'trol-export[rtx]'"
    )
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    requirement = Requirement(re.findall(r'^  "(tensorrt-rtx>=.*?)",', pyproject, re.MULTILINE)[0])
    assert requirement.marker is not None
    assert requirement.marker.evaluate({"sys_platform": "linux", "platform_machine": "aarch64"})


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


def test_a_tensorrt_without_its_python_package_is_told_apart_from_a_hidden_one() -> None:
    machine = replace(recorded("orin_nano_jetpack_6_2_2"), tensorrt_python=None)
    assert str(error_of_running("tensorrt", machine)) == (
        "TensorRT 10.3.0.30 is on the system, its Python package is not; run: sudo apt install python3-libnvinfer"
    )


@pytest.mark.parametrize(
    ("version", "line"),
    [
        (None, "tensorrt is missing; run: pip install 'tensorrt>=10.3'"),
        (
            "8.6.1",
            "TensorRT 8.6.1 is older than 10.3, the oldest with which engines run; "
            "run: pip install -U 'tensorrt>=10.3'",
        ),
    ],
)
def test_on_aarch64_tensorrt_is_installed_beside_the_extra(version: str | None, line: str) -> None:
    assert str(error_of_running("tensorrt", dgx_spark(tensorrt=version))) == line


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
        "TensorRT 11 on JetPack: TensorRT 11.4.1.36 does not support NVIDIA Jetson AGX Orin Developer Kit with JetPack "
        "6.2.1 (L4T 36.4.4) (11.4.1 does JetPack 7.2.2 on AGX Orin and Thor); use the one that came with JetPack: "
        "pip uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs"
    )


def test_a_gpu_that_says_nothing_of_itself_is_one_line() -> None:
    machine = recorded("rtx_4090")
    assert known_sm(machine) == "8.9"
    assert machine.nvidia is not None
    unknown = replace(machine, nvidia=replace(machine.nvidia, gpus=(replace(machine.nvidia.gpus[0], sm=None),)))
    with pytest.raises(TrolError, match="the GPU's compute capability is not known here: nvidia-smi does not say; "):
        known_sm(unknown)
