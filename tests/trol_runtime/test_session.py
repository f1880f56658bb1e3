"""Session: equal to the eager model on any prompt, honest about its limits, and one clear line for a wrong call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import MICRO_MAX_SEQ
from small_prompts import assert_close, assert_same_choice, picture, prompt_ids, text_ids
from trol_graphs.eager import EagerSession
from trol_runtime import TroL, kv_cache
from trol_runtime.errors import LimitError, NumericError, TrolError, UsageError
from trol_runtime.kv_cache import KVCache
from trol_runtime.session import Session

DECODE_STEPS = 4

# Examples are few because each runs two models; none is timed: a busy machine is not a failure.
few_examples = settings(max_examples=15, deadline=None)


@st.composite
def prompts(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[int], int]:
    """Sizes of 0, 1 or 3 pictures, the lengths of the texts around them, a seed."""
    count = draw(st.sampled_from([0, 1, 3]))
    sides = st.integers(1, 90)
    sizes = draw(st.lists(st.tuples(sides, sides), min_size=count, max_size=count))
    texts = draw(st.lists(st.integers(0, 50), min_size=count + 1, max_size=count + 1))
    return sizes, texts if sum(texts) else [1, *texts[1:]], draw(st.integers(0, 2**32))


def padded(rows: list[np.ndarray], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (1, s) of different lengths as one left-padded batch: ids and mask, int64 (b, s)."""
    width = max(row.shape[1] for row in rows)
    ids = [np.pad(row, ((0, 0), (width - row.shape[1], 0)), constant_values=pad) for row in rows]
    masks = [np.arange(width)[None] >= width - row.shape[1] for row in rows]
    return np.concatenate(ids), np.concatenate(masks).astype(np.int64)


@pytest.fixture
def session(model: TroL) -> Session:
    return model.new_session()


# --- what it computes


@few_examples
@given(prompt=prompts())
def test_any_prompt_gives_what_the_eager_model_gives(
    model: TroL, eager: EagerSession, prompt: tuple[list[tuple[int, int]], list[int], int]
) -> None:
    sizes, texts, seed = prompt
    pictures = [picture(*size, seed) for size in sizes]
    crops = model.crops_per_image(pictures)
    session = model.new_session()
    embeds, eager_embeds = None, None
    if pictures:
        pixels = model.preprocess(pictures)
        assert len(pixels) == sum(crops)
        embeds, eager_embeds = session.encode(pixels), eager.encode(pixels)
        tokens, hidden = model.config.vision.tokens_per_crop, model.config.decoder.hidden_size
        assert embeds.shape == (sum(crops), tokens, hidden)
        assert_close(embeds, eager_embeds)

    ids = prompt_ids(model.config, texts, crops, seed)
    found, expected = session.prefill(ids, embeds), eager.prefill(ids, eager_embeds)
    for _ in range(DECODE_STEPS):
        assert found.shape == (1, model.config.decoder.vocab_size)
        assert_close(found, expected)
        assert_same_choice(found, expected)
        token = expected.argmax(-1)
        found, expected = session.decode(token), eager.decode(token)
    assert session.lengths.tolist() == [ids.shape[1] + DECODE_STEPS]


