"""trol-run: an engine.plan, pictures and questions in, answers out: one, a chat, or a file of many."""

from __future__ import annotations

import json
import re
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from trol_runtime.backends import BACKENDS, CPU, WITHOUT_PLANS
from trol_runtime.command import run_script
from trol_runtime.command_parser import CommandParser
from trol_runtime.errors import TrolError, UsageError
from trol_runtime.generation_config import GenerationConfig
from trol_runtime.prompt import DEFAULT_QUESTION

if TYPE_CHECKING:
    from PIL import Image

    from trol_runtime.engine import TroL

EXAMPLES = (
    ("engine.plan --image x.png", "describe a picture"),
    ('engine.plan --image x.png --prompt "What is written here?"', "ask about it"),
    ('engine.plan --image a.png --image b.png --prompt "<image> or <image>?"', "several pictures, placed in the text"),
    ('engine.plan --prompt "What can you do?"', "no picture"),
    ("engine.plan --image - < x.png", "a picture from stdin"),
    ("engine.plan --image x.png --num-beams 5", "as the official evaluations answer"),
    ("engine.plan --image x.png --chat", "talk about it"),
    ("engine.plan --jsonl questions.jsonl > answers.jsonl", "many questions, one a line"),
)

# Ctrl-C takes effect between chunks, and reading in chunks takes no longer (benchmarks/README.md).
CHAT_PREFILL_CHUNK = 256

# Flags that are fields of GenerationConfig: type, value, help.
_GENERATION_FLAGS: dict[str, tuple[type, str, str]] = {
    "--max-new-tokens": (int, "N", "default: what the engine says, 256"),
    "--min-new-tokens": (int, "N", "no stop token before that many others"),
    "--num-beams": (int, "N", "search with that many beams (default: 1, greedy)"),
    "--temperature": (float, "T", "draw tokens rather than take the best; above 1 more freely, below 1 less"),
    "--top-k": (int, "K", "draw from the K best tokens"),
    "--top-p": (float, "P", "draw from the fewest best tokens that together have the probability P"),
    "--min-p": (float, "P", "draw from tokens at least P times as probable as the best"),
    "--repetition-penalty": (float, "X", "above 1 disfavours tokens that were said before"),
    "--seed": (int, "N", "of the drawing, to repeat it (default: another each time)"),
}


def script() -> NoReturn:
    """Console entry point."""
    run_script("trol-run", main)


def main(argv: Sequence[str] | None) -> int:
    """Parse and answer; returns the exit code."""
    arguments = _parse(argv)
    options = _generation_options(arguments)
    from trol_runtime.chat_command import ChatCommand
    from trol_runtime.picture import load_picture
    from trol_runtime.questions import answer_questions

    sources = [sys.stdin.buffer if image == "-" else image for image in arguments.image]
    pictures = [load_picture(source, arguments.exif) for source in sources]
    keep_prefix = (arguments.chat or arguments.jsonl is not None) and not arguments.no_keep_prefix
    with _questions_file(arguments.jsonl) as questions:
        chunk = arguments.prefill_chunk
        if chunk is None and arguments.chat and keep_prefix:  # without a kept prefix, chunks would take memory
            chunk = CHAT_PREFILL_CHUNK
        model, load_ms = _load(arguments, chunk, keep_prefix)
        if questions is not None:
            answer_questions(model, questions, options, keep_prefix=keep_prefix, exif=arguments.exif, load_ms=load_ms)
        elif arguments.chat:
            config = GenerationConfig(**options)
            chat = ChatCommand(model, config, pictures, keep_prefix=keep_prefix, exif=arguments.exif)
            chat.run(arguments.prompt)
        else:
            prompt = DEFAULT_QUESTION if arguments.prompt is None else arguments.prompt
            _answer(model, prompt, pictures, GenerationConfig(**options), arguments.json, load_ms)
    return 0


def _load(arguments: Namespace, prefill_chunk: int | None, keep_prefix: bool) -> tuple[TroL, float]:
    """The engine, and the milliseconds it took to open, verify and load."""
    from trol_runtime.bundle import Bundle
    from trol_runtime.engine import TroL
    from trol_runtime.memory_need import memory_need

    begin = time.perf_counter()
    bundle = Bundle.open(arguments.engine)
    if arguments.backend == CPU:
        need = memory_need(bundle.manifest, both_passes=keep_prefix or prefill_chunk is not None)
        print(f"{arguments.engine} needs {need}", file=sys.stderr)
    model = TroL(bundle, prefill_chunk=prefill_chunk, backend=arguments.backend, trust_plans=arguments.trust_plans)
    load_ms = 1e3 * (time.perf_counter() - begin)
    print(f"loaded in {load_ms / 1e3:.2f} s", file=sys.stderr)
    return model, load_ms


