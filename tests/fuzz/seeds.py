"""The untouched files that all damage starts from: micro checkpoints and engines, and an engine that is only a file."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

ARCHS = ("internlm2", "phi3")
SMALL_ENGINE = "small.plan"


def checkpoint_path(seeds: Path, arch: str) -> Path:
    return seeds / arch


def engine_path(seeds: Path, arch: str) -> Path:
    return seeds / f"{arch}.plan"


def write_seeds(folder: Path) -> None:
    """Write all of them; what the test run shares (tests/conftest.py) is made the same way."""
    from conftest import MICRO_MAX_BATCH, MICRO_MAX_SEQ, MICRO_OVERRIDES, Arch
    from golden.seeded_checkpoint import write_checkpoint
    from golden.tiny_tokenizer import write_tiny_tokenizer
    from trol_export.pipeline import ExportRequest, export_engine

    archs: tuple[Arch, ...] = ("internlm2", "phi3")
    for arch in archs:
        checkpoint = checkpoint_path(folder, arch)
        write_checkpoint(f"micro-{arch}", checkpoint, overrides=MICRO_OVERRIDES[arch])
        write_tiny_tokenizer(arch, checkpoint)
        engine, limits = engine_path(folder, arch), (MICRO_MAX_SEQ, MICRO_MAX_BATCH)
        with redirect_stderr(StringIO()):
            export_engine(ExportRequest(str(checkpoint), engine, "fp32", max_seq=limits[0], max_batch=limits[1]))
    write_small_seed(folder)


def write_small_seed(folder: Path) -> None:
    """The engine file whose graphs are not graphs: a hundred thousand of it are read in a minute."""
    from small_engine import write_small_engine

    write_small_engine(folder / SMALL_ENGINE)
