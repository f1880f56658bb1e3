"""Which of the packages that decide what a machine builds and runs are installed: from metadata, importing nothing."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

RUNTIME_PACKAGES = ("trol-export", "numpy", "pillow", "tokenizers")
BACKEND_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings")
EXPORT_PACKAGES = ("torch", "onnx", "onnx-ir", "safetensors", "sentencepiece", "huggingface-hub", "tqdm")
PACKAGES = (*RUNTIME_PACKAGES, *BACKEND_PACKAGES, *EXPORT_PACKAGES)

# The names on the left only require one of those on the right, which may be installed without them.
_CARRIERS = {
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}


def installed_packages() -> dict[str, str | None]:
    """The version of each of PACKAGES, None for one that is missing."""
    return {
        name: next(filter(None, map(installed_version, (*_CARRIERS.get(name, ()), name))), None) for name in PACKAGES
    }


def cuda_majors() -> dict[str, int]:
    """The major version of CUDA that installed packages are built for, of those that tell: {"tensorrt-rtx": 13}.

    cuda-bindings has it for its own, TensorRT's carriers have it in their names, and onnxruntime-gpu requires the
    runtime of its CUDA ("nvidia-cuda-runtime-cu12~=12.0", later "nvidia-cuda-runtime~=13.0").
    """
    found = {
        "cuda-bindings": re.match(r"([0-9]+)\.", installed_version("cuda-bindings") or ""),
        "onnxruntime-gpu": re.search(r"^nvidia-cuda-runtime\S*=([0-9]+)\.", _requirements("onnxruntime-gpu"), re.M),
    }
    for name, carriers in _CARRIERS.items():
        carrier = next(filter(installed_version, carriers), "")
        found[name] = re.search(r"-cu([0-9]+)$", carrier)
    return {name: int(match[1]) for name, match in found.items() if match}


def tensorrt_distributions(name: str, cuda_major: int | None) -> tuple[str, ...]:
    """Everything that pip installs as "tensorrt" or "tensorrt-rtx" for a CUDA; taking the name away leaves the rest.

    The module lies in ...-bindings, or in the carrier: https://github.com/NVIDIA/TensorRT/issues/3936
    """
    if cuda_major is None:
        return (name,)
    return (name, *(f"{name}-cu{cuda_major}{part}" for part in ("", "-bindings", "-libs")))


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _requirements(distribution: str) -> str:
    """What an installed distribution requires, a line each; "" if it is not installed."""
    try:
        return "\n".join(requires(distribution) or ())
    except PackageNotFoundError:
        return ""
