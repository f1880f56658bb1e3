"""Fixtures every test may use: golden outputs, seeded checkpoints, engines exported from them, third-party data."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
from filelock import FileLock

from golden.golden import Golden, load_golden
from golden.seeded_checkpoint import write_checkpoint
from golden.tiny_tokenizer import VOCAB_SIZE, write_tiny_tokenizer

GOLDEN_FOLDER = Path(__file__).parent / "golden"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

# A shell without job control starts background jobs with SIGINT ignored, and what pytest starts would inherit that:
# tests that interrupt a command need it as a terminal leaves it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

Arch = Literal["internlm2", "phi3"]
Precision = Literal["fp32", "fp16"]

# "micro" engines speak: their vocabulary is that of the tiny tokenizer. 96 positions stand in for the 4096 behind which
# the long RoPE factors begin, so that short prompts meet both.
MICRO_OVERRIDES: dict[Arch, dict[str, Any]] = {
    "internlm2": {"llm": {"vocab_size": VOCAB_SIZE, "image_token_index": VOCAB_SIZE}},
    "phi3": {
        "llm": {"vocab_size": VOCAB_SIZE, "original_max_position_embeddings": 96},
        "top": {"image_token_index": 990},
    },
}
# Small limits, reached in a second; 640 is no multiple of the 256 tokens by which a KV cache grows.
MICRO_MAX_SEQ, MICRO_MAX_BATCH = 640, 3


@pytest.fixture(scope="session")
def golden_internlm2() -> Golden:
    """Official outputs for the checkpoint `tiny_internlm2`."""
    return load_golden("internlm2")


@pytest.fixture(scope="session")
def golden_phi3() -> Golden:
    """Official outputs for the checkpoint `tiny_phi3`."""
    return load_golden("phi3")


@pytest.fixture(scope="session")
def golden_digests(golden_internlm2: Golden, golden_phi3: Golden) -> dict[str, dict[str, dict[str, Any]]]:
    """arch -> tensor name -> {sha256, shape, dtype}, of golden tensors too large to keep."""
    return {"internlm2": golden_internlm2.digests, "phi3": golden_phi3.digests}


@pytest.fixture(scope="session")
def golden_prompts() -> dict[str, Any]:
    """arch -> the official prompt builder's text per dataset."""
    return json.loads((GOLDEN_FOLDER / "prompts.json").read_text())


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder that lasts as long as this test run and that the workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if hasattr(request.config, "workerinput") else base


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, a file or folder in `run_folder`: the first worker that asks for it has it made under another name."""
    with FileLock(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            unfinished = path.with_name(f"unfinished-{path.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(path)
    return path


def tiny_checkpoint(arch: Arch, run_folder: Path) -> Path:
    return made_once(run_folder / f"tiny-{arch}", lambda path: write_checkpoint(f"tiny-{arch}", path))


@pytest.fixture(scope="session")
def tiny_internlm2(run_folder: Path) -> Path:
    """Checkpoint directory of the golden internlm2 outputs: 3 layers, the real grid of 1225 tokens. Read only."""
    return tiny_checkpoint("internlm2", run_folder)


@pytest.fixture(scope="session")
def tiny_phi3(run_folder: Path) -> Path:
    """Checkpoint directory of the golden phi3 outputs: 3 layers, the real tiles of 256 tokens. Read only."""
    return tiny_checkpoint("phi3", run_folder)


@pytest.fixture(scope="session")
def micro_checkpoint(run_folder: Path) -> Callable[[Arch], Path]:
    """Checkpoint directory of an arch as small as can be, 16 image tokens a crop, with a tokenizer. Read only."""

    def write(arch: Arch, directory: Path) -> None:
        write_checkpoint(f"micro-{arch}", directory, overrides=MICRO_OVERRIDES[arch])
        write_tiny_tokenizer(arch, directory)

    return lambda arch: made_once(run_folder / f"micro-{arch}-text", lambda path: write(arch, path))


class EngineOf(Protocol):
    """The engine file of an arch and a precision, exported once per test run. Read only."""

    def __call__(self, arch: Arch, precision: Precision = "fp32") -> Path: ...


@pytest.fixture(scope="session")
def micro_engine(run_folder: Path, micro_checkpoint: Callable[[Arch], Path]) -> EngineOf:
    """Engines of `micro_checkpoint`, from text to text, for 640 tokens and 3 rows."""

    def engine(arch: Arch, precision: Precision = "fp32") -> Path:
        checkpoint = micro_checkpoint(arch)
        limits = {"max_seq": MICRO_MAX_SEQ, "max_batch": MICRO_MAX_BATCH}
        return exported_once(run_folder / f"micro-{arch}-{precision}.plan", checkpoint, precision, **limits)

    return engine


@pytest.fixture(scope="session")
def tiny_engine(run_folder: Path) -> EngineOf:
    """Engines of the golden outputs' checkpoints, for ids only: those checkpoints have no tokenizer."""

    def engine(arch: Arch, precision: Precision = "fp32") -> Path:
        checkpoint = tiny_checkpoint(arch, run_folder)
        return exported_once(run_folder / f"tiny-{arch}-{precision}.plan", checkpoint, precision, tokenizer=False)

    return engine


def exported_once(path: Path, checkpoint: Path, precision: Precision, **options: Any) -> Path:
    """The engine file `path` in `run_folder`; `options` are those of ExportRequest."""
    from trol_export.pipeline import ExportRequest, export_engine

    def export(unfinished: Path) -> None:
        with redirect_stderr(StringIO()):  # progress is nothing that the test which asks first has printed
            export_engine(ExportRequest(str(checkpoint), unfinished, precision, **options))

    return made_once(path, export)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real tokenizers and pictures, kept beside the repository, not in it; tests that need them skip without."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data (real tokenizers and pictures) beside the repository, which is not there")
    return SHARED_DATA


@pytest.fixture
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache directory for one test: there lies the key that signs plans."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
