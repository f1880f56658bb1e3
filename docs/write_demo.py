"""Writes what the README shows of the demo: the picture, and what the demo prints about it.

python docs/write_demo.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
README, PICTURE = REPOSITORY / "README.md", REPOSITORY / "examples/picture.png"
DIRECTORY = "build/demo"
_BLOCK = re.compile(r"(?<=```text\n)(\$ trol-run .*?)(?=```)", re.DOTALL)


def demo_output(directory: Path | str = DIRECTORY) -> str:
    """All that the demo prints, progress and times included; the folder is named as in `make demo`."""
    demo = subprocess.run(
        [sys.executable, REPOSITORY / "examples/demo.py", directory],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=True,
    )
    return demo.stdout.replace(str(directory), DIRECTORY)


def answers(output: str) -> str:
    """The part of the output that the README shows: questions, answers and truth."""
    return output[output.index("$ trol-run ") :]


def shown() -> str:
    """What the README shows."""
    (block,) = _BLOCK.findall(README.read_text(encoding="utf-8"))
    return str(block)


if __name__ == "__main__":
    printed = answers(demo_output())
    page = README.read_text(encoding="utf-8")
    README.write_text(_BLOCK.sub(lambda _: printed, page), encoding="utf-8")
    shutil.copyfile(REPOSITORY / DIRECTORY / "picture.png", PICTURE)
