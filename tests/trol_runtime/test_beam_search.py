"""Beam search against recorded searches of transformers 4.41, and on models whose best answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden import table_language_model
from golden.table_language_model import TableLanguageModel
from trol_runtime.beam_search import beam_search
from trol_runtime.completion import Completion
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.logits_processing import log_softmax

RECORDED = json.loads(Path(table_language_model.__file__).with_name("beam_search.json").read_text(encoding="utf-8"))
EOS, PAD = 3, 0


class TableBeams:
    """Rows of tokens over a model that looks them up, and a record of what the search asked for."""

    def __init__(self, model: Any, prompts: np.ndarray) -> None:
        self.model = model
        self.rows = prompts
        self.prompt_length = prompts.shape[1]
        self.calls: list[str] = []
        self.fed: list[list[int]] = []

    def repeat(self, times: int) -> None:
        self.calls.append("repeat")
        self.prompt_of_row = np.arange(len(self.rows)).repeat(times)
        self.rows = self.rows.repeat(times, axis=0)

    def reorder(self, sources: np.ndarray) -> None:
        self.calls.append("reorder")
        assert sources.dtype == np.int64
        assert (sources != np.arange(len(self.rows))).any(), "a reorder that changes nothing costs time"
        assert (self.prompt_of_row[sources] == self.prompt_of_row).all(), "an answer changes its prompt"
        generated = self.rows[sources, self.prompt_length :]
        self.rows = np.hstack([self.rows[:, : self.prompt_length], generated])

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        self.calls.append("decode")
        self.fed.append(token_ids.tolist())
        assert token_ids.dtype == np.int64
        self.rows = np.column_stack([self.rows, token_ids])
        return self.model.logits(self.rows)


class LastTokenModel:
    """Probabilities that depend on the last token alone: {token: {next: probability}}; others are next to nothing."""

    def __init__(self, probabilities: dict[int, dict[int, float]], vocab: int = 8) -> None:
        self.table = np.full((vocab, vocab), 1e-9, np.float32)
        for token, following in probabilities.items():
            for next_token, probability in following.items():
                self.table[token, next_token] = probability

    def logits(self, rows: np.ndarray) -> np.ndarray:
        return np.log(self.table[rows[:, -1]])


def searched(
    beams: TableBeams,
    max_new_tokens: int,
    eos: tuple[int, ...] = (EOS,),
    held_off: tuple[int, ...] | None = None,
    **options: Any,
) -> Completion:
    """held_off: None for eos, as in transformers"""
    prompts = beams.rows
    return beam_search(
        beams,
        beams.model.logits(prompts),
        GenerationConfig(**options),
        max_new_tokens=max_new_tokens,
        eos_token_ids=eos,
        held_off_ids=eos if held_off is None else held_off,
        pad_token_id=PAD,
        prompts=prompts,
    )


def recorded_search(recorded: dict[str, Any], prompts: np.ndarray | None = None) -> tuple[Completion, np.ndarray]:
    """What is found for the recorded prompts, or for those given, and these prompts."""
    model = TableLanguageModel(**recorded["table"])
    prompts = model.prompts(*recorded["prompts"]) if prompts is None else prompts
    found = beam_search(
        TableBeams(model, prompts),
        model.logits(prompts),
        GenerationConfig(**recorded["config"]),
        **{name: recorded[name] for name in ("max_new_tokens", "eos_token_ids", "pad_token_id")},
        held_off_ids=recorded["eos_token_ids"],
        prompts=prompts,
    )
    return found, prompts


# --- transformers


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: f"seed{recorded['table']['seed']}")
def test_tokens_and_scores_are_those_of_transformers(recorded: dict[str, Any]) -> None:
    found, _ = recorded_search(recorded)
    assert found.token_ids.tolist() == recorded["token_ids"]
    # Sums of at most 20 float32 log-probabilities, whose rounding differs between numpy and torch.
    np.testing.assert_allclose(found.scores, recorded["scores"], rtol=1e-5)


def test_the_recorded_searches_cover_what_they_are_for() -> None:
    def count(what: Any) -> int:
        return sum(map(what, RECORDED))

    assert count(lambda search: len({len(set(row)) for row in search["token_ids"]}) > 1) > 10
    assert count(lambda search: len(search["token_ids"]) > 1) > 40
    assert count(lambda search: len(search["eos_token_ids"]) > 1) > 10
    assert count(lambda search: not search["eos_token_ids"]) > 10
    assert count(lambda search: len(search["token_ids"][0]) < search["max_new_tokens"]) > 20
    assert count(lambda search: search["config"]["early_stopping"]) > 20


# --- batches and rows


@pytest.mark.parametrize("recorded", [search for search in RECORDED if search["prompts"][0] == 3][:8])
def test_a_prompt_gets_the_same_answer_in_a_batch_and_alone(recorded: dict[str, Any]) -> None:
    together, prompts = recorded_search(recorded)
    for row, prompt in enumerate(prompts):
        alone, _ = recorded_search(recorded, prompt[None])
        steps = alone.token_ids.shape[1]
        assert together.token_ids[row, :steps].tolist() == alone.token_ids[0].tolist()
        assert (together.token_ids[row, steps:] == recorded["pad_token_id"]).all()
        assert together.scores[row] == alone.scores[0]


def test_rows_of_a_finished_prompt_are_fed_padding_until_the_others_have_finished() -> None:
    model = LastTokenModel({1: {EOS: 0.9, 4: 0.1}, 4: {EOS: 1}, 2: {5: 0.9, 6: 0.1}, 5: {5: 0.9, 6: 0.1}, 6: {6: 1}})
    beams = TableBeams(model, np.array([[1], [2]]))
    found = searched(beams, 5, num_beams=2, early_stopping=True)
    assert found.token_ids.tolist() == [[EOS, PAD, PAD, PAD, PAD], [5, 5, 5, 5, 5]]
    assert [fed[:2] for fed in beams.fed[2:]] == [[PAD, PAD]] * 2


def test_the_rows_are_repeated_once_and_moved_only_when_answers_change_places() -> None:
    """After the first choice all answers stem from the first row; these go on side by side."""
    model = LastTokenModel({1: {4: 0.6, 5: 0.4}, 4: {4: 1}, 5: {5: 1}})
    beams = TableBeams(model, np.array([[1]]))
    searched(beams, 4, num_beams=2)
    assert beams.calls == ["repeat", "reorder", "decode", "decode", "decode"]


def test_nothing_is_decoded_behind_the_last_token() -> None:
    beams = TableBeams(LastTokenModel({1: {4: 0.6, 5: 0.4}}), np.array([[1]]))
    assert searched(beams, 1, num_beams=2).token_ids.tolist() == [[4]]
    assert beams.calls == ["repeat"]


def test_a_search_that_is_over_decodes_no_further() -> None:
    model = LastTokenModel({1: {EOS: 0.5, 4: 0.5}, 4: {EOS: 1}})
    beams = TableBeams(model, np.array([[1]]))
    searched(beams, 50, num_beams=2, early_stopping=True)
    assert beams.calls.count("decode") == 1


# --- the rules of the search


def test_a_likely_answer_behind_an_unlikely_first_token_is_found() -> None:
    model = LastTokenModel({1: {4: 0.6, 5: 0.4}, 4: {6: 0.5, 7: 0.5}, 5: {6: 1}})
    assert searched(TableBeams(model, np.array([[1]])), 2, num_beams=2).token_ids.tolist() == [[5, 6]]


def test_the_first_tokens_are_the_best_different_ones_however_improbable() -> None:
    beams = TableBeams(LastTokenModel({1: {4: 1, 6: 1e-8}}), np.array([[1]]))
    searched(beams, 2, num_beams=2)
    assert beams.fed == [[4, 6]]


@pytest.mark.parametrize(("num_beams", "tokens"), [(3, [EOS]), (2, [4, 6])])
def test_an_end_that_is_not_among_the_best_num_beams_is_forgotten(num_beams: int, tokens: list[int]) -> None:
    model = LastTokenModel({1: {4: 0.4, 5: 0.35, EOS: 0.25}, 4: {6: 0.6, 7: 0.4}, 5: {6: 0.6, 7: 0.4}})
    found = searched(TableBeams(model, np.array([[1]])), 2, num_beams=num_beams, length_penalty=0.0)
    assert found.token_ids.tolist() == [tokens]


@pytest.mark.parametrize(("length_penalty", "tokens"), [(-1.0, [EOS]), (0.0, [EOS]), (1.0, [4, 5, EOS])])
def test_the_length_penalty_chooses_between_short_and_long(length_penalty: float, tokens: list[int]) -> None:
    """At once log 0.45 = -0.80, in three tokens log(0.55 * 0.9 * 0.8) = -0.93."""
    model = LastTokenModel({1: {EOS: 0.45, 4: 0.55}, 4: {5: 0.9, EOS: 0.1}, 5: {EOS: 0.8, 6: 0.2}})
    found = searched(TableBeams(model, np.array([[1]])), 3, num_beams=2, length_penalty=length_penalty)
    assert found.token_ids.tolist() == [tokens]


def test_the_search_is_over_when_the_best_candidate_itself_is_the_last_answer_wanted() -> None:
    """Answers: log 0.6 = -0.51 and log(0.4 * 0.8) / 2 = -0.57, as good as the best that could go on."""
    beams = TableBeams(LastTokenModel({1: {EOS: 0.6, 4: 0.4}, 4: {EOS: 0.8, 5: 0.2}}), np.array([[1]]))
    assert searched(beams, 50, num_beams=2).token_ids.tolist() == [[EOS]]
    assert beams.calls.count("decode") == 1


def test_of_equal_answers_the_one_found_last_is_returned() -> None:
    model = LastTokenModel({1: {4: 1}, 4: {6: 0.5, 7: 0.5}})
    assert searched(TableBeams(model, np.array([[1]])), 2, num_beams=2).token_ids.tolist() == [[4, 7]]


def test_an_unfinished_answer_can_win_at_the_end() -> None:
    model = LastTokenModel({1: {4: 0.9, EOS: 0.1}, 4: {4: 0.9, EOS: 0.1}})
    found = searched(TableBeams(model, np.array([[1]])), 3, num_beams=2)
    assert found.token_ids.tolist() == [[4, 4, 4]]
    np.testing.assert_allclose(found.scores, [np.log(0.9)], rtol=1e-6)


def test_any_of_several_eos_ids_ends_an_answer_and_the_first_is_written() -> None:
    model = LastTokenModel({1: {4: 1}, 4: {6: 1}})
    found = searched(TableBeams(model, np.array([[1]])), 5, eos=(EOS, 6), num_beams=2)
    assert found.token_ids.tolist() == [[4, EOS]]
    np.testing.assert_allclose(found.logprobs, [[0, 0]], atol=1e-6)  # of 6, which came, not of EOS


def test_equal_scores_are_ranked_by_beam_and_then_by_id() -> None:
    model = LastTokenModel({1: {5: 0.5, 4: 0.5}, 4: {6: 0.5, 7: 0.5}, 5: {6: 0.5, 7: 0.5}})
    beams = TableBeams(model, np.array([[1]]))
    searched(beams, 3, num_beams=2)
    assert beams.fed == [[4, 5], [6, 7]]
    assert beams.rows.tolist() == [[1, 4, 6], [1, 4, 7]]


# --- what is returned


@pytest.mark.parametrize("recorded", [search for search in RECORDED if len(search["eos_token_ids"]) == 1][:20])
def test_log_probabilities_are_the_models_own_whatever_penalty_chose_the_tokens(recorded: dict[str, Any]) -> None:
    found, prompts = recorded_search(recorded)
    model = TableLanguageModel(**recorded["table"])
    for prompt, token_ids, logprobs in zip(prompts, found.token_ids, found.logprobs, strict=True):
        ends = np.flatnonzero(token_ids == recorded["eos_token_ids"])
        length = ends[0] + 1 if len(ends) else len(token_ids)
        said = [np.append(prompt, token_ids[:n])[None] for n in range(length)]
        own = [log_softmax(model.logits(ids))[0, next_id] for ids, next_id in zip(said, token_ids, strict=False)]
        assert logprobs.tolist() == own + [0] * (len(token_ids) - length)


@pytest.mark.parametrize("length_penalty", [0.5, 1.0, 2.0])
def test_without_processors_the_score_is_the_sum_of_the_log_probabilities_over_the_power_of_the_length(
    length_penalty: float,
) -> None:
    model = TableLanguageModel(seed=1, vocab=50)
    found = searched(TableBeams(model, model.prompts(2, 3)), 6, eos=(), num_beams=3, length_penalty=length_penalty)
    np.testing.assert_allclose(found.scores, found.logprobs.sum(axis=1) / 6**length_penalty, rtol=1e-6)


def test_repetition_penalty_counts_the_prompt() -> None:
    model = LastTokenModel({1: {1: 0.5, 4: 0.3, 5: 0.2}, 4: {1: 0.6, 5: 0.4}})
    assert searched(TableBeams(model, np.array([[1]])), 2, num_beams=2).token_ids.tolist() == [[1, 1]]
    penalised = searched(TableBeams(model, np.array([[1]])), 2, num_beams=2, repetition_penalty=5.0)
    assert penalised.token_ids.tolist() == [[4, 5]]


def test_min_new_tokens_puts_the_end_off() -> None:
    model = LastTokenModel({1: {EOS: 0.9, 4: 0.1}, 4: {EOS: 0.9, 4: 0.1}})
    assert searched(TableBeams(model, np.array([[1]])), 5, num_beams=2).token_ids.tolist() == [[EOS]]
    put_off = searched(TableBeams(model, np.array([[1]])), 5, num_beams=2, min_new_tokens=2)
    assert put_off.token_ids.tolist() == [[4, 4, EOS]]


def test_min_new_tokens_puts_off_what_ends_a_text_and_is_no_end_of_the_search() -> None:
    """The turn-end mark, here 6: neither it nor eos comes before, and behind it the search goes on."""
    model = LastTokenModel({1: {6: 0.9, 4: 0.1}, 4: {6: 0.9, EOS: 0.06, 4: 0.04}, 6: {6: 0.9, 7: 0.1}})
    assert searched(TableBeams(model, np.array([[1]])), 3, num_beams=2).token_ids.tolist() == [[6, 6, 6]]
    put_off = searched(TableBeams(model, np.array([[1]])), 3, num_beams=2, min_new_tokens=2, held_off=(EOS, 6))
    assert put_off.token_ids.tolist() == [[4, 4, 6]]
