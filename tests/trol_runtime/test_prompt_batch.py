"""Prompts as arrays: what two have in common, what lies between two places, and what an engine has room for."""

from __future__ import annotations

import numpy as np
import pytest

from small_engine import SMALL_MODEL
from trol_runtime.errors import LimitError
from trol_runtime.manifest import Limits
from trol_runtime.prompt_batch import Prompt, PromptReader

IMAGE = SMALL_MODEL.image_token_id
HIDDEN = SMALL_MODEL.decoder.hidden_size


@pytest.fixture
def reader() -> PromptReader:
    return PromptReader(SMALL_MODEL, Limits(max_seq=128, max_batch=5))


def prompt(ids: list[int], *pictures: float) -> Prompt:
    """pictures: the value of each image token's embedding."""
    return Prompt(np.array(ids), np.full((len(pictures), HIDDEN), np.array(pictures)[:, None], np.float32))


def test_a_batch_is_read_into_rows_with_their_embeddings(reader: PromptReader) -> None:
    ids = np.array([[0, 0, 5, IMAGE], [IMAGE, IMAGE, 6, 7], [0, 8, 9, 10]])
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    embeds = np.arange(3 * HIDDEN, dtype=np.float32).reshape(3, 1, HIDDEN)
    rows = reader.read(ids, embeds, mask)
    assert [row.ids.tolist() for row in rows] == [[5, IMAGE], [IMAGE, IMAGE, 6, 7], [8, 9, 10]]
    for row, expected in zip(rows, (embeds[:1, 0], embeds[1:, 0], embeds[:0, 0]), strict=True):
        np.testing.assert_array_equal(row.image_embeds, expected)


@pytest.mark.parametrize(
    ("a", "b", "tokens"),
    [
        pytest.param(prompt([5, 6, 7]), prompt([5, 6, 7]), 3, id="equal"),
        pytest.param(prompt([5, 6, 7]), prompt([5, 6]), 2, id="a beginning"),
        pytest.param(prompt([5, 6, 7]), prompt([8, 6, 7]), 0, id="nothing"),
        pytest.param(prompt([5, 6, 7]), prompt([5, 8, 7]), 1, id="equal again behind a difference"),
        pytest.param(prompt([]), prompt([5]), 0, id="nothing to share"),
        pytest.param(prompt([5, IMAGE, 6], 1), prompt([5, IMAGE, 6], 1), 3, id="the same picture"),
        pytest.param(prompt([5, IMAGE, 6], 1), prompt([5, IMAGE, 6], 2), 1, id="another picture"),
        pytest.param(prompt([IMAGE, IMAGE, 6], 1, 2), prompt([IMAGE, IMAGE, 6], 1, 3), 1, id="partly the same picture"),
        pytest.param(prompt([IMAGE, 5, IMAGE], 1, 2), prompt([IMAGE, 6, IMAGE], 1, 3), 1, id="another id first"),
        pytest.param(prompt([5, IMAGE], 1), prompt([5, 6]), 1, id="a picture and text"),
        pytest.param(prompt([IMAGE], float("nan")), prompt([IMAGE], float("nan")), 0, id="no number equals nothing"),
    ],
)
def test_prompts_share_what_both_begin_with(reader: PromptReader, a: Prompt, b: Prompt, tokens: int) -> None:
    assert reader.shared(a, b) == reader.shared(b, a) == tokens


def test_a_part_takes_its_embeddings_along(reader: PromptReader) -> None:
    whole = prompt([5, IMAGE, IMAGE, 6, IMAGE, 7], 1, 2, 3)
    for begin, end, pictures in ((0, 6, [1, 2, 3]), (0, 2, [1]), (2, 5, [2, 3]), (3, 4, []), (4, 6, [3]), (2, 2, [])):
        part = reader.part(whole, begin, end)
        assert part.ids.tolist() == whole.ids[begin:end].tolist()
        assert part.image_embeds[:, 0].tolist() == pictures


def test_parts_followed_by_each_other_are_the_whole(reader: PromptReader) -> None:
    whole = prompt([5, IMAGE, IMAGE, 6, IMAGE, 7], 1, 2, 3)
    for place in range(7):
        again = reader.part(whole, 0, place).followed_by(reader.part(whole, place, 6))
        assert again.ids.tolist() == whole.ids.tolist()
        np.testing.assert_array_equal(again.image_embeds, whole.image_embeds)


def test_the_longest_prompt_decides_on_the_room(reader: PromptReader) -> None:
    prompts = [np.full(length, 5) for length in (3, 100, 7)]
    assert reader.room_behind(prompts) == 28
    assert reader.room_behind([]) == 128
    with pytest.raises(LimitError) as caught:
        reader.room_behind([*prompts, np.full(128, 5)])
    assert str(caught.value) == (
        "the prompt has 128 tokens and fills the engine; shorten it or rebuild the engine with --max-seq 384"
    )


@pytest.mark.parametrize(
    ("rows", "beams", "message"),
    [
        (6, 1, "6 rows in a batch, the engine was built for 5; send fewer or rebuild it with --max-batch 6"),
        (1, 6, "6 beams, the engine was built for 5; search with fewer or rebuild it with --max-batch 6"),
        (
            3,
            2,
            "2 beams for each of 3 rows, the engine was built for 5; search with fewer beams or rows or rebuild it "
            "with --max-batch 6",
        ),
    ],
)
def test_more_rows_than_the_engine_takes_say_what_to_rebuild_with(
    reader: PromptReader, rows: int, beams: int, message: str
) -> None:
    with pytest.raises(LimitError) as caught:
        reader.require_rows(rows, beams)
    assert str(caught.value) == message
    reader.require_rows(5 // beams, beams)


def test_an_engine_as_long_as_its_model_is_not_to_be_rebuilt() -> None:
    longest = SMALL_MODEL.decoder.max_positions
    reader = PromptReader(SMALL_MODEL, Limits(max_seq=longest, max_batch=1))
    assert reader.how_to_hold(longest + 1) == "shorten it, the model itself allows no more than 4096"