@few_examples
@given(lengths=st.lists(st.integers(1, 130), min_size=2, max_size=3), pictures=st.booleans(), seed=st.integers(0, 99))
def test_rows_of_a_left_padded_batch_give_what_each_gives_alone(
    model: TroL, lengths: list[int], pictures: bool, seed: int
) -> None:
    """Rows shorter and longer than the 96 positions after which phi3 changes its tables, in one batch; with pictures,
    the first row shows one, the second two, ...
    """
    session = model.new_session()
    shown = [[picture(16, 16, seed + row)] * (row + 1) if pictures else [] for row in range(len(lengths))]
    rows = [
        prompt_ids(model.config, [length, *[2] * len(of_row)], [1] * len(of_row), seed)
        for length, of_row in zip(lengths, shown, strict=True)
    ]
    embeds = [session.encode(model.preprocess(of_row)) if of_row else None for of_row in shown]
    alone = []
    for row, part in zip(rows, embeds, strict=True):
        logits = [session.prefill(row, part)]
        alone.append([*logits, *(session.decode(np.array([7 + step])) for step in range(DECODE_STEPS))])

    ids, mask = padded(rows, pad=model.config.pad_token_id)
    together = np.concatenate([part for part in embeds if part is not None]) if pictures else None
    found = [session.prefill(ids, together, mask)]
    found += [session.decode(np.full(len(rows), 7 + step)) for step in range(DECODE_STEPS)]
    for number, expected in enumerate(alone):
        for step in range(DECODE_STEPS + 1):
            assert_close(found[step][number : number + 1], expected[step])


def test_a_prompt_fed_token_by_token_is_not_a_prefill(session: Session, model: TroL, eager: EagerSession) -> None:
    """A prompt traverses every layer twice, a single token once: decode is a path of its own."""
    ids = text_ids(model.config, 12)
    at_once = session.prefill(ids)
    found, expected = session.prefill(ids[:, :1]), eager.prefill(ids[:, :1])
    for token in ids[0, 1:]:
        found, expected = session.decode(np.array([token])), eager.decode(np.array([token]))
    assert_close(found, expected)
    assert np.abs(found - at_once).max() > 0.01 * np.abs(at_once).max()


def test_prefill_begins_anew(session: Session, model: TroL) -> None:
    ids = text_ids(model.config, 30)
    first = session.prefill(ids)
    session.decode(np.array([5]))
    session.prefill(text_ids(model.config, 60, seed=1))
    np.testing.assert_array_equal(session.prefill(ids), first)
    assert session.lengths.tolist() == [30]


def test_logits_and_embeddings_are_float32(session: Session, model: TroL) -> None:
    pixels = model.preprocess([picture(20, 20)])
    assert pixels.dtype == np.float32
    embeds = session.encode(pixels)
    assert embeds.dtype == np.float32
    logits = session.prefill(prompt_ids(model.config, [3, 3], [len(pixels)]), embeds)
    assert logits.dtype == np.float32
    assert session.decode(logits.argmax(-1)).dtype == np.float32


def test_embeddings_may_come_flat(session: Session, model: TroL) -> None:
    pixels = model.preprocess([picture(20, 20)])
    embeds = session.encode(pixels)
    ids = prompt_ids(model.config, [3, 3], [len(pixels)])
    flat = embeds.reshape(-1, model.config.decoder.hidden_size)
    np.testing.assert_array_equal(session.prefill(ids, flat), session.prefill(ids, embeds))


# --- the cache


