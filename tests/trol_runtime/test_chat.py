"""Chats: every turn answers as if the whole conversation were asked at once, and costs its own tokens alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import MICRO_MAX_SEQ
from labelled_prompts import WatchedBackend, answerer_of
from small_prompts import picture
from trol_runtime import TroL
from trol_runtime.chat import Chat, Turn
from trol_runtime.errors import LimitError, PictureError, UsageError
from trol_runtime.generation import Generation
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.session import Session
from trol_runtime.tokenizer import TextTokenizer

STEPS = 6
CAT, DOG = picture(20, 20, seed=1), picture(20, 30, seed=2)  # in phi3 one crop, and seven


@pytest.fixture
def chat(model: TroL) -> Chat:
    return model.chat(max_new_tokens=STEPS)


@pytest.fixture
def tokenizer(model: TroL) -> TextTokenizer:
    return answerer_of(model)._tokenizer


def said(answer: Generation) -> str:
    """The whole answer."""
    return "".join(answer)


def conversation(
    model: TroL, tokenizer: TextTokenizer, turns: Sequence[Turn], question: str, images: Sequence[Image.Image] = ()
) -> np.ndarray:
    """All turns and the question behind them as one prompt, int64 (1, s)."""
    parts: list[list[int]] = []
    for turn in [*turns, None]:
        asked, crops = (turn.question, turn.crops) if turn else (question, model.crops_per_image(list(images)))
        parts.append(tokenizer.encode_prompt(asked, crops, 16, follows_answer=bool(parts))[0].tolist())
        parts.append(said_ids(model, tokenizer, turn.answer) if turn else [])
    return np.array([[token for part in parts for token in part]])


def said_ids(model: TroL, tokenizer: TextTokenizer, answer: Generation) -> list[int]:
    """What a next turn follows: the ids of an answer that ended itself, of others those of the text that was shown."""
    marks = {*model.config.eos_token_ids, tokenizer.turn_end_id}
    ended_itself = bool(answer.token_ids) and answer.token_ids[-1] in marks
    if answer.finish_reason == "length" or ended_itself:
        return [token for token in answer.token_ids if token not in {*marks, model.config.image_token_id}]
    return tokenizer.encode_text(answer.text)


def embeds_of(model: TroL, images: Sequence[Image.Image]) -> np.ndarray | None:
    return model.session.encode(model.preprocess(list(images))) if images else None


def assert_answers_as_asked_at_once(
    model: TroL, ids: np.ndarray, images: Sequence[Image.Image], answer: Generation, tokenizer: TextTokenizer
) -> None:
    eos = [*model.config.eos_token_ids, tokenizer.turn_end_id]
    expected = model.complete(ids, embeds_of(model, images), max_new_tokens=STEPS, eos_token_id=eos)
    assert answer.prompt_tokens == ids.shape[1]
    assert answer.token_ids == expected.token_ids[0].tolist()
    # fp32 logits of about 10 within their budget of 1e-4.
    np.testing.assert_allclose(answer.logprobs, expected.logprobs[0], atol=1e-3)


TALK: list[tuple[str, list[Image.Image]]] = [
    ("What is it?", [CAT]),
    ("And <image> or <image>?", [DOG, CAT]),
    ("Which is larger?", []),
    ("Look again.", [DOG]),
]


# --- turns


@pytest.mark.parametrize("keep_prefix", [True, False])
def test_every_turn_answers_as_the_whole_conversation_asked_at_once(
    model: TroL, tokenizer: TextTokenizer, keep_prefix: bool
) -> None:
    chat = model.chat(keep_prefix=keep_prefix, max_new_tokens=STEPS)
    shown: list[Image.Image] = []
    for question, images in TALK:
        ids = conversation(model, tokenizer, chat.turns, question, images)
        answer = chat.ask(question, images)
        said(answer)
        shown += images
        assert_answers_as_asked_at_once(model, ids, shown, answer, tokenizer)
    assert [(turn.question, len(turn.crops)) for turn in chat.turns] == [(q, len(images)) for q, images in TALK]
    assert chat.turns[-1].answer is answer


def test_a_turn_costs_its_own_tokens_and_the_answer_before_it(model: TroL) -> None:
    """Answers were run once and are run again as part of the prompt; a picture is looked at once."""
    backend = WatchedBackend(model)
    session = Session(backend, model.config, model.manifest.limits, keep_prefix=True)
    chat = Chat(answerer_of(model), session, GenerationConfig(max_new_tokens=STEPS))
    known = 0
    for question, images in TALK:
        answer = chat.ask(question, images)
        assert answer.reused_tokens == known
        expected = [("extend", answer.prompt_tokens - known)]
        if images:
            expected.insert(0, ("encode", sum(model.crops_per_image(images))))
        assert backend.taken() == expected
        said(answer)
        backend.taken()
        known = answer.prompt_tokens


def test_without_a_kept_prefix_every_turn_is_read_whole_in_half_the_memory(model: TroL) -> None:
    chats = [model.chat(keep_prefix=keep, max_new_tokens=STEPS) for keep in (True, False)]
    for chat in chats:
        for question, images in TALK:
            answer = chat.ask(question, images)
            said(answer)
            if not chat.session.keeps_prefix:
                assert answer.reused_tokens == 0
    with_prefix, without = (chat.session for chat in chats)
    assert without.prefix_bytes == 0
    assert with_prefix.cache_bytes == 2 * without.cache_bytes
    with pytest.raises(UsageError) as caught:
        chats[1].fork()
    assert str(caught.value) == (
        "fork() needs a kept prefix and this session has none (keep_prefix=False, or drop_prefix() was called); make "
        "it, or its chat, with keep_prefix=True, or prefill() all tokens"
    )


def test_a_chat_may_drop_its_prefix_on_the_way(model: TroL, tokenizer: TextTokenizer, chat: Chat) -> None:
    said(chat.ask("What is it?", [CAT]))
    chat.session.drop_prefix()
    ids = conversation(model, tokenizer, chat.turns, "Why?")
    answer = chat.ask("Why?")
    said(answer)
    assert answer.reused_tokens == 0
    assert_answers_as_asked_at_once(model, ids, [CAT], answer, tokenizer)


class ScriptedBackend(WatchedBackend):
    """Makes the model choose script[n] as token n of an answer."""

    script: dict[int, int]
    token = 0

    def extend(self, *arguments: Any) -> np.ndarray:
        self.token = 0
        return self._scripted(super().extend(*arguments))

    def decode(self, *arguments: Any) -> np.ndarray:
        self.token += 1
        return self._scripted(super().decode(*arguments))

    def _scripted(self, logits: np.ndarray) -> np.ndarray:
        if self.token in self.script:
            logits[:, self.script[self.token]] = logits.max() + 10
        return logits


def scripted_chat(model: TroL, script: dict[int, int]) -> Chat:
    backend = ScriptedBackend(model)
    backend.script = script
    session = Session(backend, model.config, model.manifest.limits, keep_prefix=True)
    return Chat(answerer_of(model), session, GenerationConfig(max_new_tokens=STEPS))


@pytest.mark.parametrize("mark", ["turn end", "eos"])
def test_the_mark_that_ended_an_answer_is_no_part_of_the_next_prompt(
    model: TroL, tokenizer: TextTokenizer, mark: str
) -> None:
    """The template writes its own."""
    ending = {"turn end": tokenizer.turn_end_id, "eos": model.config.eos_token_ids[0]}[mark]
    script = {2: ending}
    chat = scripted_chat(model, script)
    first = chat.ask("What is it?")
    said(first)
    assert (first.token_ids[-1], len(first.token_ids)) == (ending, 3)
    script.clear()
    asked = tokenizer.encode_prompt("What is it?", [], 16)[0].tolist()
    further = tokenizer.encode_prompt("Why?", [], 16, follows_answer=True)[0].tolist()
    ids = np.array([asked + first.token_ids[:2] + further])
    second = chat.ask("Why?")
    said(second)
    assert_answers_as_asked_at_once(model, ids, [], second, tokenizer)


def test_an_image_token_that_phi3_wrote_is_left_out_of_the_next_prompt(
    micro_engine: Callable[..., Path],
) -> None:
    """No picture belongs to it. internlm2 cannot write one: its head has no row for it."""
    model = TroL.load(micro_engine("phi3"))
    tokenizer = answerer_of(model)._tokenizer
    script = {1: model.config.image_token_id}
    chat = scripted_chat(model, script)
    first = chat.ask("What is it?", [CAT])
    said(first)
    assert first.token_ids[1] == model.config.image_token_id
    script.clear()
    ids = conversation(model, tokenizer, chat.turns, "Why?", [DOG])
    second = chat.ask("Why?", [DOG])
    said(second)
    assert_answers_as_asked_at_once(model, ids, [CAT, DOG], second, tokenizer)


# --- answers that stop early


def test_an_answer_that_is_left_is_part_of_the_conversation_as_far_as_it_came(
    model: TroL, tokenizer: TextTokenizer, chat: Chat
) -> None:
    answer = chat.ask("What is it?", [CAT])
    for _ in answer:
        break
    came = len(answer.token_ids)
    assert 0 < came < STEPS
    answer.stop()
    ids = conversation(model, tokenizer, chat.turns, "Why?")
    second = chat.ask("Why?")
    said(second)
    assert (answer.finish_reason, len(answer.token_ids)) == ("stop", came)
    assert_answers_as_asked_at_once(model, ids, [CAT], second, tokenizer)


def test_what_a_stop_text_cut_off_is_no_part_of_the_conversation(
    model: TroL, tokenizer: TextTokenizer, chat: Chat
) -> None:
    """The user was not shown it, so that the next question cannot be about it."""
    whole = said(chat.fork().ask("What is it?", max_new_tokens=30))
    assert len(whole) > 8
    first = chat.ask("What is it?", max_new_tokens=30, stop=whole[4:7])
    shown = said(first)
    assert first.finish_reason == "stop"
    assert tokenizer.decode(first.token_ids) != shown == whole[: whole.index(whole[4:7])].rstrip()
    asked = tokenizer.encode_prompt("What is it?", [], 16)[0].tolist()
    further = tokenizer.encode_prompt("Why?", [], 16, follows_answer=True)[0].tolist()
    second = chat.ask("Why?")
    said(second)
    ids = np.array([asked + tokenizer.encode_text(shown) + further])
    assert_answers_as_asked_at_once(model, ids, [], second, tokenizer)


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("pieces", [0, 1])
def test_an_answer_does_not_go_on_behind_the_next_question(
    model: TroL, tokenizer: TextTokenizer, chat: Chat, pieces: int, num_beams: int
) -> None:
    """Its session holds another prompt now."""
    first = chat.ask("What is it?", [CAT], num_beams=num_beams)
    parts = iter(first)
    for _ in range(pieces):
        next(parts)
    came = list(first.token_ids)
    second = chat.ask("Why?")
    assert list(parts) == []
    assert first.token_ids == came
    said(second)
    ids = conversation(model, tokenizer, chat.turns[:1], "Why?")
    assert_answers_as_asked_at_once(model, ids, [CAT], second, tokenizer)


def test_ctrl_c_within_an_answer_keeps_what_came(model: TroL, tokenizer: TextTokenizer) -> None:
    backend = WatchedBackend(model)
    session = Session(backend, model.config, model.manifest.limits, keep_prefix=True)
    chat = Chat(answerer_of(model), session, GenerationConfig(max_new_tokens=STEPS))
    answer = chat.ask("What is it?", [CAT])
    backend.failing_run = len(backend.runs) + 2
    with pytest.raises(KeyboardInterrupt):
        said(answer)
    assert len(answer.token_ids) == 3  # the first comes with the prompt, two steps ran
    second = chat.ask("Why?")
    said(second)
    assert answer.finish_reason == "stop"
    ids = conversation(model, tokenizer, chat.turns[:1], "Why?")
    assert_answers_as_asked_at_once(model, ids, [CAT], second, tokenizer)


def test_ctrl_c_before_an_answer_adds_no_turn(model: TroL, tokenizer: TextTokenizer) -> None:
    backend = WatchedBackend(model)
    session = Session(backend, model.config, model.manifest.limits, keep_prefix=True, prefill_chunk=40)
    chat = Chat(answerer_of(model), session, GenerationConfig(max_new_tokens=STEPS))
    said(chat.ask("What is it?", [CAT]))
    for run in (0, 1, 1):  # in the picture; then, which is known by then, in the first and second chunk
        backend.failing_run = len(backend.runs) + run
        with pytest.raises(KeyboardInterrupt):
            chat.ask("And this? " * 10, [DOG])
    assert len(chat.turns) == 1
    ids = conversation(model, tokenizer, chat.turns, "Why?")
    second = chat.ask("Why?")
    said(second)
    assert_answers_as_asked_at_once(model, ids, [CAT], second, tokenizer)


# --- drop and fork


@pytest.mark.parametrize("count", [1, 2, 3])
def test_dropped_turns_are_forgotten_with_their_pictures(
    model: TroL, tokenizer: TextTokenizer, chat: Chat, count: int
) -> None:
    for question, images in TALK[:3]:
        said(chat.ask(question, images))
    left = chat.turns[count:]
    chat.drop(count)
    assert chat.turns == left
    ids = conversation(model, tokenizer, left, "Why?", [DOG])
    answer = chat.ask("Why?", [DOG])
    said(answer)
    shown = [image for _, images in TALK[count:3] for image in images]
    assert_answers_as_asked_at_once(model, ids, [*shown, DOG], answer, tokenizer)


def test_a_chat_without_turns_takes_no_memory(model: TroL, tokenizer: TextTokenizer, chat: Chat) -> None:
    for question, images in TALK[:2]:
        said(chat.ask(question, images))
    chat.drop(1)
    assert chat.session.cache_bytes > 0  # what is left is read from it
    chat.drop(1)
    assert (chat.turns, chat.session.cache_bytes) == ([], 0)
    with pytest.raises(UsageError) as caught:
        chat.drop()
    assert str(caught.value) == "the chat has no turns to drop; ask something first"
    answer = chat.ask("Why?")
    said(answer)
    assert_answers_as_asked_at_once(model, conversation(model, tokenizer, [], "Why?"), [], answer, tokenizer)


@pytest.mark.parametrize("count", [0, -1, 3, 1.0, True, "1"])
def test_only_turns_that_are_there_can_be_dropped(chat: Chat, count: Any) -> None:
    for question, images in TALK[:2]:
        said(chat.ask(question, images))
    with pytest.raises(UsageError) as caught:
        chat.drop(count)
    assert str(caught.value) == f"{count!r} turns to drop, expected 1 to 2, which the chat has"
    assert len(chat.turns) == 2


def test_a_fork_goes_on_alone(model: TroL, tokenizer: TextTokenizer, chat: Chat) -> None:
    said(chat.ask("What is it?", [CAT]))
    fork = chat.fork()
    fork_of_fork = fork.fork()
    asked = [(chat, "Why?", []), (fork, "How large?", [DOG]), (fork_of_fork, "Which colour?", []), (chat, "Sure?", [])]
    for talk, question, images in asked:
        ids = conversation(model, tokenizer, talk.turns, question, images)
        answer = talk.ask(question, images)
        said(answer)
        assert answer.reused_tokens > 16  # the picture
        assert_answers_as_asked_at_once(model, ids, [CAT, *images], answer, tokenizer)
    assert [[turn.question for turn in talk.turns] for talk in (chat, fork, fork_of_fork)] == [
        ["What is it?", "Why?", "Sure?"],
        ["What is it?", "How large?"],
        ["What is it?", "Which colour?"],
    ]


def test_a_fork_ends_the_answer_of_which_it_keeps_what_came(chat: Chat) -> None:
    answer = chat.ask("What is it?")
    next(iter(answer))
    fork = chat.fork()
    assert answer.finish_reason == "stop"
    assert fork.turns == chat.turns
    assert fork.turns is not chat.turns


def test_a_fork_does_not_keep_its_original_s_session(model: TroL) -> None:
    """Turns are shared, and an answer that has ended or was stopped needs no cache."""
    for read in (said, lambda answer: next(iter(answer)), lambda answer: None):
        chat = model.chat(max_new_tokens=STEPS)
        read(chat.ask("What is it?"))
        fork, session = chat.fork(), weakref.ref(chat.session)
        del chat
        gc.collect()
        assert session() is None
        said(fork.ask("Why?"))


# --- limits


def long_question(model: TroL, tokenizer: TextTokenizer, tokens: int, behind: Chat) -> str:
    """A question with which the chat has so many tokens."""
    for length in range(1, tokens):
        question = "z" * length
        if conversation(model, tokenizer, behind.turns, question).shape[1] == tokens:
            return question
    raise AssertionError("no such question")


@pytest.mark.parametrize(("answers", "drop"), [(1, "the oldest turn"), (2, "the oldest 2 of 4 turns")])
def test_a_chat_that_is_full_says_which_turns_to_drop(
    model: TroL, tokenizer: TextTokenizer, chat: Chat, answers: int, drop: str
) -> None:
    for question, images in TALK:
        said(chat.ask(question, images))
    count = answers
    rest = Chat(answerer_of(model), model.new_session(), GenerationConfig())
    rest.turns = chat.turns[count:]
    question = long_question(model, tokenizer, MICRO_MAX_SEQ - 1, rest)
    tokens = conversation(model, tokenizer, chat.turns, question).shape[1]
    with pytest.raises(LimitError) as caught:
        chat.ask(question)
    assert str(caught.value) == (
        f"the chat has {tokens} tokens with this question and leaves no room for an answer in the engine's 640; drop "
        f"{drop}: chat.drop({count}), or /drop {count} in trol-run"
    )
    assert len(chat.turns) == 4
    chat.drop(count)
    answer = chat.ask(question)
    assert answer.max_new_tokens == 1
    said(answer)


def long_talk(model: TroL, tokenizer: TextTokenizer, turns: int) -> Chat:
    """A chat with so many turns, longer than the engine."""
    chat = model.chat(max_new_tokens=STEPS)
    answer = chat.ask("What is it?")
    said(answer)
    first = Turn("What is it?", (), np.zeros((0, model.config.decoder.hidden_size), np.float32), answer)
    chat.turns = [first] * turns
    return chat


def test_how_many_turns_to_drop_costs_every_turn_once(
    model: TroL, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of the tokenizer: tokenizing again for every number of turns would be 45 000 for 300."""
    calls: list[str] = []
    encode = TextTokenizer.encode_text

    def counted(self: TextTokenizer, text: str) -> list[int]:
        calls.append(text)
        return encode(self, text)

    monkeypatch.setattr(TextTokenizer, "encode_text", counted)
    counts = []
    for turns in (100, 300):
        chat = long_talk(model, tokenizer, turns)
        calls.clear()
        with pytest.raises(LimitError, match=rf"^the chat has \d+ tokens .* drop the oldest \d+ of {turns} turns: "):
            chat.ask("Why?")
        counts.append(len(calls))
    assert counts[1] <= 3 * counts[0] < 3000


