"""The whole path on a small model, each step as a command to type: checkpoint -> engine.plan -> answer; then the check.

    python examples/demo.py build/demo

The model has the official layout, three layers and random weights. What it answers means nothing; that the engine says
it token for token like the eager model does.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURE = "examples/picture.png"
QUESTION = "What is in the picture?"
NEW_TOKENS = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps in the folder named by `argv`; returns 1 when the engine's ids differ from the eager model's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("directory", help="where checkpoint and engine go; what a former run left there is replaced")
    directory = parser.parse_args(argv).directory
    checkpoint, engine = f"{directory}/checkpoint", f"{directory}/engine.plan"

    print("A checkpoint in the official layout, with seeded random weights and a tokenizer of its own:")
    run("python", "tests/golden/seeded_checkpoint.py", "tiny-internlm2", checkpoint)
    run("python", "tests/golden/tiny_tokenizer.py", "internlm2", checkpoint)

    print("\nThe checkpoint becomes one file, compared with the eager model before it gets its name:")
    run("trol-export", "--checkpoint", checkpoint, "--precision", "fp32", "-o", engine, "--overwrite")

    print("\nThe file answers about a picture:")
    asked = ["--image", PICTURE, "--prompt", QUESTION, "--max-new-tokens", str(NEW_TOKENS), "--json"]
    ids = json.loads(run("trol-run", engine, *asked))["token_ids"]

    print("\nThe same question to the eager model, in PyTorch:")
    eager_ids = eager_greedy_ids(REPOSITORY / checkpoint, REPOSITORY / engine, len(ids)).tolist()
    print("engine:", *ids)
    print("eager: ", *eager_ids)
    if ids != eager_ids:
        print("The token ids DIFFER: this is a bug, please report it.")
        return 1
    print(f"All {len(ids)} token ids are equal.")
    print("\nThe text means nothing, as the weights are random. A small trained model comes with a later version.")
    return 0


def run(*command: str) -> str:
    """Show a command, run it from the repository's root, show what it prints; returns its stdout."""
    print("$", shlex.join(command), flush=True)
    program = [sys.executable, *command[1:]] if command[0] == "python" else command
    # Progress, on stderr, shows as it comes.
    result = subprocess.run(program, cwd=REPOSITORY, stdout=subprocess.PIPE, encoding="utf-8")
    print(result.stdout, end="", flush=True)
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout


def eager_greedy_ids(checkpoint_directory: Path, engine: Path, steps: int) -> NDArray[np.int64]:
    """The first `steps` greedy ids of the checkpoint, int64 (steps,); of the engine only the tokenizer is used."""
    from trol_export.checkpoint import Checkpoint
    from trol_graphs.eager import EagerSession, eager_model
    from trol_runtime.bundle import Bundle
    from trol_runtime.engine import TOKENIZER_ENTRY
    from trol_runtime.picture import load_picture
    from trol_runtime.preprocess import crops_per_picture, preprocess
    from trol_runtime.tokenizer import TextTokenizer

    bundle = Bundle.open(engine)
    config, template = bundle.manifest.model, bundle.manifest.prompt
    assert template is not None
    eager = EagerSession(eager_model(config, Checkpoint.open(checkpoint_directory).torch))
    pictures = [load_picture(REPOSITORY / PICTURE)]
    crops = crops_per_picture(pictures, config.vision)
    tokenizer = TextTokenizer(bundle.read(TOKENIZER_ENTRY), template)
    ids = tokenizer.encode_prompt(QUESTION, crops, config.vision.tokens_per_crop)
    return eager.greedy(ids, eager.encode(preprocess(pictures, config.vision)), steps)[0]


if __name__ == "__main__":
    sys.exit(main())
