"""The record of an answer, and the line of its times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from trol_runtime import TroL
from trol_runtime.answer_report import answer_record, kept_memory, summary
from trol_runtime.generation import Generation
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.session import Session
from trol_runtime.tokenizer import TextTokenizer

GREEDY = GenerationConfig()


@pytest.fixture(scope="module")
def model(micro_engine: Callable[..., Path]) -> TroL:
    return TroL.load(micro_engine("internlm2"))


def answer(
    new_tokens: int, timings_ms: dict[str, float], config: GenerationConfig = GREEDY, **facts: Any
) -> Generation:
    """An answer that has come as far as `new_tokens`."""
    defaults: dict[str, Any] = {"max_new_tokens": 256, "prompt_tokens": 1387, "image_tokens": 1225, "reused_tokens": 0}
    return Generation(
        steps=cast(Any, iter([])),
        tokenizer=cast(TextTokenizer, None),
        eos_token_ids=(2,),
        config=config,
        timings_ms=timings_ms,
        text="a cat",
        token_ids=list(range(5, 5 + new_tokens)),
        finish_reason="length",
        **defaults | facts,
    )


@pytest.mark.parametrize(
    ("made", "line"),
    [
        pytest.param(
            answer(16, {"vision": 385.28, "prefill": 196.8, "decode": 187.5}),
            "vision 385 ms, prompt 1387 tokens (1225 of pictures, 0 reused) in 197 ms, answer 16 tokens, 12.5 ms each "
            "after the first",
            id="a picture",
        ),
        pytest.param(
            answer(2, {"prefill": 47_213.0, "decode": 295.2}, image_tokens=0, reused_tokens=1300),
            "prompt 1387 tokens (0 of pictures, 1300 reused) in 47.21 s, answer 2 tokens, 295 ms each after the first",
            id="no picture, a kept prefix, seconds",
        ),
        pytest.param(
            answer(1, {"prefill": 0.5, "decode": 0.0001}, prompt_tokens=20, image_tokens=0),
            "prompt 20 tokens (0 of pictures, 0 reused) in 0.5 ms, answer 1 token",
            id="one token comes with the prompt",
        ),
        pytest.param(
            answer(0, {"prefill": 0.5}, prompt_tokens=20, image_tokens=0),
            "prompt 20 tokens (0 of pictures, 0 reused) in 0.5 ms, answer 0 tokens",
            id="stopped before the first",
        ),
        pytest.param(
            answer(3, {"prefill": 0.5, "decode": 8.0}, GenerationConfig(temperature=0.7, seed=11), image_tokens=0),
            "prompt 1387 tokens (0 of pictures, 0 reused) in 0.5 ms, answer 3 tokens, 4 ms each after the first, "
            "seed 11",
            id="drawn, which the seed repeats",
        ),
        pytest.param(
            answer(3, {"prefill": 0.5, "decode": 800.0}, GenerationConfig(num_beams=5), image_tokens=0),
            "prompt 1387 tokens (0 of pictures, 0 reused) in 0.5 ms, answer 3 tokens in 800 ms",
            id="beams, which search on behind the answer's end",
        ),
        pytest.param(
            answer(0, {"prefill": 0.5}, GenerationConfig(num_beams=5), image_tokens=0),
            "prompt 1387 tokens (0 of pictures, 0 reused) in 0.5 ms, answer 0 tokens",
            id="stopped before its search was done",
        ),
    ],
)
def test_the_times_are_those_of_vision_of_the_prompt_and_of_each_further_token(
    model: TroL, made: Generation, line: str
) -> None:
    assert summary(made, model) == line


@pytest.mark.parametrize(("wanted", "clipped"), [(None, True), (256, True), (101, True), (100, False), (99, False)])
def test_an_answer_that_was_allowed_more_than_there_is_room_for_says_so(
    model: TroL, wanted: int | None, clipped: bool
) -> None:
    config = GenerationConfig(max_new_tokens=wanted)
    line = summary(answer(1, {"prefill": 1.0}, config, max_new_tokens=min(100, wanted or 256)), model)
    assert line.endswith("; the answer is limited to 100 tokens: the engine holds 640") is clipped


def test_the_record_has_the_documented_keys_and_milliseconds() -> None:
    made = answer(2, {"prefill": 1.23456, "decode": 2.0})
    assert answer_record(made, load_ms=80.0) == {
        "text": "a cat",
        "token_ids": [5, 6],
        "finish_reason": "length",
        "prompt_tokens": 1387,
        "image_tokens": 1225,
        "new_tokens": 2,
        "timings_ms": {"load": 80.0, "vision": 0.0, "prefill": 1.235, "decode": 2.0},
    }


def test_the_record_of_an_answer_that_was_drawn_has_its_seed() -> None:
    drawn = answer(2, {"prefill": 1.0}, GenerationConfig(top_k=5, seed=2**64 - 1))
    assert answer_record(drawn, load_ms=80.0)["seed"] == 2**64 - 1


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        (3 * 2**20, "the kept prefix takes 3.00 MiB of memory; --no-keep-prefix does without"),
        (0, "no prefix is kept any more"),
    ],
)
def test_what_a_kept_prefix_takes_is_said_with_how_to_do_without(taken: int, said: str) -> None:
    class Kept:
        prefix_bytes = taken

    assert kept_memory(cast(Session, Kept())) == said
