"""trol-run: an engine.plan and pictures in, the answer out, streamed."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import UsageError

if TYPE_CHECKING:
    from trol_runtime.generation import Generation

DEFAULT_PROMPT = "Describe this picture in detail."
EXAMPLES = (
    ("engine.plan --image x.png", "describe a picture"),
    ('engine.plan --image x.png --prompt "What is written here?"', "ask about it"),
    ('engine.plan --image a.png --image b.png --prompt "<image> or <image>?"', "several pictures, placed in the text"),
    ('engine.plan --prompt "What can you do?"', "no picture"),
    ("engine.plan --image - < x.png", "a picture from stdin"),
)


def script() -> NoReturn:
    """Console entry point."""
    run_script("trol-run", main)


def main(argv: Sequence[str] | None) -> int:
    """Parse, run, print; returns the exit code."""
    arguments = _parse(argv)
    from trol_runtime.bundle import Bundle
    from trol_runtime.engine import TroL
    from trol_runtime.memory_need import memory_need
    from trol_runtime.picture import load_picture

    sources = [sys.stdin.buffer if image == "-" else image for image in arguments.image]
    pictures = [load_picture(source, arguments.exif) for source in sources]
    begin = time.perf_counter()
    bundle = Bundle.open(arguments.engine)
    print(f"{arguments.engine} needs {memory_need(bundle.manifest)}", file=sys.stderr)
    model = TroL(bundle)
    load_ms = 1e3 * (time.perf_counter() - begin)
    answer = model.start(arguments.prompt, pictures, max_new_tokens=arguments.max_new_tokens)
    answer.timings_ms["load"] = load_ms
    if answer.max_new_tokens < (arguments.max_new_tokens or model.default_new_tokens):
        room = model.manifest.limits.max_seq
        print(f"the answer is limited to {answer.max_new_tokens} tokens: the engine holds {room}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(_record("".join(answer), answer)))
        return 0
    for piece in answer:
        print(piece, end="", flush=True)
    print()
    return 0


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = CommandParser("trol-run", EXAMPLES)
    parser.add_argument("engine", metavar="engine.plan", help="engine file written by trol-export")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a picture; - is stdin; repeatable"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the question (default: asks for a description)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: what the engine says, 256")
    parser.add_argument("--exif", action="store_true", help="turn pictures upright (the official code does not)")
    parser.add_argument("--json", action="store_true", help="print one JSON object when the answer is complete")
    arguments = parser.parse_args(argv)
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens is {arguments.max_new_tokens}, expected 1 or more")
    if arguments.image.count("-") > 1:
        raise UsageError("--image - is given more than once; stdin holds one picture")
    if "-" in arguments.image and sys.stdin is None:
        raise UsageError("--image - reads a picture from stdin, which is closed; pipe one in, or name a file")
    if arguments.prompt is None:
        if not arguments.image:
            raise UsageError("nothing to ask: give --image FILE, or --prompt TEXT, or both")
        arguments.prompt = DEFAULT_PROMPT
    return arguments


def _record(text: str, answer: Generation) -> dict[str, object]:
    return {
        "text": text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "image_tokens": answer.image_tokens,
        "new_tokens": len(answer.token_ids),
        "timings_ms": {name: round(answer.timings_ms.get(name, 0.0), 3) for name in TIMED},
    }


TIMED = ("load", "vision", "prefill", "decode")
