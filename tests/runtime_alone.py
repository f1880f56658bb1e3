"""What a device gets, checked from outside: an environment with the base dependencies and the cpu extra, nothing more.

    python tests/runtime_alone.py OTHER_ENVIRONMENT/bin engine.plan

Runs with the development environment, which exported the engine; the commands of the other one must run it alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "examples" / "picture.png"
TRAINING_STACK = ("torch", "onnx", "onnx_ir", "safetensors")


def main(other_bin: Path, engine: Path) -> None:
    question = [str(engine), "--image", str(PICTURE), "--max-new-tokens", "8", "--json"]
    for module in TRAINING_STACK:
        assert command(other_bin / "python", "-c", f"import {module}").returncode == 1, f"{module} is installed"
    answers = [command(folder / "trol-run", *question) for folder in (other_bin, Path(sys.executable).parent)]
    alone, here = (json.loads(answer.stdout)["token_ids"] for answer in answers)
    assert alone == here, f"{alone} alone, {here} in the development environment"
    inspected = command(other_bin / "trol-inspect", str(engine), "--verify", "--json")
    assert json.loads(inspected.stdout)["parity"]["verdict"] == "pass", inspected
    system = command(other_bin / "trol-inspect", "--system", "--json")
    assert json.loads(system.stdout)["runs"]["cpu"] == "yes", system
    assert command(other_bin / "trol-export", "--help").returncode == 0
    refused = command(other_bin / "trol-export", "--checkpoint", "x")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused
    assert "pip install 'trol-export[export,cpu]'" in refused.stderr, refused
    print(f"the runtime alone answers {alone}, as the development environment does")


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run outside the repository, so that nothing is imported from it."""
    with tempfile.TemporaryDirectory() as elsewhere:
        return subprocess.run(words, cwd=elsewhere, capture_output=True, text=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
