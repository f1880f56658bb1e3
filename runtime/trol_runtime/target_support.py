"""Which targets a machine builds and which it runs, asked before anything is built; and what to do where it does not.

An obstacle is the error that says so, not yet raised. `cpu` and `cuda` run in ONNX Runtime, the others have plans.
"""

from __future__ import annotations

from collections.abc import Iterator

from trol_runtime.errors import MissingExtraError, TrolError, UsageError
from trol_runtime.installed_packages import EXPORT_PACKAGES, tensorrt_distributions
from trol_runtime.known_conflicts import known_conflicts
from trol_runtime.machine import MachineDescription
from trol_runtime.manifest import Opset
from trol_runtime.version_numbers import version_numbers

PLAN_TARGETS = ("tensorrt-rtx", "tensorrt")  # those with plans of TensorRT
BUILD_TARGETS = ("cpu", *PLAN_TARGETS)
RUN_TARGETS = ("cpu", "cuda", *PLAN_TARGETS)

# The oldest Python that exports and for which the index has the ONNX Runtime that is needed.
_EXPORT_PYTHON = (3, 11)
# What changes stored graphs into those of plans.
_GRAPH_PACKAGES = ("onnx", "onnx-ir")

# The first parser that reads Attention, RMSNormalization, RotaryEmbedding and TensorScatter (opset 24), and the oldest
# for which graphs are written out in opset 17, which is JetPack 6's.
_MODERN_TENSORRT = (10, 15)
OLDEST_TENSORRT = (10, 3)
OLDEST_RTX = (1, 7)
# As pyproject.toml has them, with the reasons: for the CPU, and for a GPU.
OLDEST_ONNXRUNTIME = (1, 24)
OLDEST_ONNXRUNTIME_GPU = (1, 26)

# What installs the package for CUDA 12 where the index gives that for 13. onnxruntime-gpu: 1.26 is the last whose
# requirements are of CUDA 12.
_FOR_CUDA_12 = {
    "onnxruntime-gpu": "'onnxruntime-gpu[cuda,cudnn]==1.26.*'",
    "tensorrt": "tensorrt-cu12",
    "tensorrt-rtx": "tensorrt-rtx-cu12",
    "cuda-bindings": "'cuda-bindings==12.*'",
}

