"""What the tests of the runtime run on: a micro engine of each arch, and the eager model it was exported from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trol_export.checkpoint import Checkpoint
from trol_graphs.eager import EagerSession, eager_model
from trol_runtime import TroL


@pytest.fixture(scope="session", params=["internlm2", "phi3"])
def arch(request: pytest.FixtureRequest) -> str:
    """Each trunk in turn."""
    return request.param


@pytest.fixture(scope="session")
def model(arch: str, micro_engine: Callable[..., Path]) -> TroL:
    """The fp32 micro engine, loaded once; tests use sessions of their own, or prefill first."""
    return TroL.load(micro_engine(arch))


@pytest.fixture(scope="session")
def eager(arch: str, model: TroL, micro_checkpoint: Callable[[Any], Path]) -> EagerSession:
    """The eager reference on the same checkpoint."""
    return EagerSession(eager_model(model.config, Checkpoint.open(micro_checkpoint(arch)).torch))
