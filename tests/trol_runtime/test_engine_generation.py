"""Generation through TroL: batches, beams and sampling, held to rows alone, to the eager model, to the same seed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from conftest import MICRO_MAX_SEQ
from labelled_prompts import Labels, WatchedBackend, answerer_of, batch, shown, text
from small_prompts import assert_close, picture, prompt_ids, text_ids
from trol_graphs.eager import EagerSession
from trol_runtime import TroL
from trol_runtime.errors import LimitError, UsageError
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.session import Session

QUESTION = "What is in the picture?"


def wide_session(model: TroL, rows: int) -> Session:
    """A session of an engine built for that many rows."""
    return Session(model._backend, model.config, replace(model.manifest.limits, max_batch=rows))


def rows_of_a_batch(model: TroL) -> list[Labels]:
    """Different lengths, with no, one and two pictures; beyond and below phi3's 96 tokens."""
    config = model.config
    return [
        text(config, 120),
        text(config, 5, seed=1) + shown(config, 1) + text(config, 3, seed=2),
        shown(config, 2) + text(config, 2, seed=3) + shown(config, 3) + text(config, 9, seed=4),
    ]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64, as a reference."""
    logits = logits.astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


# --- batches


def test_rows_of_a_batch_answer_as_each_does_alone_and_end_when_each_does(model: TroL) -> None:
    """An id that one row says early and another late, or never, is what ends them."""
    rows, steps = rows_of_a_batch(model), 12
    free = model.generate_ids(**batch(model.config, rows), max_new_tokens=steps, eos_token_id=[])
    ends = [int(free[0, 2]), int(free[1, 7])]
    together = model.complete(**batch(model.config, rows), max_new_tokens=steps, eos_token_id=ends)
    lengths = []
    for row, labels in enumerate(rows):
        alone = model.complete(**batch(model.config, [labels]), max_new_tokens=steps, eos_token_id=ends)
        length = alone.token_ids.shape[1]
        lengths.append(length)
        assert together.token_ids[row, :length].tolist() == alone.token_ids[0].tolist()
        assert set(together.token_ids[row, length:].tolist()) <= {model.config.pad_token_id}
        # Sums of a batch come in another order: log-probabilities move by less than the fp32 budget of logits, 1e-3.
        np.testing.assert_allclose(together.logprobs[row, :length], alone.logprobs[0], atol=1e-3)
        assert not together.logprobs[row, length:].any()
        np.testing.assert_allclose(together.scores[row], alone.scores[0], atol=1e-3)
    assert len(set(lengths)) > 1


def test_a_row_that_is_drawn_depends_on_its_place_and_not_on_its_neighbours(model: TroL) -> None:
    rows = rows_of_a_batch(model)
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 50, "seed": 7, "max_new_tokens": 10, "eos_token_id": []}
    together = model.generate_ids(**batch(model.config, rows), **options)
    alone = model.generate_ids(**batch(model.config, rows[:1]), **options)
    np.testing.assert_array_equal(together[:1], alone)
    others = model.generate_ids(**batch(model.config, [[5, 6], rows[1], [7]]), **options)
    np.testing.assert_array_equal(together[1], others[1])
    same = model.generate_ids(**batch(model.config, [rows[0]] * 3), **options)
    assert len({tuple(row) for row in same.tolist()}) == 3  # equal prompts, three streams


def test_log_probabilities_are_those_of_the_eager_model(model: TroL, eager: EagerSession) -> None:
    ids, steps = text_ids(model.config, 20), 6
    found = model.complete(ids, max_new_tokens=steps, eos_token_id=[], temperature=2.0, seed=1)
    logits = [eager.prefill(ids)]
    logits += [eager.decode(np.array([token])) for token in found.token_ids[0, :-1]]
    expected = [log_softmax(step[0])[token] for step, token in zip(logits, found.token_ids[0], strict=True)]
    np.testing.assert_allclose(found.logprobs[0], expected, atol=1e-4)
    assert found.scores[0] == pytest.approx(np.mean(found.logprobs[0]))


# --- the same whatever session


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"temperature": 1.0, "top_p": 0.9, "seed": 11}, id="sampling"),
        pytest.param({"num_beams": 3}, id="beams"),
    ],
)
def test_every_kind_of_session_gives_the_same_ids(model: TroL, options: dict[str, Any]) -> None:
    labels = text(model.config, 5) + shown(model.config, 1) + text(model.config, 9, seed=1)
    asked = batch(model.config, [labels])
    expected = model.generate_ids(**asked, max_new_tokens=10, **options)
    kept = model.new_session(keep_prefix=True)
    sessions = [model.new_session(prefill_chunk=7), kept, kept, kept.fork(), model.new_session()]
    for session in sessions:
        found = model.generate_ids(**asked, session=session, max_new_tokens=10, **options)
        np.testing.assert_array_equal(found, expected)
    assert kept.reused.tolist() == [len(labels) - 1]


def test_another_seed_draws_other_ids_and_no_seed_another_one_each_time(model: TroL) -> None:
    ids = text_ids(model.config, 9)

    def drawn(**options: Any) -> list[int]:
        return model.generate_ids(ids, max_new_tokens=12, eos_token_id=[], temperature=1.5, **options)[0].tolist()

    assert drawn(seed=1) == drawn(seed=1)
    assert drawn(seed=1) != drawn(seed=2)
    assert drawn() != drawn()


# --- beams


LogProbs = Callable[[tuple[int, ...]], np.ndarray]


def eager_log_probs(eager: EagerSession, ids: np.ndarray, embeds: np.ndarray | None) -> LogProbs:
    """Tokens said -> log-probabilities of the next one, computed from the prompt on for every answer."""

    @cache
    def logprobs_behind(said: tuple[int, ...]) -> np.ndarray:
        logits = eager.prefill(ids, embeds)
        for token in said:
            logits = eager.decode(np.array([token]))
        return log_softmax(logits[0])

    return logprobs_behind


def official_search(logprobs_behind: LogProbs, beams: int, steps: int, eos: int) -> tuple[list[int], float]:
    """The official beam search once more, over all candidates and with nothing but lists."""
    running: dict[tuple[int, ...], float] = {(): 0.0}
    finished: list[tuple[float, tuple[int, ...]]] = []
    for _ in range(steps):
        candidates = [
            (total + value, (*said, token))
            for said, total in running.items()
            for token, value in enumerate(logprobs_behind(said))
        ]
        best = sorted(candidates, key=lambda candidate: -candidate[0])[: 2 * beams]
        finished += [(total / len(said), said) for total, said in best[:beams] if said[-1] == eos]
        finished = sorted(finished, key=lambda answer: -answer[0])[:beams]
        running = {said: total for total, said in [c for c in best if c[1][-1] != eos][:beams]}
        length = len(next(iter(running)))
        if len(finished) == beams and finished[-1][0] >= best[0][0] / length:
            break
    else:
        finished += [(total / len(said), said) for said, total in running.items()]
    score, said = max(finished)
    return list(said), score


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_a_search_finds_what_a_search_over_the_eager_model_finds(
    model: TroL, eager: EagerSession, pictures: int
) -> None:
    """Two pictures too, where the official code shows all beams of internlm2 the first one twice."""
    images = [picture(20, 20, seed) for seed in range(pictures)]
    pixels = model.preprocess(images) if images else None
    embeds = None if pixels is None else eager.encode(pixels)
    ids = prompt_ids(model.config, [3] * (pictures + 1), model.crops_per_image(images))
    logprobs_behind = eager_log_probs(eager, ids, embeds)
    free = model.generate_ids(ids, embeds, max_new_tokens=5, eos_token_id=[], num_beams=3)
    for eos in (-1, int(free[0, 1]), int(free[0, 3])):
        found = model.complete(ids, embeds, max_new_tokens=5, eos_token_id=eos, num_beams=3)
        tokens, score = official_search(logprobs_behind, beams=3, steps=5, eos=eos)
        assert found.token_ids[0].tolist() == tokens
        assert found.scores[0] == pytest.approx(score, abs=1e-4)  # fp32 logits of about 10, within their budget


def test_prompts_of_a_batch_are_searched_as_each_is_alone(model: TroL) -> None:
    rows, steps = rows_of_a_batch(model), 8
    free = model.generate_ids(**batch(model.config, rows[:1]), max_new_tokens=steps, eos_token_id=[], num_beams=2)
    options: dict[str, Any] = {"max_new_tokens": steps, "eos_token_id": int(free[0, 2]), "num_beams": 2}
    together = model.complete(**batch(model.config, rows), session=wide_session(model, 6), **options)
    for row, labels in enumerate(rows):
        alone = model.complete(**batch(model.config, [labels]), **options)
        length = alone.token_ids.shape[1]
        assert together.token_ids[row, :length].tolist() == alone.token_ids[0].tolist()
        np.testing.assert_allclose(together.scores[row], alone.scores[0], atol=1e-3)


def test_beams_cost_one_prefill_and_memory_for_their_rows(model: TroL) -> None:
    backend = WatchedBackend(model)
    session = Session(backend, model.config, model.manifest.limits)
    model.generate_ids(text_ids(model.config, 30), session=session, num_beams=3, max_new_tokens=4, eos_token_id=[])
    assert backend.taken() == [("prefill", 30), ("decode", 3), ("decode", 3), ("decode", 3)]
    assert session.cache_bytes == 3 * 256 * model.config.kv_bytes_per_token()


def test_more_beams_than_the_engine_takes_say_what_to_rebuild_with_before_anything_runs(
    model: TroL, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("encode", "prefill", "extend", "decode"):
        monkeypatch.setattr(model._backend, name, lambda *_: pytest.fail("runs"))
    message = "5 beams, the engine was built for 3; search with fewer or rebuild it with --max-batch 5"
    calls = [
        lambda: model.generate(QUESTION, [picture(20, 20)], num_beams=5),
        lambda: model.generate_ids(text_ids(model.config, 4), num_beams=5),
        lambda: model.complete(text_ids(model.config, 4), config=GenerationConfig(num_beams=5)),
        lambda: model.chat(num_beams=5).ask(QUESTION),
    ]
    for call in calls:
        with pytest.raises(LimitError) as caught:
            call()
        assert str(caught.value) == message
    with pytest.raises(LimitError) as caught:
        model.generate_ids(np.full((2, 4), 5), num_beams=2)
    assert str(caught.value) == (
        "2 beams for each of 2 rows, the engine was built for 3; search with fewer beams or rows or rebuild it with "
        "--max-batch 4"
    )


def test_an_answer_in_words_may_be_searched_too(model: TroL) -> None:
    """The ids are those of the search, up to the turn-end mark, which the search itself does not stop at."""
    answer = model.start(QUESTION, [picture(20, 20)], num_beams=3, max_new_tokens=8)
    spelled = "".join(answer)
    ids = answerer_of(model).turn_ids(QUESTION, model.crops_per_image([picture(20, 20)]))
    embeds = model.session.encode(model.preprocess([picture(20, 20)]))
    found = model.generate_ids(ids[None], embeds, num_beams=3, max_new_tokens=8)[0].tolist()
    assert answer.token_ids == found[: len(answer.token_ids)]
    assert len(answer.logprobs) == len(answer.token_ids)
    assert spelled == answerer_of(model)._tokenizer.decode(found)


# --- what changes the scores


def penalised(logits: np.ndarray, said: set[int], penalty: float) -> int:
    """The greedy choice under transformers' repetition penalty."""
    scores = logits[0].astype(np.float64)
    for token in said:
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    return int(scores.argmax())


