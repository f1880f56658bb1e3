from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import replace

import numpy as np
import pytest

from small_engine import SMALL_MODEL
from trol_benchmarks.engine_run import add_run_options, main, random_prompt, run_options
from trol_runtime.errors import UsageError

TOKENS_PER_CROP = SMALL_MODEL.vision.tokens_per_crop


def test_a_random_prompt_has_the_asked_shape_with_text_on_both_sides_of_the_picture() -> None:
    ids = random_prompt(SMALL_MODEL, 2, 20, np.random.default_rng(0))
    assert ids.dtype == np.int64
    assert ids.shape == (1, 2 * TOKENS_PER_CROP + 20)
    image = np.flatnonzero(ids[0] == SMALL_MODEL.image_token_id)
    assert image.tolist() == list(range(15, 15 + 2 * TOKENS_PER_CROP))


def test_random_text_never_holds_an_image_token() -> None:
    # phi3's picture piece is an id of the vocabulary.
    model = replace(SMALL_MODEL, image_token_id=5)
    ids = random_prompt(model, 0, 100_000, np.random.default_rng(0))
    assert not (ids == 5).any()


def test_options_survive_being_handed_on() -> None:
    parser = ArgumentParser()
    add_run_options(parser)
    words = ["--crops", "3", "--text-tokens", "7", "--new-tokens", "2", "--threads", "1", "--prefill-chunk", "64"]
    assert run_options(parser.parse_args(words)) == words
    assert "--threads" not in run_options(parser.parse_args([]))


@pytest.mark.parametrize(
    "words", [("--crops", "-1"), ("--text-tokens", "1"), ("--new-tokens", "0")], ids=["crops", "text", "steps"]
)
def test_a_shape_that_is_no_prompt_is_refused(words: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="expected --crops >= 0, --text-tokens >= 2 and --new-tokens >= 1"):
        main(["engine.plan", *words])
