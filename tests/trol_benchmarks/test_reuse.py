from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import EngineOf
from trol_benchmarks.reuse import _another_question, main
from trol_runtime.errors import UsageError

IMAGE = 7


def test_another_question_differs_behind_the_picture_only_and_names_no_further_picture() -> None:
    ids = np.array([[4, 5, IMAGE, IMAGE, 6, 9, 6]])  # 6 + 1 would be a picture
    other = _another_question(ids, IMAGE, np.random.default_rng(0))
    assert other[0, :4].tolist() == [4, 5, IMAGE, IMAGE]
    assert not (other[0, 4:] == IMAGE).any()
    assert (ids[0, 4:] == [6, 9, 6]).all()


def test_the_record_says_what_was_reused_and_what_it_took(
    micro_engine: EngineOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "reuse.json"
    main([str(micro_engine("phi3")), "--text-tokens", "40", "--rounds", "2", "--json", str(record)])
    found = json.loads(record.read_text())
    assert (found["reused_tokens"], found["prompt_tokens"]) == (46, 56)  # 30 of text, 16 of the picture; 10 behind it
    assert found["prefix_bytes"] * 2 == found["cache_bytes"]
    assert {len(side["values"]) for side in found["seconds"].values()} == {2}
    assert "tokens of the second question that were reused  46 of 56" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--rounds", "0"), ("--crops", "0")])
def test_a_run_without_a_second_question_is_refused(words: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="a second question needs a first, about a picture"):
        main(["engine.plan", *words])