def test_the_repetition_penalty_looks_at_internlm2_s_prompt_and_not_at_phi3_s(model: TroL, eager: EagerSession) -> None:
    """As officially: phi3 generates from embeddings, so that its prompt's ids are not known there."""
    config, penalty, steps = model.config, 0.5, 8  # below 1 it favours what was said, so that it shows at once
    ids = text_ids(config, 40)
    prompt = set(ids[0].tolist()) if config.arch == "internlm2" else set()
    said: list[int] = []
    logits = eager.prefill(ids)
    for _ in range(steps):
        said.append(penalised(logits, prompt | set(said), penalty))
        logits = eager.decode(np.array(said[-1:]))
    options: dict[str, Any] = {"max_new_tokens": steps, "eos_token_id": []}
    found = model.generate_ids(ids, repetition_penalty=penalty, **options)[0].tolist()
    assert found == said
    assert found != model.generate_ids(ids, **options)[0].tolist()


def test_nothing_ends_an_answer_before_its_least_number_of_tokens(model: TroL) -> None:
    ids = text_ids(model.config, 9)
    greedy = model.generate_ids(ids, max_new_tokens=8, eos_token_id=[])[0].tolist()
    for options in ({}, {"num_beams": 3}, {"temperature": 1e-3, "seed": 1}):
        found = model.generate_ids(ids, max_new_tokens=8, min_new_tokens=4, eos_token_id=greedy[0], **options)
        assert greedy[0] not in found[0, :4].tolist()
        assert found.shape[1] >= 5 or found.shape[1] == 8


