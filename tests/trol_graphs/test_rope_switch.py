"""Phi-3's rotary tables: "su" and "yarn" take the long factors in every call after which a row holds more tokens than
the original maximum. Small numbers stand in for the released 4096: the switch is at 24.

The eager model and an exported engine are both held against `restatement`, which computes angles in float64 by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch

from emitted_graphs import as_torch, seeded_model
from golden.seeded_checkpoint import read_config, write_checkpoint
from official_model import assert_close
from restatement import Restatement
from trol_export.pipeline import ExportRequest, export_engine
from trol_graphs.eager import EagerSession, eager_model
from trol_runtime import TroL
from trol_runtime.rope import table_scale
from trol_runtime.session import Session

ORIGINAL, LONGEST = 24, 24 * 32
ROPE: dict[str, dict[str, Any]] = {
    kind: {
        "base": "micro-phi3",
        "llm": {
            "original_max_position_embeddings": ORIGINAL,
            "max_position_embeddings": LONGEST,
            "rope_scaling": {"type": kind},
        },
    }
    for kind in ("su", "yarn")
}
ROPE["plain"] = {"base": "micro-phi3", "llm": {"rope_scaling": None}}


class AnySession(Protocol):
    def prefill(self, input_ids: np.ndarray) -> np.ndarray: ...
    def decode(self, token_ids: np.ndarray) -> np.ndarray: ...


def restated(kind: str) -> Restatement:
    config = read_config(ROPE[kind])
    return Restatement(config, seeded_model(config)[1])


def ids(length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 300, (1, length))


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], AnySession]:
    """("eager" or "engine", kind) -> a session; engines are exported when first asked for."""
    made: dict[tuple[str, str], AnySession] = {}

    def engine(kind: str) -> AnySession:
        folder: Path = tmp_path_factory.mktemp(kind)
        checkpoint = write_checkpoint(ROPE[kind], folder / "checkpoint")
        export_engine(ExportRequest(str(checkpoint), folder / "engine.plan", "fp32", max_seq=64, tokenizer=False))
        return TroL.load(folder / "engine.plan").new_session()

    def eager(kind: str) -> AnySession:
        config, read = seeded_model(ROPE[kind])
        return EagerSession(eager_model(config, as_torch(read)))

    def session(runner: str, kind: str) -> AnySession:
        if (runner, kind) not in made:
            made[runner, kind] = {"engine": engine, "eager": eager}[runner](kind)
        return made[runner, kind]

    return session


CASES = pytest.mark.parametrize(
    ("runner", "kind"),
    [("eager", "su"), ("engine", "su"), ("eager", "yarn"), ("eager", "plain")],
)


@CASES
@pytest.mark.parametrize("length", [ORIGINAL - 1, ORIGINAL, ORIGINAL + 1])
def test_a_prompt_takes_the_long_factors_when_it_is_longer_than_the_original_maximum(
    sessions: Callable[[str, str], AnySession], runner: str, kind: str, length: int
) -> None:
    prompt = ids(length)
    expected = restated(kind).prompt(prompt[0]).logits[-1:]
    assert_close(f"logits of {length} tokens", sessions(runner, kind).prefill(prompt), expected)


@CASES
def test_decoding_past_the_limit_keeps_cached_keys_on_the_short_factors(
    sessions: Callable[[str, str], AnySession], runner: str, kind: str
) -> None:
    """The switch is per call: new queries and keys turn to the long factors, what is cached stays as it is."""
    prompt, tokens = ids(ORIGINAL - 2), ids(5, seed=2)[0]
    model, session = restated(kind), sessions(runner, kind)
    model.prompt(prompt[0])
    session.prefill(prompt)
    for token in tokens:
        length = len(model.keys[0]) + 1
        assert_close(f"logits of {length} tokens", session.decode(np.array([token]))[0], model.step(token))


@CASES
@pytest.mark.parametrize("length", [ORIGINAL, ORIGINAL + 1])
def test_every_part_of_a_prompt_takes_the_tables_of_its_whole_length(
    sessions: Callable[[str, str], AnySession], runner: str, kind: str, length: int
) -> None:
    """The first part alone would be short of the switch."""
    prompt = ids(length)
    session: Any = sessions(runner, kind)
    if runner == "eager":
        session.reset()
        session.extend(prompt[:, :10], known=length)
        found = session.extend(prompt[:, 10:])
    else:
        found = Session(session._backend, session._config, session._limits, prefill_chunk=10).prefill(prompt)
    assert_close(f"logits of {length} tokens", found, restated(kind).prompt(prompt[0]).logits[-1:])


def test_eager_keeps_the_very_keys_it_cached_before_the_switch(sessions: Callable[[str, str], AnySession]) -> None:
    session = sessions("eager", "su")
    assert isinstance(session, EagerSession)
    session.prefill(ids(ORIGINAL))
    before = [cache.clone() for cache in session.caches]
    session.decode(np.array([5]))
    for old, new in zip(before, session.caches, strict=True):
        assert torch.equal(old[:, :, :ORIGINAL], new[:, :, :ORIGINAL])


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_the_factors_and_the_scale_matter_at_the_switch(kind: str) -> None:
    """A restatement that never switches is far from one that does, so the equalities above see the switch."""
    config = read_config(ROPE[kind])
    short = config["llm"]["rope_scaling"]["short_factor"]
    late = read_config(config, {"llm": {"rope_scaling": {"long_factor": short}}})
    prompt = ids(ORIGINAL + 1)[0]
    switched = restated(kind).prompt(prompt).logits[-1]
    never = Restatement(late, seeded_model(config)[1]).prompt(prompt).logits[-1]
    assert np.abs(switched - never).max() > 0.01 * np.abs(switched).max()


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        ("su", math.sqrt(1 + math.log(32) / math.log(ORIGINAL))),
        ("yarn", 0.1 * math.log(32) + 1),
        ("plain", 1.0),
    ],
)
def test_tables_are_scaled_by_the_stretch_of_the_context(kind: str, scale: float) -> None:
    config, _ = seeded_model(ROPE[kind])
    assert table_scale(config.decoder.rope) == pytest.approx(scale)


def test_each_row_of_a_batch_switches_by_its_own_length(sessions: Callable[[str, str], AnySession]) -> None:
    """The official code looks at the longest row of a batch; here a row computes what it computes alone."""
    session: Any = sessions("engine", "su")
    long, short, tokens = ids(ORIGINAL - 1), ids(9, seed=4), ids(4, seed=3)[0]
    alone = []
    for prompt in (long, short):
        rows = [session.prefill(prompt), *(session.decode(np.array([token])) for token in tokens)]
        alone.append(np.stack(rows, axis=1))
    padded = np.concatenate([np.zeros((1, long.size - short.size), np.int64), short], axis=1)
    mask = np.ones((2, long.size), np.int64)
    mask[1, : long.size - short.size] = 0
    together = [session.prefill(np.concatenate([long, padded]), None, mask)]
    together += [session.decode(np.array([token, token])) for token in tokens]
    assert_close("logits", np.stack(together, axis=1), np.concatenate(alone))
