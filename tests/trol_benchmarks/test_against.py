from __future__ import annotations

import pytest

from trol_benchmarks.against import Round, Times, command_words, highest, main, times_in, times_pattern, times_record
from trol_benchmarks.resident_memory import Peak, Resident
from trol_runtime.errors import TrolError, UsageError

SENTENCE = r"prefill (?P<prefill_s>[\d.]+) s, decode (?P<decode_ms>\d+) ms"


def rounds(*times: tuple[float, float]) -> list[Round]:
    return [Round(Times(*pair), Peak()) for pair in times]


def test_times_are_read_in_the_units_their_groups_name() -> None:
    assert times_in("loading ...\nprefill 2.5 s, decode 40 ms\n", times_pattern(SENTENCE)) == Times(2.5, 0.04)


def test_of_several_runs_in_one_output_the_last_counts() -> None:
    printed = "prefill 9.0 s, decode 99 ms\nprefill 2.5 s, decode 40 ms\n"
    assert times_in(printed, times_pattern(SENTENCE)) == Times(2.5, 0.04)


def test_a_pattern_may_span_lines() -> None:
    pattern = times_pattern(r"(?s)decode_s=(?P<decode_s>[\d.]+).*prefill_ms=(?P<prefill_ms>\d+)")
    assert times_in("decode_s=0.25\nprefill_ms=1500\n", pattern) == Times(1.5, 0.25)


def test_a_baseline_that_prints_something_else_is_reported_with_the_pattern() -> None:
    with pytest.raises(TrolError, match=r"nothing the baseline printed matches --pattern prefill.*run it alone"):
        times_in("out of memory\n", times_pattern(SENTENCE))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("(", "--pattern is no regular expression", id="not a regular expression"),
        pytest.param(r"(?P<prefill_s>\d+)", "exactly one of the named groups decode_s and decode_ms", id="no decode"),
        pytest.param(
            r"(?P<prefill_s>\d+) (?P<prefill_ms>\d+) (?P<decode_s>\d+)",
            "exactly one of the named groups prefill_s and prefill_ms",
            id="prefill twice",
        ),
    ],
)
def test_a_pattern_that_cannot_give_both_times_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        times_pattern(text)


@pytest.mark.parametrize("printed", ["prefill 2.5. s, decode 40 ms", "prefill . s, decode 40 ms"])
def test_what_a_group_finds_must_be_a_number(printed: str) -> None:
    with pytest.raises(TrolError, match=r"^the group prefill_s of --pattern found '.*' in what .* expected a number"):
        times_in(printed, times_pattern(SENTENCE))


@pytest.mark.parametrize(
    ("command", "message"),
    [("it's", r"^--baseline is no command \(No closing quotation\)"), ("", "^--baseline is empty"), (" ", "is empty")],
)
def test_a_baseline_that_is_no_command_is_refused(command: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        command_words(command)


def test_a_shape_that_is_no_prompt_is_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="expected --crops >= 0"):
        main(["engine.plan", "--baseline", "program", "--pattern", SENTENCE, "--crops", "-1"])


def test_the_ratio_says_how_much_of_the_baselines_time_the_engine_takes() -> None:
    record = times_record({"engine": rounds((1, 0.1), (3, 0.2)), "baseline": rounds((4, 0.4), (4, 0.8))})
    assert record["prefill_s"]["engine"]["median"] == 2
    assert record["prefill_s"]["engine_to_baseline"] == {"of_medians": 0.5, "per_round": [0.25, 0.75]}
    assert record["decode_s"]["engine_to_baseline"]["per_round"] == [0.25, 0.25]


def test_memory_is_that_of_the_round_that_held_the_most() -> None:
    peaks = [Peak(total=Resident(file=size)) for size in (1, 3, 2)]
    assert highest([Round(Times(1, 1), peak) for peak in peaks]) is peaks[1]


def test_threads_must_be_said_when_the_baseline_wants_to_know_them() -> None:
    with pytest.raises(UsageError, match=r"the baseline's command holds \{threads\}: say how many with --threads"):
        main(["engine.plan", "--baseline", "program {threads}", "--pattern", SENTENCE])
