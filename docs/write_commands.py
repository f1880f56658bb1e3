"""Writes docs/commands.md: the help of every command, as it is printed.

python docs/write_commands.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("commands.md")
COMMANDS = ("trol-export", "trol-run", "trol-inspect", "trol-bench accuracy")


def page() -> str:
    """The content of docs/commands.md."""
    sections = [f"## {command}\n\n```text\n{help_text(command)}```\n" for command in COMMANDS]
    return "\n".join(
        ["# Commands\n", "The help of each command; `python docs/write_commands.py` writes this page.\n", *sections]
    )


def help_text(command: str) -> str:
    """What `command --help` prints at 120 columns; Python 3.13's way of showing two names of an option, everywhere."""
    environment = {**os.environ, "COLUMNS": "120"}
    program, *subcommand = command.split()
    command_line = [str(Path(sys.executable).with_name(program)), *subcommand, "--help"]
    shown = subprocess.run(command_line, env=environment, capture_output=True, text=True, check=True).stdout
    return shown.replace("-o FILE, --output FILE", "-o, --output FILE").replace("optional arguments:", "options:")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
