"""Options of a generation: defaults, names of official settings, and the one line for each mistake."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from trol_runtime.errors import LimitError, UsageError
from trol_runtime.generation_config import GenerationConfig


def test_without_options_generation_is_greedy() -> None:
    config = GenerationConfig()
    assert not config.do_sample
    assert (config.num_beams, config.max_new_tokens, config.repetition_penalty) == (1, None, 1.0)


@pytest.mark.parametrize("option", [{"temperature": 1.0}, {"top_k": 5}, {"top_p": 1.0}, {"min_p": 0.0}])
def test_any_sampling_option_turns_sampling_on(option: dict[str, Any]) -> None:
    assert GenerationConfig(**option, seed=7).do_sample


def test_numbers_of_numpy_become_plain_ones() -> None:
    config = GenerationConfig(max_new_tokens=np.int64(5), top_p=np.float32(0.5), length_penalty=1, seed=np.uint64(3))  # type: ignore[arg-type]
    assert [type(value) for value in (config.max_new_tokens, config.top_p, config.length_penalty, config.seed)] == [
        int,
        float,
        float,
        int,
    ]
    assert config == GenerationConfig(max_new_tokens=5, top_p=0.5, seed=3)


@pytest.mark.parametrize(
    ("stop", "texts"),
    [("###", ("###",)), (["a", "b"], ("a", "b")), (("a",), ("a",)), ((), ())],
    ids=["one text", "a list", "a tuple", "none"],
)
def test_stop_is_one_text_or_several(stop: Any, texts: tuple[str, ...]) -> None:
    assert GenerationConfig(stop=stop).stop == texts


def test_a_seed_is_told_where_tokens_are_drawn_and_none_was_given() -> None:
    drawn = GenerationConfig(temperature=0.5, max_new_tokens=7)
    one, other = drawn.seeded(), drawn.seeded()
    assert one.seed is not None
    assert one.seed != other.seed
    assert one == drawn.replaced(seed=one.seed)
    assert one.seeded() == one
    greedy = GenerationConfig(num_beams=3)
    assert greedy.seeded() == greedy


# --- lengths


@pytest.mark.parametrize(
    ("asked", "room", "tokens"), [(None, 1000, 256), (None, 9, 9), (5, 9, 5), (500, 1000, 500), (500, 9, 9)]
)
def test_an_answer_has_what_was_asked_for_as_far_as_there_is_room(asked: int | None, room: int, tokens: int) -> None:
    assert GenerationConfig(max_new_tokens=asked).new_tokens(default=256, room=room) == tokens


@pytest.mark.parametrize("asked", [None, 300])
def test_the_least_number_of_tokens_may_fill_the_room_and_no_more(asked: int | None) -> None:
    config = GenerationConfig(min_new_tokens=9, max_new_tokens=asked)
    assert config.new_tokens(default=256, room=9) == 9
    with pytest.raises(LimitError) as raised:
        config.new_tokens(default=256, room=8)
    assert str(raised.value) == (
        "min_new_tokens is 9, but the prompt leaves room for 8 in the engine; lower it, shorten the prompt, or rebuild "
        "the engine with a larger --max-seq"
    )


def test_the_least_number_of_tokens_is_not_above_the_default() -> None:
    with pytest.raises(UsageError) as raised:
        GenerationConfig(min_new_tokens=9).new_tokens(default=8, room=1000)
    assert str(raised.value) == "min_new_tokens is 9, more than max_new_tokens, 8; lower the one or raise the other"


# --- official settings


def test_the_demo_is_greedy_with_256_tokens() -> None:
    assert GenerationConfig.named("demo") == GenerationConfig(max_new_tokens=256)


@pytest.mark.parametrize(
    ("benchmark", "max_new_tokens"),
    [("pope", 5), ("mmbench_cn_dev", 5), ("mmmu", 5), ("mathvista", 512), ("vizwiz", 512), ("mm-vet", 1024)],
)
def test_a_benchmark_is_searched_with_five_beams(benchmark: str, max_new_tokens: int) -> None:
    assert GenerationConfig.named(benchmark) == GenerationConfig(max_new_tokens=max_new_tokens, num_beams=5)


def test_every_dataset_of_the_official_prompts_has_settings(golden_prompts: dict[str, Any]) -> None:
    """Some datasets were recorded with several prompts, the variant behind the name."""
    recorded = {name.removesuffix("_with_tag") for name in golden_prompts["phi3"]["prompts"]}
    datasets = {name.rsplit("_", 1)[0] if name.endswith(VARIANTS) else name for name in recorded}
    assert len(datasets) == 24
    for dataset in datasets:
        assert GenerationConfig.named(dataset).max_new_tokens in (5, 256, 512, 1024)


VARIANTS = ("_text", "_choice", "_open", "_yn")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as raised:
        GenerationConfig.named("popes")
    assert str(raised.value) == (
        "no generation settings are named 'popes', expected one of demo, mme, pope, sqa, mmbench, mmbench_cn, "
        "mmbench_dev, mmbench_cn_dev, seed, qbench, ai2d, mmstar, vqav2, gqa, chartqa, hallusionbench, textvqa, mmmu, "
        "vizwiz, mathvista, mathverse, visualwebbench, llava, mm-vet"
    )


# --- replaced


def test_replaced_changes_what_it_names_and_nothing_else() -> None:
    config = GenerationConfig.named("pope")
    assert config.replaced(num_beams=1, top_k=3) == GenerationConfig(max_new_tokens=5, top_k=3)
    assert config == GenerationConfig.named("pope")


def test_replaced_names_its_options_when_there_is_no_such() -> None:
    with pytest.raises(UsageError) as raised:
        GenerationConfig().replaced(beams=5)
    assert str(raised.value) == (
        "unknown option 'beams', expected one of max_new_tokens, min_new_tokens, num_beams, length_penalty, "
        "early_stopping, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop"
    )


def test_what_is_replaced_is_checked_too() -> None:
    with pytest.raises(UsageError, match="num_beams is 5 and top_k given"):
        GenerationConfig.named("pope").replaced(top_k=3)


# --- mistakes

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "max_new_tokens is 0, expected a whole number, 1 or more"),
    ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0, expected a whole number, 1 or more"),
    ({"max_new_tokens": True}, "max_new_tokens is True, expected a whole number, 1 or more"),
    ({"max_new_tokens": "5"}, "max_new_tokens is '5', expected a whole number, 1 or more"),
    ({"min_new_tokens": -1}, "min_new_tokens is -1, expected a whole number, 0 or more"),
    ({"min_new_tokens": None}, "min_new_tokens is None, expected a whole number, 0 or more"),
    ({"num_beams": 0}, "num_beams is 0, expected a whole number, 1 or more"),
    ({"length_penalty": math.inf, "num_beams": 2}, "length_penalty is inf, expected a number from -10 to 10"),
    ({"early_stopping": "never", "num_beams": 2}, "early_stopping is 'never', expected True or False"),
    (
        {"temperature": 0},
        "temperature is 0, expected a number from 0.000001 to 1000000; leave it out to take the best token each time",
    ),
    (
        {"temperature": math.nan},
        "temperature is nan, expected a number from 0.000001 to 1000000; leave it out to take the best token each time",
    ),
    ({"top_k": 0}, "top_k is 0, expected a whole number, 1 or more; leave it out to draw from all tokens"),
    ({"top_p": 0.0}, "top_p is 0.0, expected a number above 0, at most 1; leave it out to draw from all tokens"),
    ({"top_p": 1.1}, "top_p is 1.1, expected a number above 0, at most 1; leave it out to draw from all tokens"),
    ({"min_p": -0.1}, "min_p is -0.1, expected a number from 0 to 1"),
    ({"min_p": 1.5}, "min_p is 1.5, expected a number from 0 to 1"),
    (
        {"repetition_penalty": 0.0},
        "repetition_penalty is 0.0, expected a number from 0.000001 to 1000000; 1 penalises nothing",
    ),
    ({"seed": -1, "top_k": 5}, "seed is -1, expected a whole number from 0 to 18446744073709551615"),
    (
        {"seed": 2**64, "top_k": 5},
        "seed is 18446744073709551616, expected a whole number from 0 to 18446744073709551615",
    ),
    ({"seed": False, "top_k": 5}, "seed is False, expected a whole number from 0 to 18446744073709551615"),
    ({"stop": ["a", ""]}, "stop holds an empty text, which would end every answer before it begins; leave it out"),
    ({"stop": [5]}, "stop is [5], expected a text or a list of texts"),
    ({"stop": b"a"}, "stop is b'a', expected a text or a list of texts"),
]

CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    (
        {"min_new_tokens": 6, "max_new_tokens": 5},
        "min_new_tokens is 6, more than max_new_tokens, 5; lower the one or raise the other",
    ),
    (
        {"num_beams": 5, "temperature": 0.7, "top_p": 0.9},
        "num_beams is 5 and temperature and top_p given, but beams are not drawn; set num_beams to 1, or leave out "
        "temperature and top_p",
    ),
    (
        {"seed": 1},
        "seed is 1, but nothing is drawn; give temperature, top_k, top_p or min_p too, or leave out seed",
    ),
    (
        {"length_penalty": 2.0},
        "length_penalty is 2.0, but only beams heed it and num_beams is 1; set num_beams to 2 or more, or leave out "
        "length_penalty",
    ),
    (
        {"early_stopping": True},
        "early_stopping is True, but only beams heed it and num_beams is 1; set num_beams to 2 or more, or leave out "
        "early_stopping",
    ),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES + CONTRADICTIONS)
def test_each_mistake_has_its_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        GenerationConfig(**options)
    assert str(raised.value) == message


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_the_first_and_the_last_seed_are_accepted(seed: int) -> None:
    assert GenerationConfig(temperature=1.0, seed=seed).seed == seed
