"""One run of an engine on random pixels and token ids, timed from inside; the process that other programs here measure.

    python -m trol_benchmarks.engine_run engine.plan --crops 1 --text-tokens 60 --new-tokens 16 --threads 2

Prints one JSON object. Before the clock starts, a prompt of two tokens brings the language model's weights into memory,
as loading them does for a program that reads its weights at start.
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.engine import TroL
from trol_runtime.errors import UsageError
from trol_runtime.model_config import ModelConfig

Result = TypeVar("Result")

# The picture stands after the start of the prompt, as the official template has it.
_TEXT_BEFORE_PICTURE = 0.75


@dataclass(frozen=True)
class EngineRun:
    """vision_s is None without a picture; decode_ms has one value per step; cache_bytes are allocated at the end."""

    load_s: float
    vision_s: float | None
    prefill_s: float
    decode_ms: list[float]
    prompt_tokens: int
    cache_bytes: int

    @classmethod
    def from_json(cls, text: str) -> EngineRun:
        return cls(**json.loads(text))


def main(argv: Sequence[str] | None) -> int:
    """Parse, run, print; returns the exit code."""
    print(json.dumps(asdict(run(_parse(argv)))))
    return 0


def add_run_options(parser: ArgumentParser) -> None:
    """The shape of a run; the defaults are one picture of TroL-1.8B and 7B (1225 tokens) and a question."""
    parser.add_argument("--crops", type=int, default=1, metavar="N", help="picture crops in the prompt (default: 1)")
    parser.add_argument("--text-tokens", type=int, default=60, metavar="N", help="besides the picture (default: 60)")
    parser.add_argument("--new-tokens", type=int, default=16, metavar="N", help="decode steps (default: 16)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the engine (default: all physical cores)")
    parser.add_argument("--prefill-chunk", type=int, metavar="N", help="tokens of a prompt at a time (default: all)")


def check_run_options(arguments: Namespace) -> None:
    """Raise UsageError for a shape that is no prompt."""
    if arguments.crops < 0 or arguments.text_tokens < 2 or arguments.new_tokens < 1:
        raise UsageError("expected --crops >= 0, --text-tokens >= 2 and --new-tokens >= 1")


def run_options(arguments: Namespace) -> list[str]:
    """The options of `add_run_options` as command-line words, to hand them on to a process of this program."""
    shape = ["--crops", arguments.crops, "--text-tokens", arguments.text_tokens, "--new-tokens", arguments.new_tokens]
    threads = [] if arguments.threads is None else ["--threads", arguments.threads]
    chunk = [] if arguments.prefill_chunk is None else ["--prefill-chunk", arguments.prefill_chunk]
    return [str(word) for word in (*shape, *threads, *chunk)]


def run(arguments: Namespace) -> EngineRun:
    """Load, warm up, encode, prefill, decode; raises UsageError for a shape that is no prompt."""
    check_run_options(arguments)
    options = {"threads": arguments.threads, "prefill_chunk": arguments.prefill_chunk}
    engine, load_s = _timed(TroL.load, arguments.engine, **options)
    session, config = engine.session, engine.config
    random = np.random.default_rng(0)
    session.prefill(np.ones((1, 2), np.int64))
    embeds, vision_s = None, None
    if arguments.crops:
        pixels = random.standard_normal((arguments.crops, 3, *2 * [config.vision.image_size]), np.float32)
        embeds, vision_s = _timed(session.encode, pixels)
    ids = random_prompt(config, arguments.crops, arguments.text_tokens, random)
    logits, prefill_s = _timed(session.prefill, ids, embeds)
    decode_ms = []
    for _ in range(arguments.new_tokens):
        logits, step_s = _timed(session.decode, logits.argmax(-1))
        decode_ms.append(1e3 * step_s)
    return EngineRun(load_s, vision_s, prefill_s, decode_ms, ids.shape[1], session.cache_bytes)


def random_prompt(config: ModelConfig, crops: int, text_tokens: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Token ids int64 (1, s): random text around the image tokens of `crops`, none of it an image token."""
    text = random.integers(3, config.decoder.vocab_size, text_tokens)
    # An id of the vocabulary may stand for a picture (phi3): random text must not.
    text[text == config.image_token_id] = config.bos_token_id
    before = int(text_tokens * _TEXT_BEFORE_PICTURE)
    image = np.full(crops * config.vision.tokens_per_crop, config.image_token_id)
    return np.concatenate([text[:before], image, text[before:]])[None].astype(np.int64)


def _timed(action: Callable[..., Result], *arguments: Any, **options: Any) -> tuple[Result, float]:
    """What the call returns, and the seconds it took."""
    start = time.perf_counter()
    result = action(*arguments, **options)
    return result, time.perf_counter() - start


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = CommandParser("engine_run", (("engine.plan --threads 2", "time one run"),))
    parser.add_argument("engine", metavar="engine.plan")
    add_run_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script("engine_run", main)
