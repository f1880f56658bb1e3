"""The campaign as a command: random cases for some minutes, or a failing case read once more.

    make fuzz MINUTES=30
    PYTHONPATH=tests python -m fuzz --cases 3000 --family pictures --json
    PYTHONPATH=tests python -m fuzz --replay build/fuzz/failures/pictures-4711

Cases are made of their numbers: those of a start that is printed, or else the first ones, which the tests run too. Ends
with 1 when a case came to what is not allowed; its files and a record of how it was made are kept, and named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fuzz.campaign import Tally, replay, run_family
from fuzz.case import Outcome
from fuzz.families import FAMILIES
from fuzz.seeds import SMALL_ENGINE, write_seeds

FOLDER = Path("build/fuzz")
# Random numbers start here at the least: beyond all listed cases.
_FIRST_START = 10**6


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, print; returns the exit code."""
    arguments = _parse(argv)
    seeds = arguments.folder / "seeds"
    if not (seeds / SMALL_ENGINE).exists():  # the last one to be written
        seeds.mkdir(parents=True, exist_ok=True)
        write_seeds(seeds)
    if arguments.replay:
        result = replay(arguments.replay, seeds)
        print(f"{result.outcome.value}: {result.detail}")
        return 0 if result.allowed else 1
    families = arguments.family or list(FAMILIES)
    start = arguments.start
    if start is None:
        start = random.SystemRandom().randrange(_FIRST_START, 2**40) if arguments.minutes else 0
    numbers = range(start, start + arguments.cases) if arguments.cases else itertools.count(start)
    seconds = 60 * arguments.minutes / len(families) if arguments.minutes else float("inf")
    tallies = []
    for family in families:
        tallies.append(run_family(family, seeds, numbers, arguments.folder / "failures", seconds))
        print(f"{family}: {tallies[-1].cases} cases from {start} in {tallies[-1].seconds:.0f} s", file=sys.stderr)
    print(json.dumps(_record(tallies, start)) if arguments.json else "\n".join(_table(tallies)))
    for tally in tallies:
        for folder, result in tally.failures:
            print(f"{folder}: {result.outcome.value}: {result.detail}", file=sys.stderr)
    return 1 if any(tally.failures for tally in tallies) else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser("python -m fuzz", description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="how long, all families together; cases are random")
    length.add_argument("--cases", type=int, help="how many cases of each family; without --start the first ones")
    length.add_argument("--replay", type=Path, metavar="FOLDER", help="read a failing case again, in this process")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this one; may be given again")
    parser.add_argument("--start", type=int, metavar="NUMBER", help="number of the first case")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"for seeds and failures (default: {FOLDER})")
    parser.add_argument("--json", action="store_true", help="print counts as JSON")
    return parser.parse_args(argv)


def _record(tallies: Sequence[Tally], start: int) -> dict[str, Any]:
    """Counts for scripts: outcomes that did not occur are left out."""
    return {
        "start": start,
        "families": {
            tally.family: {
                "cases": tally.cases,
                "seconds": round(tally.seconds, 1),
                "outcomes": {outcome.value: count for outcome, count in sorted(tally.counts.items())},
                "failures": [str(folder) for folder, _ in tally.failures],
            }
            for tally in tallies
        },
    }


def _table(tallies: Sequence[Tally]) -> Iterator[str]:
    """Counts for a person: a line per family, a column per outcome."""
    width = max(len(tally.family) for tally in tallies)
    yield f"{'':{width}}     cases" + "".join(f"  {outcome.value:>12}" for outcome in Outcome)
    for tally in tallies:
        counts = "".join(f"  {tally.counts[outcome]:12,}" for outcome in Outcome)
        yield f"{tally.family:{width}}  {tally.cases:8,}{counts}"


if __name__ == "__main__":
    sys.exit(main())
