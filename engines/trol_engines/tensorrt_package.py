"""The packages that build TensorRT plans, `tensorrt` and `tensorrt_rtx`: one API, and here all in which they differ."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Literal, get_args

from trol_runtime.errors import MissingExtraError, TrolError, UsageError
from trol_runtime.target_support import OLDEST_RTX, OLDEST_TENSORRT
from trol_runtime.version_numbers import version_numbers

TensorRTTarget = Literal["tensorrt", "tensorrt-rtx"]
TARGETS: tuple[TensorRTTarget, ...] = get_args(TensorRTTarget)

_MODULES: dict[TensorRTTarget, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS: dict[TensorRTTarget, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
_OLDEST: dict[TensorRTTarget, tuple[int, int]] = {"tensorrt": OLDEST_TENSORRT, "tensorrt-rtx": OLDEST_RTX}


@dataclass(frozen=True)
class TensorRTPackage:
    """One of the packages, imported.

    trt: the module
    plugins: whether a registered plugin takes the place of a model-local function of its name; RTX has no plugins
    """

    target: TensorRTTarget
    trt: ModuleType

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def plugins(self) -> bool:
        return self.target == "tensorrt"

    @property
    def allocates_in_runs(self) -> bool:
        """Whether plans may take memory while they run unless the builder is told that they must not.

        RTX's may, and then no CUDA graph can be made of a run (TensorRT-RTX 1.2 release notes, "Memory Management").
        """
        return self.target == "tensorrt-rtx"

    @property
    def takes_weights(self) -> bool:
        """Whether plans can be built with weights inside that do not lie in the graph: since TensorRT 10.13."""
        return hasattr(self.trt.OnnxParser, "load_initializer")


def import_tensorrt(target: str) -> TensorRTPackage:
    """The package of a target.

    Raises UsageError for another target, MissingExtraError when the package is missing, TrolError when it is too old
    for the graphs or its libraries cannot be loaded.
    """
    if target not in TARGETS:
        raise UsageError(f"no TensorRT target {target!r}, expected {' or '.join(TARGETS)}")
    known: TensorRTTarget = "tensorrt" if target == "tensorrt" else "tensorrt-rtx"
    try:
        package = TensorRTPackage(known, import_module(_MODULES[known]))
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] == _MODULES[known]:
            raise MissingExtraError(
                f"building {known} plans needs {_MODULES[known]}, not installed here; install with: "
                f"pip install 'trol-export[{_EXTRAS[known]}]'"
            ) from None
        raise TrolError(f"{_MODULES[known]} is installed and cannot be loaded ({error}); install it again") from None
    _require_recent(package)
    return package


def _require_recent(package: TensorRTPackage) -> None:
    oldest = _OLDEST[package.target]
    if version_numbers(package.version) < oldest:
        raise TrolError(
            f"{package.target} {package.version} cannot read the graphs in any of their forms, expected "
            f"{'.'.join(map(str, oldest))} or newer: upgrade it"
        )