class TurnEndingBackend(WatchedBackend):
    """Makes the turn-end mark the best token of every step, and eos the second best."""

    marks: list[int]

    def prefill(self, *arguments: Any) -> np.ndarray:
        return self._marked(super().prefill(*arguments))

    def decode(self, *arguments: Any) -> np.ndarray:
        return self._marked(super().decode(*arguments))

    def _marked(self, logits: np.ndarray) -> np.ndarray:
        logits[:, self.marks] = logits.max() + np.arange(len(self.marks), 0, -1, dtype=np.float32)
        return logits


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"temperature": 0.1, "seed": 1}], ids=str)
def test_an_answer_in_words_does_not_end_its_turn_before_its_least_number_of_tokens(
    model: TroL, options: dict[str, Any]
) -> None:
    """The turn-end mark ends a text as eos does. For ids it is a token like others."""
    backend, turn_end = TurnEndingBackend(model), answerer_of(model)._tokenizer.turn_end_id
    backend.marks = [turn_end, *model.config.eos_token_ids]
    session = Session(backend, model.config, model.manifest.limits)
    assert model.generate(QUESTION, session=session, max_new_tokens=8, **options) == ""
    answer = model.start(QUESTION, session=session, max_new_tokens=8, min_new_tokens=4, **options)
    assert "".join(answer)
    assert (answer.finish_reason, len(answer.token_ids)) == ("stop", 5)
    assert not {*backend.marks} & {*answer.token_ids[:4]}
    ids = answerer_of(model).turn_ids(QUESTION, [])[None]
    found = model.generate_ids(ids, session=session, max_new_tokens=8, min_new_tokens=4, **options)
    assert found[0, 0] == turn_end