# SMs by architecture. x86-64: tensorrt_rtx.ComputeCapability of 1.7.1. aarch64: DGX Spark alone, since 1.6:
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/release-notes-1/1.6.html
_RTX_SMS = {"x86_64": ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"), "aarch64": ("12.1",)}


def opset_for(target: str, version: str) -> Opset:
    """The form in which a target's plans are built unless one is asked for: the newest that its library reads."""
    return "legacy" if target == "tensorrt" and version_numbers(version) < _MODERN_TENSORRT else "modern"


def require_buildable(
    target: str, machine: MachineDescription, *, precision: str = "fp16", opset: Opset | None = None
) -> None:
    """Raise what keeps this machine from building a target of BUILD_TARGETS: a TrolError in one line.

    opset: the form of plans that is asked for; None: `opset_for`
    """
    _raise_first(_build_obstacles(target, machine, precision, opset))


def require_runnable(target: str, machine: MachineDescription) -> None:
    """Raise what keeps this machine from running a target of RUN_TARGETS: a TrolError in one line."""
    _raise_first(_run_obstacles(target, machine))


def require_exporting_python(doing: str, python: str) -> None:
    """Raise TrolError where this version of Python is too old to export."""
    _raise_first(_too_old_to_export(doing, python))


def known_sm(machine: MachineDescription) -> str:
    """The compute capability of the GPU that engines use; raises TrolError where nothing tells."""
    if machine.sm is None:
        raise TrolError(
            "the GPU's compute capability is not known here: nvidia-smi does not say; update the driver, then look at: "
            "trol-inspect --system"
        )
    return machine.sm


def build_answers(machine: MachineDescription) -> dict[str, str]:
    """By target: "yes", or what to do before it can be built here."""
    return {target: _answer(_build_obstacles(target, machine, "fp16", None)) for target in BUILD_TARGETS}


def run_answers(machine: MachineDescription) -> dict[str, str]:
    """By target: "yes", or what to do before it runs here."""
    return {target: _answer(_run_obstacles(target, machine)) for target in RUN_TARGETS}


def _answer(obstacles: Iterator[TrolError]) -> str:
    obstacle = next(obstacles, None)
    return "yes" if obstacle is None else str(obstacle)


def _raise_first(obstacles: Iterator[TrolError]) -> None:
    for obstacle in obstacles:
        raise obstacle


def _build_obstacles(
    target: str, machine: MachineDescription, precision: str, opset: Opset | None
) -> Iterator[TrolError]:
    """Those that cannot be mended come first."""
    if target == "cpu":
        yield from _too_old_to_export("exporting", machine.python)
        yield from _conflicts(target, machine, precision)
        yield from _missing("exporting", EXPORT_PACKAGES, "pip install 'trol-export[export,cpu]'", machine)
        yield from _no_onnxruntime(machine)
    elif target == "tensorrt-rtx":
        yield from _not_linux(target, machine)
        yield from _conflicts(target, machine, precision)
        yield from _nothing_that_builds_rtx(machine)
        yield from _no_tensorrt_rtx(machine)
        yield from _for_a_newer_cuda(("tensorrt-rtx",), machine)
        yield from _no_graph_packages(machine)
    elif target == "tensorrt":
        yield from _not_linux(target, machine)
        yield from _no_gpu(target, machine, "build on the device itself")
        yield from _conflicts(target, machine, precision)
        yield from _no_full_tensorrt(machine)
        yield from _for_a_newer_cuda(("tensorrt",), machine)
        yield from _tensorrt_too_old_for(opset, machine)
        yield from _no_graph_packages(machine)


def _run_obstacles(target: str, machine: MachineDescription) -> Iterator[TrolError]:
    """Those that cannot be mended come first."""
    if target != "cpu":
        yield from _not_linux(target, machine)
        yield from _no_gpu(target, machine, "run the target cpu")
    yield from _conflicts(target, machine, None)
    if target == "cpu":
        yield from _no_onnxruntime(machine)
    elif target == "cuda":
        yield from _no_onnxruntime_gpu(machine)
        yield from _no_cuda_bindings(machine)
        yield from _for_a_newer_cuda(("onnxruntime-gpu", "cuda-bindings"), machine)
    elif target == "tensorrt-rtx":
        yield from _not_an_rtx_gpu(machine)
        yield from _no_tensorrt_rtx(machine)
        yield from _no_cuda_bindings(machine)
        yield from _for_a_newer_cuda(("tensorrt-rtx", "cuda-bindings"), machine)
    elif target == "tensorrt":
        yield from _no_full_tensorrt(machine)
        yield from _no_cuda_bindings(machine)
        yield from _for_a_newer_cuda(("tensorrt", "cuda-bindings"), machine)


def _conflicts(target: str, machine: MachineDescription, precision: str | None) -> Iterator[TrolError]:
    yield from (TrolError(str(found)) for found in known_conflicts(machine) if found.stops(target, precision))


def _not_linux(target: str, machine: MachineDescription) -> Iterator[TrolError]:
    """Elsewhere pip leaves the packages of GPUs out, and nothing here was tried."""
    if not machine.system.startswith("Linux "):
        yield TrolError(f"{target} is for Linux, this is {machine.system}; take a Linux machine, or the target cpu")


def _no_gpu(target: str, machine: MachineDescription, instead: str) -> Iterator[TrolError]:
    if machine.gpu is None:
        yield TrolError(f"{target} needs an NVIDIA GPU, none to be seen here; {instead}")


def _not_an_rtx_gpu(machine: MachineDescription) -> Iterator[TrolError]:
    if machine.sm is not None and not _has_rtx_gpu(machine):
        supported = ", ".join(_RTX_SMS["x86_64"])
        yield TrolError(
            f"tensorrt-rtx runs on SM {supported} under x86-64 and on DGX Spark, this is SM {machine.sm} under "
            f"{machine.architecture}; take the target tensorrt"
        )


def _nothing_that_builds_rtx(machine: MachineDescription) -> Iterator[TrolError]:
    if machine.architecture != "x86_64" and not _has_rtx_gpu(machine):
        yield TrolError(
            "tensorrt-rtx plans are built on x86-64, with or without a GPU, or on DGX Spark, not on "
            f"{machine.architecture}; build them there"
        )


def _has_rtx_gpu(machine: MachineDescription) -> bool:
    return machine.sm in _RTX_SMS.get(machine.architecture, ())


def _no_onnxruntime(machine: MachineDescription) -> Iterator[TrolError]:
    name = "onnxruntime-gpu" if machine.packages.get("onnxruntime-gpu") else "onnxruntime"
    version = machine.packages.get(name)
    if version is None or version_numbers(version) < OLDEST_ONNXRUNTIME:
        yield from _too_old_for_onnxruntime(OLDEST_ONNXRUNTIME, machine)
        extra = "gpu" if name == "onnxruntime-gpu" else "cpu"
        yield _missing_or_older(name, version, OLDEST_ONNXRUNTIME, f"'trol-export[{extra}]'")


def _no_onnxruntime_gpu(machine: MachineDescription) -> Iterator[TrolError]:
    version = machine.packages.get("onnxruntime-gpu")
    if version is not None and version_numbers(version) >= OLDEST_ONNXRUNTIME_GPU:
        return
    if machine.jetson is not None:  # https://github.com/microsoft/onnxruntime/issues/20503
        yield MissingExtraError(
            "onnxruntime-gpu 1.26 or newer is missing, and the package index has none for Jetson; install one built "
            "for this system, or take the target tensorrt"
        )
    yield from _too_old_for_onnxruntime(OLDEST_ONNXRUNTIME_GPU, machine)
    if machine.packages.get("onnxruntime"):
        yield MissingExtraError(
            f"onnxruntime-gpu is missing, and onnxruntime {machine.packages['onnxruntime']} is where it would be; run: "
            "pip uninstall -y onnxruntime && pip install 'trol-export[gpu]'"
        )
    yield _missing_or_older("onnxruntime-gpu", version, OLDEST_ONNXRUNTIME_GPU, "'trol-export[gpu]'")


def _no_tensorrt_rtx(machine: MachineDescription) -> Iterator[TrolError]:
    version = machine.packages.get("tensorrt-rtx")
    if version is None or version_numbers(version) < OLDEST_RTX:
        yield _missing_or_older("tensorrt-rtx", version, OLDEST_RTX, "'trol-export[rtx]'")


def _no_full_tensorrt(machine: MachineDescription) -> Iterator[TrolError]:
    if machine.packages.get("tensorrt") is None:
        yield MissingExtraError(_where_tensorrt_is(machine))
    if version_numbers(machine.tensorrt or "") < OLDEST_TENSORRT:
        remedy = "update JetPack" if machine.jetson else f"run: pip install -U {_tensorrt_by_pip(machine)}"
        yield TrolError(f"TensorRT {machine.tensorrt} is older than 10.3, the oldest with which engines run; {remedy}")


def _where_tensorrt_is(machine: MachineDescription) -> str:
    if machine.jetson is None:
        return f"tensorrt is missing; run: pip install {_tensorrt_by_pip(machine)}"
    if machine.tensorrt_library is None:
        return "TensorRT is missing, it comes with JetPack; run: sudo apt install nvidia-jetpack"
    if machine.tensorrt_python is None:
        return (
            f"TensorRT {machine.tensorrt_library} is on the system, its Python package is not; run: sudo apt install "
            "python3-libnvinfer"
        )
    return (
        f"TensorRT {machine.tensorrt_library} is on the system, and not to be seen from this environment; make one "
        "that sees it: /usr/bin/python3 -m venv --system-site-packages ENVIRONMENT"
    )


def _tensorrt_by_pip(machine: MachineDescription) -> str:
    """What pip is given on anything but a Jetson; elsewhere than on x86-64 the extra leaves TensorRT to JetPack.

    https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/installing-tensorrt/install-pip.html
    """
    return "'trol-export[tensorrt]'" if machine.architecture == "x86_64" else "'tensorrt>=10.3'"


def _tensorrt_too_old_for(opset: Opset | None, machine: MachineDescription) -> Iterator[TrolError]:
    if opset == "modern" and opset_for("tensorrt", machine.tensorrt or "") == "legacy":
        yield UsageError(
            f"TensorRT {machine.tensorrt} does not read modern graphs (opset 24), 10.15 and newer do; leave out "
            "--opset modern"
        )


def _no_graph_packages(machine: MachineDescription) -> Iterator[TrolError]:
    yield from _missing("building plans", _GRAPH_PACKAGES, f"pip install {' '.join(_GRAPH_PACKAGES)}", machine)


def _no_cuda_bindings(machine: MachineDescription) -> Iterator[TrolError]:
    """12.x of the package is for every CUDA 12, and so on: the driver's is what is sure to run.

    https://nvidia.github.io/cuda-python/cuda-bindings/latest/support.html
    """
    cuda = version_numbers(_cuda_of_driver(machine))[:1]
    package = f"'cuda-bindings=={cuda[0]}.*'" if cuda else "cuda-bindings"
    yield from _missing("running on a GPU", ("cuda-bindings",), f"pip install {package}", machine)


def _for_a_newer_cuda(names: tuple[str, ...], machine: MachineDescription) -> Iterator[TrolError]:
    """A driver runs what was built for its major version of CUDA or an older one; CUDA 13 needs driver 580.

    https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
    """
    cuda = version_numbers(_cuda_of_driver(machine))[:1]
    newer = [name for name in names if cuda and (machine.cuda_majors.get(name, 0),) > cuda]
    if newer:
        needed = max(machine.cuda_majors[name] for name in newer)
        remedies = [] if machine.jetson else ["update the driver"]  # a Jetson's comes with JetPack
        remedies += [f"run: {_installing_for_cuda_12(newer, needed, machine)}"] if cuda == (12,) else []
        installed = ", ".join(f"{name} {machine.packages.get(name)}" for name in newer)
        yield TrolError(
            f"{installed}: built for CUDA {needed}, the driver runs CUDA up to {_cuda_of_driver(machine)}; "
            f"{', or '.join(remedies) or 'update JetPack'}"
        )


def _installing_for_cuda_12(names: list[str], major: int, machine: MachineDescription) -> str:
    """The commands, in the place of packages for this major version.

    Those of TensorRT lie where the ones for another CUDA do, and must go first; on a Jetson that is all, as
    the one that came with JetPack is there.
    """
    old = [one for name in names if name.startswith("tensorrt") for one in tensorrt_distributions(name, major)]
    new = [_FOR_CUDA_12[name] for name in names if not (machine.jetson and name == "tensorrt")]
    commands = [f"pip uninstall -y {' '.join(old)}"] if old else []
    return " && ".join([*commands, f"pip install {' '.join(new)}"] if new else commands)


def _cuda_of_driver(machine: MachineDescription) -> str:
    """The newest CUDA that the driver runs, "" where it does not say."""
    return (machine.nvidia.cuda if machine.nvidia else None) or ""


def _too_old_to_export(doing: str, python: str) -> Iterator[TrolError]:
    if version_numbers(python) < _EXPORT_PYTHON:
        yield TrolError(
            f"{doing} needs Python 3.11 or newer, this is {python}; do it on another machine and copy the file here"
        )


def _too_old_for_onnxruntime(oldest: tuple[int, ...], machine: MachineDescription) -> Iterator[TrolError]:
    """https://github.com/microsoft/onnxruntime/releases/tag/v1.24.1: no wheels for Python 3.10 any more."""
    if version_numbers(machine.python) < _EXPORT_PYTHON:
        instead = "take --backend tensorrt" if machine.jetson else "make an environment of a newer Python"
        yield TrolError(
            f"ONNX Runtime {_dotted(oldest)} or newer needs Python 3.11 or newer, this is {machine.python}; {instead}"
        )


def _missing_or_older(name: str, version: str | None, oldest: tuple[int, ...], package: str) -> TrolError:
    if version is None:
        return MissingExtraError(f"{name} is missing; run: pip install {package}")
    return MissingExtraError(f"{name} {version} is older than {_dotted(oldest)}; run: pip install -U {package}")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _missing(doing: str, names: tuple[str, ...], remedy: str, machine: MachineDescription) -> Iterator[TrolError]:
    missing = [name for name in names if machine.packages.get(name) is None]
    if missing:
        yield MissingExtraError(f"{doing} needs {', '.join(missing)}, not installed here; install with: {remedy}")
