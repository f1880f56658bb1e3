"""argparse as the commands use it: help opens with what to type, and a wrong call is one line (UsageError)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from trol_runtime.errors import UsageError


class CommandParser(argparse.ArgumentParser):
    """Parser of the command `prog`; `examples` are (arguments, what they do), most common first."""

    def __init__(self, prog: str, examples: Sequence[tuple[str, str]]) -> None:
        width = max(len(arguments) for arguments, _ in examples)
        lines = [f"{prog} {arguments:<{width}}  {meaning}".replace("%", "%%") for arguments, meaning in examples]
        # Abbreviations would break scripts the day a second option begins alike.
        super().__init__(prog, usage="\n       ".join(lines), allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see: {self.prog} --help")