def test_an_answer_that_must_be_longer_than_there_is_room_is_refused_before_anything_runs(
    model: TroL, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("encode", "prefill", "extend", "decode"):
        monkeypatch.setattr(model._backend, name, lambda *_: pytest.fail("runs"))
    ids = text_ids(model.config, MICRO_MAX_SEQ - 3)
    with pytest.raises(LimitError) as caught:
        model.generate_ids(ids, min_new_tokens=4)
    assert str(caught.value) == (
        "min_new_tokens is 4, but the prompt leaves room for 3 in the engine; lower it, shorten the prompt, or rebuild "
        "the engine with a larger --max-seq"
    )
    config = GenerationConfig(min_new_tokens=MICRO_MAX_SEQ, max_new_tokens=MICRO_MAX_SEQ)
    asked: list[Callable[[], object]] = [
        lambda: model.generate(QUESTION, [picture(20, 20)], config=config),
        lambda: model.chat(config=config).ask(QUESTION, [picture(20, 20)]),
    ]
    for ask in asked:
        with pytest.raises(LimitError, match=r"^min_new_tokens is 640, but the prompt leaves room for \d+ in "):
            ask()


def test_the_least_number_of_tokens_is_not_above_the_engine_s_own_most(model: TroL) -> None:
    with pytest.raises(UsageError) as caught:
        model.generate_ids(text_ids(model.config, 4), min_new_tokens=257)
    assert str(caught.value) == (
        "min_new_tokens is 257, more than max_new_tokens, 256; lower the one or raise the other"
    )


@pytest.mark.parametrize("keep_prefix", [False, True])
def test_a_drawn_answer_tells_the_seed_that_repeats_it(model: TroL, keep_prefix: bool) -> None:
    drawn = [model.start(QUESTION, temperature=1.5, max_new_tokens=12) for _ in range(2)]
    first, second = ("".join(answer) for answer in drawn)
    assert (first, drawn[0].config.seed) != (second, drawn[1].config.seed)
    session = model.new_session(keep_prefix=keep_prefix)
    again = model.start(QUESTION, session=session, config=drawn[0].config)
    assert ("".join(again), again.token_ids) == (first, drawn[0].token_ids)
    assert again.config == drawn[0].config
    assert model.start(QUESTION, max_new_tokens=2).config.seed is None  # nothing is drawn


def test_a_temperature_close_to_zero_is_greedy(model: TroL) -> None:
    ids = text_ids(model.config, 9)
    found = model.generate_ids(ids, max_new_tokens=8, temperature=1e-4, seed=3)
    np.testing.assert_array_equal(found, model.generate_ids(ids, max_new_tokens=8))


def test_options_go_before_the_config(model: TroL) -> None:
    config = GenerationConfig(max_new_tokens=3, temperature=1.0, seed=5)
    ids = text_ids(model.config, 9)
    assert model.generate_ids(ids, config=config, eos_token_id=[]).shape == (1, 3)
    assert model.generate_ids(ids, config=config, max_new_tokens=4, eos_token_id=[]).shape == (1, 4)
    with pytest.raises(UsageError, match=r"^unknown option 'beams', expected one of max_new_tokens, "):
        model.generate_ids(ids, config=config, beams=3)


# --- stop texts


def test_a_stop_text_ends_the_answer_in_front_of_it(model: TroL) -> None:
    whole = model.start(QUESTION, max_new_tokens=40)
    said = "".join(whole)
    stop = said[5:8]
    answer = model.start(QUESTION, max_new_tokens=40, stop=stop)
    assert "".join(answer) == said[: said.index(stop)].rstrip()
    assert answer.finish_reason == "stop"
    assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
    assert len(answer.token_ids) < len(whole.token_ids)
    assert model.generate(QUESTION, max_new_tokens=40, stop=["@@@", stop]) == answer.text


def test_ids_are_not_ended_by_texts(model: TroL) -> None:
    with pytest.raises(UsageError) as caught:
        model.generate_ids(text_ids(model.config, 4), stop=("x",))
    assert str(caught.value) == (
        "stop texts end an answer that is text, and this one is ids; use generate, or eos_token_id"
    )


# --- a session that is kept


def test_a_second_question_about_the_same_picture_skips_the_picture(model: TroL) -> None:
    backend = WatchedBackend(model)
    session = Session(backend, model.config, model.manifest.limits, keep_prefix=True)
    images = [picture(30, 20)]
    first = model.start("<image> What is it?", images, session=session, max_new_tokens=4)
    "".join(first)
    assert first.reused_tokens == 0
    assert backend.taken()[0][0] == "encode"
    second = model.start("<image> How large?", images, session=session, max_new_tokens=4)
    "".join(second)
    assert second.reused_tokens >= first.prompt_tokens - 100  # all up to the question
    assert second.reused_tokens > second.image_tokens
    assert backend.taken()[0] == ("extend", second.prompt_tokens - second.reused_tokens)
    fresh = model.start("<image> How large?", images, max_new_tokens=4)
    assert ("".join(fresh), fresh.token_ids) == (second.text, second.token_ids)


def test_generate_answers_in_the_session_it_is_given(model: TroL) -> None:
    session = model.new_session(keep_prefix=True)
    for question in ("What is it?", "How large?"):
        found = model.generate(question, [picture(30, 20)], session=session, max_new_tokens=6)
        assert found == model.generate(question, [picture(30, 20)], max_new_tokens=6)
        assert len(session.lengths) == 1
    assert session.reused[0] > 0


def test_another_picture_is_looked_at(model: TroL) -> None:
    session = model.new_session(keep_prefix=True)
    answers = []
    for seed in (1, 2):
        kept = model.start(QUESTION, [picture(30, 20, seed)], session=session, max_new_tokens=8)
        "".join(kept)
        fresh = model.start(QUESTION, [picture(30, 20, seed)], max_new_tokens=8)
        "".join(fresh)
        assert kept.token_ids == fresh.token_ids
        answers.append(kept.logprobs)
    assert answers[0] != answers[1]
    assert_close(np.array(kept.logprobs), np.array(fresh.logprobs), budget=1e-3)


GONE_ON = (
    "the session has read another prompt since this answer began, so it cannot go on; finish an answer before the "
    "next, or give each a session of its own: new_session()"
)


@pytest.mark.parametrize(
    ("options", "begun"),
    [({}, False), ({}, True), ({"temperature": 1.0, "seed": 1}, True), ({"num_beams": 2}, False)],
    ids=["greedy", "greedy, begun", "sampling, begun", "beams"],
)
@pytest.mark.parametrize("keep_prefix", [False, True])
def test_an_answer_does_not_go_on_in_a_session_that_has_read_another_prompt(
    model: TroL, options: dict[str, Any], keep_prefix: bool, begun: bool
) -> None:
    """It would go on as an answer to that one."""
    session = model.new_session(keep_prefix=keep_prefix)
    reads: list[Callable[[], object]] = [
        lambda: model.generate("Another question", session=session, max_new_tokens=3),
        lambda: model.start(QUESTION, session=session),  # the same prompt again is another one too
        lambda: session.prefill(text_ids(model.config, 9)),
        lambda: session.extend(text_ids(model.config, 9)) if keep_prefix else session.prefill(np.array([[5]])),
    ]
    for read in reads:
        pieces = model.generate(QUESTION, session=session, stream=True, max_new_tokens=6, **options)
        whole = model.generate(QUESTION, max_new_tokens=6, **options)
        said = next(pieces) if begun else ""
        read()
        # The first id comes with the prompt, and with it perhaps a piece.
        with pytest.raises(UsageError) as caught:
            said += "".join(pieces)
        assert str(caught.value) == GONE_ON
        assert whole.startswith(said)


def test_a_search_is_over_with_its_first_piece(model: TroL) -> None:
    session = model.new_session(keep_prefix=True)
    pieces = model.generate(QUESTION, session=session, stream=True, max_new_tokens=6, num_beams=2)
    said = next(pieces)
    model.generate("Another question", session=session, max_new_tokens=3)
    assert said + "".join(pieces) == model.generate(QUESTION, max_new_tokens=6, num_beams=2)


def test_answers_one_after_the_other_in_one_session_are_whole(model: TroL) -> None:
    """An earlier one may be asked for its fields, and stopped, while a later one comes."""
    session = model.new_session(keep_prefix=True)
    first = model.start(QUESTION, session=session, max_new_tokens=6)
    "".join(first)
    second = model.start("And now?", session=session, max_new_tokens=6)
    pieces = iter(second)
    begun = next(pieces)
    first.stop()
    assert first.finish_reason == "length"
    assert begun + "".join(pieces) == model.generate("And now?", max_new_tokens=6)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"stop": "a"}, {"stop": "e"}], ids=str)
def test_an_answer_that_is_over_does_not_keep_its_session(model: TroL, options: dict[str, Any]) -> None:
    session = model.new_session()
    answer = model.start(QUESTION, session=session, max_new_tokens=12, **options)
    "".join(answer)
    stopped = model.start(QUESTION, session=session, max_new_tokens=12, **options)
    next(iter(stopped))
    stopped.stop()
    seen = weakref.ref(session)
    del session
    gc.collect()
    assert seen() is None
    assert stopped.finish_reason == "stop"
