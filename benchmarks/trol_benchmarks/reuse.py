"""What a kept prefix saves and costs: time to first token of a first and a second question about one picture.

    python -m trol_benchmarks.reuse engine.plan --threads 2 --rounds 3 --json reuse.json

Each round asks, on random pixels and token ids: one question in a session that keeps nothing, the same question in one
that keeps its prefix, and there a second question about the same picture. Time to first token counts the vision graph,
the prefill and the choice of the token, weights being in memory.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trol_benchmarks.engine_run import add_run_options, check_run_options, random_prompt
from trol_benchmarks.report import Row, add_json_option, gib, report, seconds
from trol_benchmarks.samples import ratio, summary
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.engine import TroL
from trol_runtime.errors import UsageError
from trol_runtime.session import Session

PLAIN, FIRST, SECOND, FORK = "keeps nothing", "first question", "second question", "fork"


def main(argv: Sequence[str] | None) -> int:
    """Parse, measure, print; returns the exit code."""
    arguments = _parse(argv)
    engine = TroL.load(arguments.engine, threads=arguments.threads, prefill_chunk=arguments.prefill_chunk)
    random = np.random.default_rng(0)
    pixels = random.standard_normal((arguments.crops, 3, *2 * [engine.config.vision.image_size]), np.float32)
    engine.session.prefill(np.ones((1, 2), np.int64))  # brings the weights into memory
    taken: dict[str, list[float]] = {name: [] for name in (PLAIN, FIRST, SECOND, FORK)}
    for _ in range(arguments.rounds):
        first = random_prompt(engine.config, arguments.crops, arguments.text_tokens, random)
        kept = engine.new_session(keep_prefix=True)
        taken[PLAIN].append(_time_to_first_token(engine.new_session(), pixels, first))
        taken[FIRST].append(_time_to_first_token(kept, pixels, first))
        begin = time.perf_counter()
        kept.fork()
        taken[FORK].append(time.perf_counter() - begin)
        second = _another_question(first, engine.config.image_token_id, random)
        taken[SECOND].append(_time_to_first_token(kept, pixels, second))
    report("reuse", _record(taken, kept), _rows(taken, kept), arguments.json)
    return 0


def _time_to_first_token(session: Session, pixels: NDArray[np.float32], ids: NDArray[np.int64]) -> float:
    """Seconds."""
    begin = time.perf_counter()
    session.prefill(ids, session.encode(pixels)).argmax()
    return time.perf_counter() - begin


def _another_question(ids: NDArray[np.int64], image_token_id: int, random: np.random.Generator) -> NDArray[np.int64]:
    """The same prompt up to its picture, another text behind it: (1, s)."""
    behind = int(np.flatnonzero(ids[0] == image_token_id)[-1]) + 1
    other = ids.copy()
    other[0, behind:] = random.permutation(ids[0, behind:] + 1)
    other[0, behind:][other[0, behind:] == image_token_id] -= 1
    return other


def _record(taken: dict[str, list[float]], kept: Session) -> dict[str, object]:
    return {
        "seconds": {name: summary(values) for name, values in taken.items()},
        "second_to_first": ratio(taken[SECOND], taken[FIRST]),
        "first_to_keeping_nothing": ratio(taken[FIRST], taken[PLAIN]),
        "reused_tokens": int(kept.reused[0]),
        "prompt_tokens": int(kept.lengths[0]),
        "cache_bytes": kept.cache_bytes,
        "prefix_bytes": kept.prefix_bytes,
    }


def _rows(taken: dict[str, list[float]], kept: Session) -> list[Row]:
    median = {name: summary(values)["median"] for name, values in taken.items()}
    rows: list[Row] = [("time to first token, median", f"{len(taken[FIRST])} rounds")]
    rows += [(f"  {name}", seconds(float(str(median[name])))) for name in (PLAIN, FIRST, SECOND)]
    for title, (name, to) in {"second / first": (SECOND, FIRST), "first / keeps nothing": (FIRST, PLAIN)}.items():
        rows.append((title, f"{ratio(taken[name], taken[to])['of_medians']:.3f}"))
    rows.append(("copying the cache for a fork", seconds(float(str(median[FORK])))))
    rows.append(("tokens of the second question that were reused", f"{kept.reused[0]} of {kept.lengths[0]}"))
    rows.append(("KV cache", gib(kept.cache_bytes)))
    rows.append(("  of it the kept prefix", gib(kept.prefix_bytes)))
    return rows


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = CommandParser("reuse", (("engine.plan --threads 2", "a first and a second question about one picture"),))
    parser.add_argument("engine", metavar="engine.plan")
    add_run_options(parser)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    check_run_options(arguments)
    if arguments.rounds < 1 or arguments.crops < 1:
        raise UsageError("expected --rounds >= 1 and --crops >= 1: a second question needs a first, about a picture")
    return arguments


if __name__ == "__main__":
    run_script("reuse", main)