def test_a_cache_that_grows_gives_what_a_large_one_gives(model: TroL, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = text_ids(model.config, 250)
    steps = text_ids(model.config, 300, seed=1)[0]

    def logits_and_cache_sizes() -> tuple[np.ndarray, list[int]]:
        session = model.new_session()
        logits = [session.prefill(ids)]
        sizes = [session.cache_bytes]
        for token in steps:
            logits.append(session.decode(np.array([token])))
            sizes.append(session.cache_bytes)
        return np.concatenate(logits), sorted(set(sizes))

    grown, sizes = logits_and_cache_sizes()
    per_token = model.config.kv_bytes_per_token()
    assert sizes == [256 * per_token, 512 * per_token, MICRO_MAX_SEQ * per_token]
    monkeypatch.setattr(kv_cache, "STEP_TOKENS", 10_000)
    large, sizes = logits_and_cache_sizes()
    assert sizes == [MICRO_MAX_SEQ * per_token]
    assert_close(grown, large)


def test_reset_forgets_the_rows_and_frees_the_cache(session: Session, model: TroL) -> None:
    session.prefill(text_ids(model.config, 5))
    assert session.cache_bytes > 0
    session.reset()
    assert (session.cache_bytes, session.lengths.tolist()) == (0, [])
    with pytest.raises(UsageError, match=r"decode\(\) before prefill\(\)"):
        session.decode(np.array([5]))


def test_a_cache_that_cannot_grow_leaves_no_rows(
    session: Session, model: TroL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any) -> np.ndarray:
        raise MemoryError

    ids = text_ids(model.config, 255)
    expected = session.prefill(ids)
    session.decode(np.array([5]))
    with monkeypatch.context() as patch:
        patch.setattr(kv_cache, "np", SimpleNamespace(zeros=no_memory, float32=np.float32, dtype=np.dtype))
        with pytest.raises(LimitError, match=r"^the KV cache of 1 row\(s\) of 512 tokens needs "):
            session.decode(np.array([5]))
    assert (session.cache_bytes, session.lengths.tolist()) == (0, [])
    with pytest.raises(UsageError, match=r"decode\(\) before prefill\(\)"):
        session.decode(np.array([5]))
    np.testing.assert_array_equal(session.prefill(ids), expected)


def test_the_cache_is_sized_by_the_prompt_and_not_by_the_limit(session: Session, model: TroL) -> None:
    session.prefill(text_ids(model.config, 5))
    assert session.cache_bytes == 256 * model.config.kv_bytes_per_token()


def test_sessions_of_one_engine_do_not_see_each_other(model: TroL) -> None:
    prompts = [text_ids(model.config, 20, seed) for seed in range(2)]

    def interleaved(prompts: list[np.ndarray]) -> list[list[int]]:
        """The greedy ids of every prompt, one step of each in turn."""
        sessions = [model.new_session() for _ in prompts]
        logits = [session.prefill(ids) for session, ids in zip(sessions, prompts, strict=True)]
        found: list[list[int]] = [[] for _ in prompts]
        for _ in range(6):
            for number, session in enumerate(sessions):
                token = logits[number].argmax(-1)
                found[number].append(int(token[0]))
                logits[number] = session.decode(token)
        return found

    assert interleaved(prompts) == [interleaved([ids])[0] for ids in prompts]


def test_a_new_session_loads_no_weights(model: TroL, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a second copy of the model")

    expected = model.session.prefill(text_ids(model.config, 9))
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    np.testing.assert_array_equal(model.new_session().prefill(text_ids(model.config, 9)), expected)


# --- beams


def test_repeated_rows_go_on_each_for_itself(session: Session, model: TroL) -> None:
    """Two beams for each row but the last of the engine's three rows; a neighbour's token changes nothing."""
    ids = text_ids(model.config, 30)
    expected = []
    for tokens in ((5, 6, 7), (8, 9, 10), (11, 12, 13)):
        session.prefill(ids)
        expected.append(np.concatenate([session.decode(np.array([token])) for token in tokens]))
    session.prefill(ids)
    session.repeat(3)
    assert session.lengths.tolist() == [30, 30, 30]
    found = [session.decode(np.array(tokens)) for tokens in ((5, 8, 11), (6, 9, 12), (7, 10, 13))]
    for beam, logits in enumerate(expected):
        assert_close(np.stack([step[beam] for step in found]), logits)


def test_a_reordered_row_goes_on_from_what_another_beam_said(session: Session, model: TroL) -> None:
    ids = text_ids(model.config, 30)

    def said(*tokens: int) -> np.ndarray:
        single = model.new_session()
        single.prefill(ids)
        return np.concatenate([single.decode(np.array([token])) for token in tokens])[-1]

    session.prefill(ids)
    session.repeat(3)
    session.decode(np.array([5, 6, 7]))
    session.reorder(np.array([2, 0, 2]))
    found = session.decode(np.array([8, 9, 10]))
    assert_close(found, np.stack([said(7, 8), said(5, 9), said(7, 10)]))
    session.reorder(np.array([1, 1, 1]))
    found = session.decode(np.array([11, 12, 13]))
    assert_close(found, np.stack([said(5, 9, 11), said(5, 9, 12), said(5, 9, 13)]))


def test_beams_of_rows_of_different_lengths_stay_with_their_row(model: TroL) -> None:
    limits = replace(model.manifest.limits, max_batch=4)
    session, single = Session(model._backend, model.config, limits), model.new_session()
    rows = [text_ids(model.config, 30), text_ids(model.config, 7, seed=1)]
    ids, mask = padded(rows, pad=2)
    session.prefill(ids, None, mask)
    session.repeat(2)
    session.decode(np.array([5, 6, 7, 8]))
    session.reorder(np.array([1, 0, 3, 3]))
    found = session.decode(np.array([9, 10, 11, 12]))
    for beam, (row, tokens) in enumerate([(0, (6, 9)), (0, (5, 10)), (1, (8, 11)), (1, (8, 12))]):
        single.prefill(rows[row])
        expected = [single.decode(np.array([token])) for token in tokens]
        assert_close(found[beam : beam + 1], expected[-1])


@pytest.mark.parametrize("sources", [[0, 0], [0, 1, 2], [-1, 0], [0], [[0, 1]], [0.0, 1.0], [False, True]])
def test_a_row_goes_on_from_beams_of_its_own_prompt_alone(session: Session, sources: list[Any]) -> None:
    session.prefill(np.array([[5, 6], [7, 8]]))
    with pytest.raises(UsageError) as caught:
        session.reorder(np.array(sources))
    assert str(caught.value) == (
        f"sources is {np.array(sources).dtype} {sources}, expected int64, for each of 2 rows a beam of its prompt"
    )


@pytest.mark.parametrize("times", [0, -1, 2.5, 2.0, "2", True, None])
def test_rows_are_repeated_a_whole_number_of_times(session: Session, model: TroL, times: Any) -> None:
    ids = text_ids(model.config, 9)
    session.prefill(ids)
    with pytest.raises(UsageError) as caught:
        session.repeat(times)
    assert str(caught.value) == f"times is {times!r}, expected a whole number, 1 or more"
    assert session.lengths.tolist() == [9]


@pytest.mark.parametrize("keep_prefix", [False, True])
def test_ctrl_c_among_rows_that_change_places_leaves_none(
    model: TroL, monkeypatch: pytest.MonkeyPatch, keep_prefix: bool
) -> None:
    """Some layers moved and some not is no row any more."""
    session, ids = model.new_session(keep_prefix=keep_prefix), text_ids(model.config, 30)
    expected = session.prefill(ids)
    session.repeat(2)
    session.decode(np.array([5, 6]))

    def interrupted(cache: KVCache, *_: Any) -> None:
        cache.first_pass[0][...] = 7
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.reorder(np.array([1, 0]))
    assert (session.lengths.tolist(), session.cache_bytes) == ([], 0)
    np.testing.assert_array_equal(session.prefill(ids), expected)
    assert session.reused.tolist() == [0]


def test_more_beams_than_rows_the_engine_was_built_for_are_refused(session: Session) -> None:
    session.prefill(np.array([[5, 6], [7, 8]]))
    with pytest.raises(LimitError) as caught:
        session.repeat(2)
    assert str(caught.value) == (
        "2 beams for each of 2 rows, the engine was built for 3; search with fewer beams or rows or rebuild it with "
        "--max-batch 4"
    )


def test_repeat_before_prefill_is_refused(session: Session) -> None:
    with pytest.raises(UsageError) as caught:
        session.repeat(2)
    assert str(caught.value) == "repeat() before prefill(): there is no row to repeat"


# --- limits


def test_a_prompt_may_fill_the_engine_and_then_nothing_can_follow(session: Session, model: TroL) -> None:
    session.prefill(text_ids(model.config, MICRO_MAX_SEQ))
    with pytest.raises(LimitError) as caught:
        session.decode(np.array([5]))
    assert str(caught.value) == (
        "the engine holds 640 tokens per row and row 0 is full; shorten it or rebuild the engine with --max-seq 896"
    )


def test_the_last_free_position_is_used(session: Session, model: TroL, eager: EagerSession) -> None:
    ids = text_ids(model.config, MICRO_MAX_SEQ - 1)
    session.prefill(ids)
    eager.prefill(ids)
    assert_close(session.decode(np.array([5])), eager.decode(np.array([5])))
    assert session.lengths.tolist() == [MICRO_MAX_SEQ]
    with pytest.raises(LimitError):
        session.decode(np.array([5]))


def test_a_prompt_too_long_says_how_long_and_what_to_rebuild_with(session: Session, model: TroL) -> None:
    crops = 2
    ids = prompt_ids(model.config, [600, 20], [crops])
    with pytest.raises(LimitError) as caught:
        session.prefill(ids, np.zeros((crops, 16, 32), np.float32))
    assert str(caught.value) == (
        "the prompt has 652 tokens (32 of pictures), the engine holds 640 with the answer; shorten it or rebuild the "
        "engine with --max-seq 908"
    )


def test_padding_does_not_count_towards_the_limit(session: Session, model: TroL) -> None:
    ids, mask = padded([text_ids(model.config, 10), text_ids(model.config, 4)], pad=2)
    wide = np.pad(ids, ((0, 0), (700, 0)), constant_values=2), np.pad(mask, ((0, 0), (700, 0)))
    np.testing.assert_array_equal(session.prefill(wide[0], None, wide[1]), session.prefill(ids, None, mask))


def test_more_rows_than_the_engine_was_built_for_are_refused(session: Session) -> None:
    with pytest.raises(LimitError) as caught:
        session.prefill(np.full((4, 3), 5))
    assert str(caught.value) == (
        "4 rows in a batch, the engine was built for 3; send fewer or rebuild it with --max-batch 4"
    )


# --- wrong calls


OTHER_VALUES = "attention_mask holds other values than 0 and 1; expected 0 at padding and 1 elsewhere"
NOT_LEFT = "attention_mask has a 0 after a 1; padding must be on the left of every row"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 1, 0]], NOT_LEFT),
        ([[1, 0, 1]], NOT_LEFT),
        ([[0, 0, 0]], "row 0 of attention_mask is all zeros; every row needs a prompt of 1 token or more"),
        ([[1, 1]], "attention_mask has shape (1, 2), expected that of input_ids, (1, 3)"),
        ([1, 1, 1], "attention_mask has shape (3,), expected that of input_ids, (1, 3)"),
        ([[0, 1, 2]], OTHER_VALUES),
        ([[0, -1, 1]], OTHER_VALUES),
        ([[0.0, 0.5, 1.0]], OTHER_VALUES),
        ([[np.nan, 1.0, 1.0]], OTHER_VALUES),
        ([["0", "1", "1"]], OTHER_VALUES),
    ],
)
def test_only_left_padding_is_accepted(session: Session, mask: list[Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        session.prefill(np.array([[5, 6, 7]]), attention_mask=np.array(mask))
    assert str(caught.value) == message


def test_a_row_of_nothing_but_padding_is_named(session: Session) -> None:
    mask = np.array([[0, 1], [0, 0]])
    with pytest.raises(UsageError, match=r"^row 1 of attention_mask is all zeros; "):
        session.prefill(np.array([[5, 6], [7, 8]]), attention_mask=mask)


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (np.array([[5, 6]], np.int32), "int32 (1, 2)"),
        (np.array([[5.0, 6.0]]), "float64 (1, 2)"),
        (np.array([5, 6]), "int64 (2,)"),
        (np.zeros((1, 0), np.int64), "int64 (1, 0)"),
        (np.zeros((0, 4), np.int64), "int64 (0, 4)"),
        (np.zeros((1, 1, 4), np.int64), "int64 (1, 1, 4)"),
    ],
)
def test_ids_of_another_dtype_or_shape_are_refused(session: Session, ids: np.ndarray, found: str) -> None:
    with pytest.raises(UsageError) as caught:
        session.prefill(ids)
    assert str(caught.value) == f"input_ids is {found}, expected int64 (batch, tokens), not empty"


