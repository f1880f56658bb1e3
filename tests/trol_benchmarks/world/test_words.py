from __future__ import annotations

import re
import string

import numpy as np

from trol_benchmarks.world.words import TEST, TRAIN, VALIDATION, made_up

LISTED = TRAIN + VALIDATION + TEST


def test_every_word_is_on_one_list_once() -> None:
    assert len(set(LISTED)) == len(LISTED)


def test_words_are_three_to_five_capitals() -> None:
    assert all(re.fullmatch("[A-Z]{3,5}", word) for word in LISTED)


def test_most_words_are_for_training_and_enough_for_measuring() -> None:
    assert (len(TRAIN), len(VALIDATION), len(TEST)) == (247, 30, 54)


def test_every_letter_of_the_other_words_is_learnt_in_training() -> None:
    assert set("".join(TRAIN)) == set(string.ascii_uppercase)


def test_made_up_words_are_three_to_five_capitals_on_no_list() -> None:
    rng = np.random.default_rng(0)
    words = [made_up(rng) for _ in range(3000)]
    assert all(re.fullmatch("[A-Z]{3,5}", word) for word in words)
    assert not set(words) & set(LISTED)


def test_made_up_words_have_a_vowel_and_begin_with_any_letter() -> None:
    rng = np.random.default_rng(1)
    words = [made_up(rng) for _ in range(5000)]
    assert all(set(word) & set("AEIOUY") for word in words)
    assert {word[0] for word in words} == set(string.ascii_uppercase)


def test_made_up_words_seldom_repeat() -> None:
    rng = np.random.default_rng(2)
    assert len({made_up(rng) for _ in range(1000)}) > 800


def test_the_same_seed_makes_up_the_same_words() -> None:
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    assert [made_up(one) for _ in range(20)] == [made_up(other) for _ in range(20)]
