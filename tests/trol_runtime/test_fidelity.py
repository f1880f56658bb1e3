"""Exported engines against the official code's recorded outputs, through the runtime's public calls only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from golden.golden import Golden
from small_prompts import assert_close
from trol_runtime import TroL

# fp16 weights, computed in fp32, teacher-forced (INTERFACES, "Budgets").
FP16_BUDGET = 0.01
FP16_COSINE = 0.9999
FP16_CLEAR_GAP = 0.02


class GoldenEngine:
    """An engine and the official outputs for its checkpoint."""

    def __init__(self, model: TroL, golden: Golden) -> None:
        self.model, self.golden = model, golden
        self._embeds: dict[str, np.ndarray] = {}

    @cached_property
    def pixels(self) -> dict[str, np.ndarray]:
        """Picture -> pixel values."""
        sources = {name: self.golden[f"image/{name}/source"] for name in self.golden.spec["images"]}
        return {name: self.model.preprocess([Image.fromarray(source)]) for name, source in sources.items()}

    def embeds(self, picture: str) -> np.ndarray:
        if picture not in self._embeds:
            self._embeds[picture] = self.model.session.encode(self.pixels[picture])
        return self._embeds[picture]

    def case(self, name: str) -> dict[str, Any]:
        """The arguments of a prefill: prompts, embeddings of the pictures they show, mask."""
        (rows,) = (case["rows"] for case in self.golden.spec["cases"] if case["name"] == name)
        shown = [part for row in rows for part in row if isinstance(part, str)]
        return {
            "input_ids": self.golden[f"{name}/input_ids"],
            "image_embeds": np.concatenate([self.embeds(picture) for picture in shown]) if shown else None,
            "attention_mask": self.golden[f"{name}/attention_mask"],
        }

    def forced_logits(self, case: str, tokens: np.ndarray) -> Iterator[np.ndarray]:
        """The logits (rows, vocab) of every step when the official `tokens`, (rows, steps), are fed."""
        session = self.model.session
        yield session.prefill(**self.case(case))
        for step in tokens.T[:-1]:
            yield session.decode(step)


def official(golden: Golden, case: str, output: str) -> np.ndarray:
    """`output` of all rows; those of a batch are each row's own when run alone (SEMANTICS: the padded official runs
    attend to their padding)."""
    rows = len(golden[f"{case}/input_ids"])
    if rows == 1:
        return golden[f"{case}/{output}"]
    return np.concatenate([golden[f"{case}/row{row}_alone/{output}"] for row in range(rows)])


Loaded = Callable[[str], GoldenEngine]


@pytest.fixture(scope="module")
def loaded(arch: Any, tiny_engine: Callable[..., Path], request: pytest.FixtureRequest) -> Loaded:
    golden = request.getfixturevalue(f"golden_{arch}")
    engines: dict[str, GoldenEngine] = {}

    def load(precision: str) -> GoldenEngine:
        if precision not in engines:
            engines[precision] = GoldenEngine(TroL.load(tiny_engine(arch, precision)), golden)
        return engines[precision]

    return load


@pytest.fixture
def fp32(loaded: Loaded) -> GoldenEngine:
    return loaded("fp32")


@pytest.fixture
def fp16(loaded: Loaded) -> GoldenEngine:
    return loaded("fp16")


CASES = pytest.mark.parametrize("case", ["img", "text", "batch2", "batch2text"])
PICTURES = pytest.mark.parametrize("picture", ["a", "b"])


# --- fp32


@PICTURES
def test_pixel_values_are_exact(fp32: GoldenEngine, picture: str) -> None:
    expected = fp32.golden[f"image/{picture}/pixel_values_stride7"]
    np.testing.assert_array_equal(fp32.pixels[picture][..., ::7, ::7], expected)
    assert fp32.model.crops_per_image([Image.fromarray(fp32.golden[f"image/{picture}/source"])]) == [len(expected)]


@PICTURES
def test_image_embeddings_are_the_official_projected_features(fp32: GoldenEngine, picture: str) -> None:
    name = f"image/{picture}/projected"
    assert_close(fp32.golden.thin(name, fp32.embeds(picture)), fp32.golden[name])


@CASES
def test_logits_of_every_step_are_within_the_fp32_budget(fp32: GoldenEngine, case: str) -> None:
    tokens = official(fp32.golden, case, "greedy_tokens")
    expected = official(fp32.golden, case, "greedy_logits")
    for step, logits in enumerate(fp32.forced_logits(case, tokens)):
        for row, found in enumerate(logits):
            assert_close(found, expected[row, step])


@CASES
def test_greedy_tokens_are_the_official_ones(fp32: GoldenEngine, case: str) -> None:
    tokens = official(fp32.golden, case, "greedy_tokens")
    found = fp32.model.generate_ids(**fp32.case(case), max_new_tokens=tokens.shape[1])
    np.testing.assert_array_equal(found, tokens)


def test_the_stop_token_ends_the_answer_and_is_part_of_it(fp32: GoldenEngine) -> None:
    expected, eos = fp32.golden["img/stop/tokens"], int(fp32.golden["img/stop/eos_token_id"][0])
    found = fp32.model.generate_ids(**fp32.case("img"), max_new_tokens=16, eos_token_id=eos)
    np.testing.assert_array_equal(found, expected)
    assert found[0, -1] == eos


@pytest.mark.parametrize("batch", ["batch2", "batch2text"])
def test_a_row_alone_gives_what_it_gives_in_its_batch(fp32: GoldenEngine, batch: str) -> None:
    case = fp32.case(batch)
    tokens = official(fp32.golden, batch, "greedy_tokens")
    for row, expected in enumerate(tokens):
        ids = case["input_ids"][row][case["attention_mask"][row].astype(bool)][None]
        embeds = None if case["image_embeds"] is None else fp32.embeds("ab"[row])
        found = fp32.model.generate_ids(ids, embeds, max_new_tokens=len(expected))
        np.testing.assert_array_equal(found[0], expected)


# --- prompts in parts


@pytest.mark.parametrize(
    ("case", "chunk"), [("img", 100), ("img", 1000), ("img", 1226), ("text", 1), ("text", 5), ("batch2", 600)]
)
def test_a_prompt_in_chunks_gives_the_official_answer(fp32: GoldenEngine, case: str, chunk: int) -> None:
    """At the real number of image tokens; a single token is a chunk too, and runs twice."""
    session = fp32.model.new_session(prefill_chunk=chunk)
    tokens, expected = official(fp32.golden, case, "greedy_tokens"), official(fp32.golden, case, "greedy_logits")
    logits = session.prefill(**fp32.case(case))
    for step, ids in enumerate(tokens.T):
        for row, found in enumerate(logits):
            assert_close(found, expected[row, step])
        assert logits.argmax(-1).tolist() == ids.tolist()
        if step + 1 < tokens.shape[1]:
            logits = session.decode(ids)


@pytest.mark.parametrize("case", ["img", "text"])
def test_a_question_behind_a_kept_prefix_gives_the_official_answer(fp32: GoldenEngine, case: str) -> None:
    """The session has answered something else about the same picture; then its fork is asked the official question."""
    arguments = fp32.case(case)
    ids, tokens = arguments["input_ids"], fp32.golden[f"{case}/greedy_tokens"]
    other = np.concatenate([ids[:, :-3], np.full((1, 20), 5)], axis=1)
    session = fp32.model.new_session(keep_prefix=True)
    session.prefill(other, arguments["image_embeds"])
    session.decode(np.array([7]))
    for asked in (session.fork(), session):
        found = fp32.model.complete(**arguments, session=asked, max_new_tokens=tokens.shape[1])
        np.testing.assert_array_equal(found.token_ids, tokens)
        assert asked.reused.tolist() == [ids.shape[1] - 3]


# --- beams


# A score is a mean of log-probabilities. Those of fp32 logits within their budget, 1e-4 of 13, could differ by 3e-3;
# what is seen is the rounding of fp32 sums.
SCORE_TOLERANCE = 1e-5


@pytest.mark.parametrize("case", ["img", "text"])
@pytest.mark.parametrize("ended", ["", "eos_"], ids=["to the limit", "with eos"])
def test_beam_search_finds_the_official_answer_and_its_score(fp32: GoldenEngine, case: str, ended: str) -> None:
    golden = fp32.golden
    tokens, score = golden[f"{case}/beam5/{ended}tokens"], golden[f"{case}/beam5/{ended}score"]
    steps = golden[f"{case}/beam5/tokens"].shape[1]
    eos = int(golden[f"{case}/beam5/eos_token_id"][0]) if ended else None
    found = fp32.model.complete(**fp32.case(case), num_beams=5, max_new_tokens=steps, eos_token_id=eos)
    np.testing.assert_array_equal(found.token_ids, tokens)
    np.testing.assert_allclose(found.scores, score, atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(found.logprobs.sum() / tokens.shape[1], score[0], atol=SCORE_TOLERANCE)


def test_a_search_behind_a_kept_prefix_finds_the_official_answer(fp32: GoldenEngine) -> None:
    """Twice in one session: the second search reuses the picture that the first one was about."""
    session = fp32.model.new_session(keep_prefix=True)
    tokens = fp32.golden["img/beam5/tokens"]
    for reused in (0, fp32.golden["img/input_ids"].shape[1] - 1):
        found = fp32.model.generate_ids(
            **fp32.case("img"), session=session, num_beams=5, max_new_tokens=tokens.shape[1]
        )
        np.testing.assert_array_equal(found, tokens)
        assert session.reused.tolist() == [reused]


# --- fp16


@PICTURES
def test_fp16_image_embeddings_are_within_the_fp16_budget(fp16: GoldenEngine, picture: str) -> None:
    name = f"image/{picture}/projected"
    assert_close(fp16.golden.thin(name, fp16.embeds(picture)), fp16.golden[name], FP16_BUDGET)


@CASES
def test_fp16_logits_of_every_step_are_within_the_fp16_budget(fp16: GoldenEngine, case: str) -> None:
    tokens = official(fp16.golden, case, "greedy_tokens")
    expected = official(fp16.golden, case, "greedy_logits").astype(np.float64)
    for step, logits in enumerate(fp16.forced_logits(case, tokens)):
        for row, found in enumerate(logits.astype(np.float64)):
            wanted = expected[row, step]
            assert found @ wanted >= FP16_COSINE * np.linalg.norm(found) * np.linalg.norm(wanted)
            assert np.abs(found - wanted).max() <= FP16_BUDGET * np.abs(wanted).max()
            second, first = np.sort(wanted)[-2:]
            if first - second > FP16_CLEAR_GAP * np.abs(wanted).max():
                assert found.argmax() == wanted.argmax()
