"""ONNX Runtime sessions on graphs of an engine file: weights are read where they lie, what goes wrong is one line."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trol_runtime.bundle import ARENA_ENTRY, Bundle
from trol_runtime.errors import EngineFileError, MissingExtraError
from trol_runtime.installed_packages import installed_version
from trol_runtime.known_conflicts import onnxruntime_conflict
from trol_runtime.machine import describe_machine
from trol_runtime.native_runs import native_run
from trol_runtime.one_line import one_line
from trol_runtime.onnx_external_data import redirect_external_data
from trol_runtime.target_support import OLDEST_ONNXRUNTIME, require_runnable
from trol_runtime.version_numbers import version_numbers

if TYPE_CHECKING:
    import onnxruntime


def session_options(bundle: Bundle) -> onnxruntime.SessionOptions:
    """Options of every session; raises MissingExtraError without ONNX Runtime."""
    options = require_onnxruntime().SessionOptions()
    options.log_severity_level = 4  # nothing: errors are raised too, warnings of the optimiser mean nothing to a user
    # Weights stay where they are, in the mapped file: packing would copy each into anonymous memory.
    options.add_session_config_entry("session.disable_prepacking", "1")
    folder = str(bundle.path.resolve().parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    # Activations of a long prompt are not kept for the decode steps after it.
    options.enable_cpu_mem_arena = False
    return options


def open_session(
    bundle: Bundle, model: bytes, options: onnxruntime.SessionOptions, providers: Sequence[Any]
) -> onnxruntime.InferenceSession:
    """A session on `model`, whose weights are mapped from the bundle's arena.

    model: an ONNX model that refers to `weights.safetensors`. providers: of ONNX Runtime, the preferred first
    Raises EngineFileError when ONNX Runtime refuses it, MissingExtraError without ONNX Runtime.
    """
    ort = require_onnxruntime()
    path = bundle.path.resolve()
    try:
        arena = bundle.entries[ARENA_ENTRY]
        model = redirect_external_data(model, path.name, arena.offset, arena.size)
        # Without enable_fallback=0 it would try again, and print to stdout.
        with native_run():
            return ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's error classes have no common base
        reason = one_line((str(error) or type(error).__name__).splitlines()[0])
        raise EngineFileError(
            f"{path}: onnxruntime {ort.__version__} cannot load a graph ({reason}); upgrade onnxruntime or export the "
            "engine again"
        ) from error


def require_onnxruntime() -> ModuleType:
    """The module onnxruntime; raises TrolError when it is missing or too old, or installed twice over itself."""
    conflict = onnxruntime_conflict({name: installed_version(name) for name in ("onnxruntime", "onnxruntime-gpu")})
    if conflict is not None:
        raise MissingExtraError(conflict)
    try:
        import onnxruntime
    except ImportError as error:
        _require_usable()
        raise MissingExtraError(
            f"onnxruntime is installed and cannot be imported ({one_line(error)}); run: "
            "pip install --force-reinstall onnxruntime"
        ) from None
    if version_numbers(onnxruntime.__version__) < OLDEST_ONNXRUNTIME:
        _require_usable()
    return onnxruntime


def _require_usable() -> None:
    """Raise what this machine is told about ONNX Runtime: asked only where something is wrong, as it takes seconds."""
    require_runnable("cpu", describe_machine())