def test_a_question_too_long_by_itself_is_not_helped_by_dropping_turns(
    model: TroL, tokenizer: TextTokenizer, chat: Chat
) -> None:
    said(chat.ask("What is it?"))
    with pytest.raises(
        LimitError, match=r"^the prompt has \d+ tokens .* engine holds 640 with the answer; shorten it "
    ):
        chat.ask("z" * 700)
    with pytest.raises(LimitError, match=r"^4 beams, the engine was built for 3; "):
        chat.ask("Why?", num_beams=4)
    said(chat.ask("Why?"))
    assert len(chat.turns) == 2


# --- options and wrong calls


def test_a_turn_s_options_go_before_the_chat_s(model: TroL) -> None:
    chat = model.chat(max_new_tokens=3, temperature=1.5, seed=1)
    drawn, same = (said(chat.fork().ask("Why?")) for _ in range(2))
    other = said(chat.fork().ask("Why?", seed=2))
    assert drawn == same != other
    assert len(chat.turns) == 0
    longer = chat.ask("Why?", max_new_tokens=5)
    said(longer)
    assert len(longer.token_ids) == 5
    with pytest.raises(UsageError, match=r"^unknown option 'beams', expected one of "):
        chat.ask("Why?", beams=2)
    with pytest.raises(UsageError, match=r"^unknown option 'beams', expected one of "):
        model.chat(beams=2)


