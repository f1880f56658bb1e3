"""How every program here ends: one table on stdout and, with `--json FILE`, the whole record as data."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trol_runtime.system_report import system_report

Row = Sequence[str]


def add_json_option(parser: ArgumentParser) -> None:
    """Add `--json FILE`; a file that cannot be written is refused as it is parsed, before anything is measured."""
    parser.add_argument("--json", type=_writable_file, metavar="FILE", help="also write the full record there")


def _writable_file(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        raise ArgumentTypeError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"{path}: folder {path.parent} does not exist; create it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ArgumentTypeError(f"{path} cannot be written; name another file")
    return path


def report(name: str, record: Mapping[str, Any], rows: Sequence[Row], json_file: Path | None) -> None:
    """Print `rows` and write `record` with the machine it was taken on and the arguments that made it.

    Raises OSError when `json_file` cannot be written.
    """
    print(table(rows))
    if json_file is not None:
        machine = system_report().to_json()
        whole = {"benchmark": name, "date": date.today().isoformat(), "arguments": sys.argv[1:], "machine": machine}
        json_file.write_text(json.dumps({**whole, **record}, indent=1) + "\n")


def table(rows: Sequence[Row]) -> str:
    """Columns as wide as their widest cell, the first one flush left, the others flush right; rows may end early."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


def gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def seconds(count: float) -> str:
    return f"{count:.2f} s"


def milliseconds(count: float) -> str:
    return f"{count:.0f} ms"
