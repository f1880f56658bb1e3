"""The untouched files that all damage starts from: micro checkpoints and engines, and an engine that is only a file."""

from __future__ import annotations

import os
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from unittest.mock import patch

ARCHS = ("internlm2", "phi3")
SMALL_ENGINE = "small.plan"
PLANNED_ENGINE = "planned.plan"  # the small engine with a plan behind its end
CACHE = "cache"  # a user's cache directory: it holds the key that signed the plan


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
    write_small_seeds(folder)


def write_small_seeds(folder: Path) -> None:
    """The engine file whose graphs are not graphs, alone and with a plan: a hundred thousand are read in a minute."""
    from small_engine import write_small_engine
    from small_plan import SMALL_CONTENTS, small_plan
    from trol_runtime.bundle import Bundle
    from trol_runtime.plan_store import add_plan

    planned = write_small_engine(folder / PLANNED_ENGINE)
    with patch.dict(os.environ, XDG_CACHE_HOME=str(folder / CACHE)):
        add_plan(planned, small_plan(Bundle.open(planned).manifest), SMALL_CONTENTS)
    write_small_engine(folder / SMALL_ENGINE)