@pytest.mark.parametrize(
    ("question", "images", "error"),
    [
        ("<image> and <image>", [CAT], UsageError),
        ("What?", ["no.png"], PictureError),
        ("What?", CAT, UsageError),
    ],
    ids=["too many tags", "no such picture", "no list"],
)
def test_a_refused_question_leaves_the_chat_as_it_was(
    model: TroL, tokenizer: TextTokenizer, chat: Chat, question: str, images: Any, error: type[Exception]
) -> None:
    said(chat.ask("What is it?", [CAT]))
    with pytest.raises(error):
        chat.ask(question, images)
    assert len(chat.turns) == 1
    ids = conversation(model, tokenizer, chat.turns, "Why?")
    answer = chat.ask("Why?")
    said(answer)
    assert answer.reused_tokens > 16
    assert_answers_as_asked_at_once(model, ids, [CAT], answer, tokenizer)


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param({"question": "<image> and <image>", "images": [CAT]}, id="too many tags"),
        pytest.param({"question": "z" * 700}, id="too long"),
        pytest.param({"question": "Why?", "num_beams": 4}, id="too many beams"),
        pytest.param({"question": "Why?", "images": ["no.png"]}, id="no such picture"),
        pytest.param({"question": 5}, id="no text"),
        pytest.param({"question": "Why?", "beams": 2}, id="no such option"),
    ],
)
def test_a_refused_question_leaves_the_answer_that_is_coming_running(
    model: TroL, chat: Chat, refused: dict[str, Any]
) -> None:
    alone = said(chat.fork().ask("What is it?"))
    pieces = iter(chat.ask("What is it?"))
    first = next(pieces)
    with pytest.raises((UsageError, LimitError, PictureError)):
        chat.ask(**refused)
    assert first + "".join(pieces) == alone
    assert chat.turns[0].answer.finish_reason == "length"


@pytest.mark.parametrize("question", [5, None, b"Why?", ["Why?"]])
def test_a_question_is_text(chat: Chat, question: Any) -> None:
    with pytest.raises(UsageError) as caught:
        chat.ask(question)
    assert str(caught.value) == f"the prompt is a {type(question).__name__}, expected text"


def test_chats_of_one_engine_do_not_see_each_other(model: TroL) -> None:
    chats = [model.chat(max_new_tokens=STEPS) for _ in range(2)]
    first = chats[0].ask("What is it?", [CAT])
    said(chats[1].ask("Why?", [DOG]))
    alone = model.chat(max_new_tokens=STEPS).ask("What is it?", [CAT])
    assert said(first) == said(alone)
