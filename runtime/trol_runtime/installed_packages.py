"""Which of the packages that decide what a machine builds and runs are installed: from metadata, importing nothing."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

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
        name: next(filter(None, map(installed_version, (name, *_CARRIERS.get(name, ())))), None) for name in PACKAGES
    }


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