@pytest.mark.parametrize("bad", [-1, 1_000_000])
def test_ids_outside_the_vocabulary_are_refused(session: Session, model: TroL, bad: int) -> None:
    message = (
        f"token id {bad} is outside the vocabulary of {model.config.decoder.embedding_rows}; encode text with this "
        "engine's tokenizer"
    )
    with pytest.raises(UsageError) as caught:
        session.prefill(np.array([[5, bad, 6]]))
    assert str(caught.value) == message
    session.prefill(np.array([[5, 6]]))
    with pytest.raises(UsageError) as caught:
        session.decode(np.array([bad]))
    assert str(caught.value) == message


@pytest.mark.parametrize(("crops", "given"), [(1, 0), (1, 2), (0, 1), (3, 2)])
def test_embeddings_must_be_as_many_as_image_tokens(session: Session, model: TroL, crops: int, given: int) -> None:
    ids = prompt_ids(model.config, [3, 2], [crops])
    embeds = np.zeros((given, 16, 32), np.float32) if given else None
    with pytest.raises(UsageError) as caught:
        session.prefill(ids, embeds)
    assert str(caught.value) == (
        f"{16 * given} image embeddings for {16 * crops} image tokens; encode exactly the pictures the prompt names"
    )


@pytest.mark.parametrize(
    ("embeds", "found"),
    [
        (np.zeros((1, 16, 32)), "float64 (1, 16, 32)"),
        (np.zeros((1, 16, 31), np.float32), "float32 (1, 16, 31)"),
        (np.zeros((), np.float32), "float32 ()"),
    ],
)
def test_embeddings_of_another_dtype_or_width_are_refused(
    session: Session, model: TroL, embeds: np.ndarray, found: str
) -> None:
    with pytest.raises(UsageError) as caught:
        session.prefill(prompt_ids(model.config, [3, 2], [1]), embeds)
    assert str(caught.value) == (
        f"image_embeds is {found}, expected float32 (crops, tokens, 32); make it with encode()"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("keep_prefix", [False, True])
def test_embeddings_that_are_no_numbers_are_refused(model: TroL, value: float, keep_prefix: bool) -> None:
    """What a kept prefix holds of them would spoil later prompts."""
    session, text = model.new_session(keep_prefix=keep_prefix), text_ids(model.config, 9)
    session.prefill(text)
    embeds = np.zeros((1, 16, 32), np.float32)
    embeds[0, 5, 7] = value
    with pytest.raises(UsageError) as caught:
        session.prefill(prompt_ids(model.config, [3, 2], [1]), embeds)
    assert str(caught.value) == (
        "image_embeds holds values that are no numbers; check the pixels that encode() was given"
    )
    assert session.lengths.tolist() == [9]


@pytest.mark.parametrize("shape", [(0, 3, 16, 16), (3, 16, 16), (1, 3, 16, 15), (1, 1, 16, 16)])
def test_pixels_of_another_shape_are_refused(session: Session, model: TroL, shape: tuple[int, ...]) -> None:
    side = model.config.vision.image_size
    shape = tuple(side if size == 16 else size for size in shape)
    with pytest.raises(UsageError) as caught:
        session.encode(np.zeros(shape, np.float32))
    assert str(caught.value) == (
        f"pixel_values is float32 {shape}, expected float32 (crops, 3, {side}, {side}); make it with preprocess()"
    )


def test_pixels_of_another_dtype_are_refused(session: Session, model: TroL) -> None:
    side = model.config.vision.image_size
    with pytest.raises(UsageError, match=r"^pixel_values is uint8 "):
        session.encode(np.zeros((1, 3, side, side), np.uint8))


def test_decode_before_prefill_is_refused(session: Session) -> None:
    with pytest.raises(UsageError) as caught:
        session.decode(np.array([5]))
    assert str(caught.value) == "decode() before prefill(): there is no row to continue"


@pytest.mark.parametrize(
    ("token_ids", "found"),
    [
        (np.array([5, 6]), "int64 (2,)"),
        (np.array([[5]]), "int64 (1, 1)"),
        (np.array([5], np.int32), "int32 (1,)"),
        (np.array([5.0]), "float64 (1,)"),
    ],
)
def test_decode_takes_one_id_per_row(session: Session, token_ids: np.ndarray, found: str) -> None:
    session.prefill(np.array([[5, 6, 7]]))
    with pytest.raises(UsageError) as caught:
        session.decode(token_ids)
    assert str(caught.value) == (f"token_ids is {found}, expected int64 (1,), one per row of the last prefill()")


def test_a_prompt_of_one_image_token_is_refused(session: Session, model: TroL) -> None:
    with pytest.raises(UsageError) as caught:
        session.prefill(np.array([[model.config.image_token_id]]), np.zeros((1, 32), np.float32))
    assert str(caught.value) == "a prompt of one image token has nothing to say about it; add text to the prompt"
    assert session.cache_bytes == 0  # refused before anything is made


class BrokenBackend:
    """Not a number from the second run on."""

    def __init__(self, model: TroL) -> None:
        self.runs = 0
        self.new_cache = model._backend.new_cache

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def prefill(self, *_: Any) -> np.ndarray:
        self.runs += 1
        return np.array([[0.0, 1.0 if self.runs == 1 else np.nan]], np.float32)

    decode = extend = prefill


def test_logits_that_are_no_numbers_are_an_error_that_names_the_row(model: TroL) -> None:
    session = Session(BrokenBackend(model), model.config, model.manifest.limits)
    with pytest.raises(NumericError) as caught:
        session.prefill(np.full((2, 3), 5))
    assert str(caught.value) == (
        "the logits of row 1 are not finite; check the weights with: trol-inspect ENGINE --verify, or export fp32"
    )


def test_a_prefill_that_failed_leaves_nothing_to_decode(model: TroL) -> None:
    session = Session(BrokenBackend(model), model.config, model.manifest.limits)
    session.prefill(np.full((1, 3), 5))
    with pytest.raises(NumericError):
        session.prefill(np.full((1, 3), 5))
    with pytest.raises(UsageError, match="before prefill"):
        session.decode(np.array([5]))


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(lambda session: session.prefill(np.array([[5, -5]])), id="id outside the vocabulary"),
        pytest.param(lambda session: session.prefill(np.full((4, 2), 5)), id="too many rows"),
        pytest.param(lambda session: session.prefill(np.full((1, MICRO_MAX_SEQ + 1), 5)), id="too many tokens"),
        pytest.param(lambda session: session.prefill(np.array([[5]]), np.zeros((1, 32), np.float32)), id="embeddings"),
        pytest.param(lambda session: session.decode(np.array([-5])), id="decode"),
        pytest.param(lambda session: session.extend(np.array([[5]])), id="extend without a kept prefix"),
        pytest.param(lambda session: session.fork(), id="fork without a kept prefix"),
        pytest.param(lambda session: session.repeat(4), id="too many beams"),
        pytest.param(lambda session: session.reorder(np.array([1])), id="reorder"),
    ],
)
def test_a_call_that_is_refused_leaves_the_rows_as_they_were(
    session: Session, model: TroL, refused: Callable[[Session], object]
) -> None:
    ids = text_ids(model.config, 9)
    session.prefill(ids)
    expected = session.decode(np.array([5]))
    session.prefill(ids)
    with pytest.raises(TrolError):
        refused(session)
    np.testing.assert_array_equal(session.decode(np.array([5])), expected)
