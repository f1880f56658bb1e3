"""The hostile input campaign's first cases, always the same ones; and that the campaign sees what it is there to see.

`make fuzz MINUTES=n` goes on with random cases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Arch, EngineOf, made_once
from fuzz.campaign import run_family
from fuzz.case import ALLOWED, Outcome, Result, read_case
from fuzz.families import FAMILIES, make_family
from fuzz.planted import LIMIT_S, MISDEEDS, Planted
from fuzz.seeds import checkpoint_path, engine_path, write_small_seeds

# What runs in some seconds each. Of engine bytes, the listed cases come first: a cut at every byte of manifest and
# directory, then a flipped bit in every byte of every header.
FIRST_CASES = {
    "engine bytes": 4500,
    "engine records": 300,
    "engine manifests": 150,
    "engine entries": 60,
    "engine plans": 9900,
    "engine weights": 150,
    "pictures": 600,
    "tokenizer files": 200,
    "configs": 80,
    "safetensors": 600,
    "torch files": 300,
    "questions": 600,
}


@pytest.fixture(scope="session")
def seeds(run_folder: Path, micro_engine: EngineOf, micro_checkpoint: Callable[[Arch], Path]) -> Path:
    """The folder of untouched files, as `fuzz.seeds.write_seeds` would write it."""

    def link(folder: Path) -> None:
        folder.mkdir()
        archs: tuple[Arch, ...] = ("internlm2", "phi3")
        for arch in archs:
            checkpoint_path(folder, arch).symlink_to(micro_checkpoint(arch))
            engine_path(folder, arch).symlink_to(micro_engine(arch))
        write_small_seeds(folder)

    return made_once(run_folder / "fuzz-seeds", link)


def test_every_family_is_run() -> None:
    assert FIRST_CASES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_input_gives_a_correct_answer_or_one_clear_error(family: str, seeds: Path, tmp_path: Path) -> None:
    tally = run_family(family, seeds, range(FIRST_CASES[family]), tmp_path)
    assert [(folder.name, result) for folder, result in tally.failures] == []
    assert tally.cases == FIRST_CASES[family]
    assert tally.counts[Outcome.REFUSED] > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_thousands_more_give_a_correct_answer_or_one_clear_error(family: str, seeds: Path, tmp_path: Path) -> None:
    first = FIRST_CASES[family]
    tally = run_family(family, seeds, range(first, first + 10_000), tmp_path, seconds=40)
    assert [(folder.name, result) for folder, result in tally.failures] == []


def test_a_case_is_made_of_its_number(seeds: Path) -> None:
    first, again = (make_family("engine records", seeds) for _ in range(2))
    assert [first.case(number) for number in range(20)] == [again.case(number) for number in range(20)]


# --- what the campaign must see


def test_the_campaign_sees_every_misdeed_and_goes_on(tmp_path: Path) -> None:
    tally = run_family(Planted.name, tmp_path, range(len(MISDEEDS)), tmp_path / "failures", time_limit_s=LIMIT_S)
    found = {read_case(folder)[1].change: result.outcome for folder, result in tally.failures}
    assert found == {what: outcome for what, outcome, _ in MISDEEDS if outcome not in ALLOWED}
    assert tally.counts == Counter(outcome for _, outcome, _ in MISDEEDS)


def test_a_failing_case_is_kept_and_can_be_read_again(seeds: Path, tmp_path: Path) -> None:
    number = [what for what, _, _ in MISDEEDS].index("a KeyError")
    tally = run_family(Planted.name, tmp_path, [number], tmp_path / "failures")
    ((folder, result),) = tally.failures
    assert result == Result(Outcome.EXCEPTION, "\"KeyError: 'x' ()\"")
    family, case = read_case(folder)
    assert (family, case.number, case.change, case.files) == (Planted.name, number, "a KeyError", {"file": b"changed"})
    (tmp_path / "seeds").symlink_to(seeds)
    again = run_command("--replay", folder, "--folder", tmp_path)
    assert (again.returncode, again.stdout) == (1, "exception: \"KeyError: 'x' ()\"\n")


def test_the_command_counts_outcomes(seeds: Path, tmp_path: Path) -> None:
    (tmp_path / "seeds").symlink_to(seeds)
    options = ("--cases", "20", "--family", "questions", "--family", "safetensors", "--folder", tmp_path)
    counted = json.loads(run_command(*options, "--json").stdout)
    assert counted["start"] == 0
    for family in ("questions", "safetensors"):
        record = counted["families"][family]
        assert record["cases"] == sum(record["outcomes"].values()) == 20
        assert record["failures"] == []
    assert run_command(*options).stdout.splitlines()[1].split()[:2] == ["questions", "20"]


def run_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m fuzz`, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-m", "fuzz", *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, text=True)