def _answer(
    model: TroL, prompt: str, pictures: Sequence[Image.Image], config: GenerationConfig, as_json: bool, load_ms: float
) -> None:
    """One question: the answer to stdout, streamed, or as JSON when it is complete."""
    from trol_runtime.answer_report import answer_record, summary

    answer = model.start(prompt, pictures, config=config)
    for piece in answer:
        if not as_json:
            print(piece, end="", flush=True)
    print(json.dumps(answer_record(answer, load_ms)) if as_json else "", flush=True)
    print(summary(answer, model), file=sys.stderr)


def _questions_file(path: str | None) -> AbstractContextManager[BinaryIO | None]:
    """The file of --jsonl, open; None without one."""
    if path is None:
        return nullcontext()
    if path == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")
    except OSError as error:
        raise TrolError(f"questions {path!r}: {error.strerror}; name a file with one JSON object a line") from error


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = CommandParser("trol-run", EXAMPLES)
    parser.add_argument("engine", metavar="engine.plan", help="engine file written by trol-export")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="a picture; - is stdin; repeatable"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the question (default: asks for a description)")
    parser.add_argument("--exif", action="store_true", help="turn pictures upright (the official code does not)")
    parser.add_argument("--json", action="store_true", help="print one JSON object when the answer is complete")
    parser.add_argument("--chat", action="store_true", help="go on asking; type /help for its commands")
    parser.add_argument("--jsonl", metavar="FILE", help="answer every line of a file as JSON; - is stdin")
    for flag, (kind, value, meaning) in _GENERATION_FLAGS.items():
        parser.add_argument(flag, type=kind, metavar=value, help=meaning)
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end the answer in front of it; repeatable")
    parser.add_argument(
        "--prefill-chunk",
        type=int,
        metavar="N",
        help="read prompts N tokens at a time, which saves memory in ONNX Runtime "
        f"(default: all; {CHAT_PREFILL_CHUNK} in a kept chat)",
    )
    parser.add_argument(
        "--no-keep-prefix", action="store_true", help="half the cache for --chat and --jsonl, which then read all again"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default=CPU,
        help=f"what runs the engine (default: {CPU}); TensorRT's build the plans that are missing, first",
    )
    parser.add_argument(
        "--trust-plans", action="store_true", help="run plans that were not built on this machine: they are code"
    )
    arguments = parser.parse_args(argv)
    _refuse_contradictions(arguments)
    return arguments


def _refuse_contradictions(arguments: Namespace) -> None:
    """Raise UsageError for flags that do not go together, and for values argparse does not check."""
    if arguments.chat and arguments.jsonl is not None:
        raise UsageError("--chat and --jsonl exclude each other; run trol-run twice")
    if arguments.jsonl is not None and (arguments.image or arguments.prompt is not None):
        raise UsageError("--jsonl takes questions and pictures from its file; leave out --image and --prompt")
    if arguments.json and (arguments.chat or arguments.jsonl is not None):
        raise UsageError("--json is for a single question; leave it out (--jsonl answers in JSON anyway)")
    if arguments.no_keep_prefix and not arguments.chat and arguments.jsonl is None:
        raise UsageError("--no-keep-prefix is for --chat and --jsonl; a single question keeps none, leave it out")
    if not arguments.image and arguments.prompt is None and not arguments.chat and arguments.jsonl is None:
        raise UsageError("nothing to ask: give --image FILE, or --prompt TEXT, or both, or --chat, or --jsonl FILE")
    if arguments.trust_plans and arguments.backend in WITHOUT_PLANS:
        raise UsageError(
            f"--trust-plans is for plans of TensorRT, --backend {arguments.backend} runs none; name another, or leave "
            "it out"
        )
    if arguments.prefill_chunk is not None and arguments.prefill_chunk < 1:
        raise UsageError(f"--prefill-chunk is {arguments.prefill_chunk}, expected 1 or more")
    readers = ["--image -" for image in arguments.image if image == "-"]
    readers += ["--chat"] if arguments.chat else ["--jsonl -"] if arguments.jsonl == "-" else []
    if len(readers) > 1:
        raise UsageError(f"{readers[0]} and {readers[1]} both read stdin; name a file instead")
    if readers and sys.stdin is None:
        raise UsageError(f"{readers[0]} reads stdin, which is closed; pipe its input in")


def _generation_options(arguments: Namespace) -> dict[str, Any]:
    """The options of GenerationConfig that the flags give; UsageError in the words of the flags.

    With --jsonl each of them alone must be right: a line may give what it lacks, or take back what contradicts it.
    """
    fields = [_field(flag) for flag in (*_GENERATION_FLAGS, "--stop")]
    given = {name: getattr(arguments, name) for name in fields if getattr(arguments, name) is not None}
    try:
        if arguments.jsonl is None:
            GenerationConfig(**given)
        else:
            for name, value in given.items():
                needed: dict[str, Any] = {"temperature": 1.0} if name == "seed" else {}
                GenerationConfig(**needed, **{name: value})
        return given
    except UsageError as error:
        message = re.sub(rf"\b({'|'.join(fields)})\b", lambda name: "--" + name[0].replace("_", "-"), str(error))
        raise UsageError(message) from None


def _field(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
