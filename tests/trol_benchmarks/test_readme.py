"""The commands in benchmarks/README.md and in the docstrings of the programs can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from trol_benchmarks import against, engine_run, export_cost, memory, reuse, startup

PROGRAMS = {
    "against": against,
    "engine_run": engine_run,
    "export_cost": export_cost,
    "memory": memory,
    "reuse": reuse,
    "startup": startup,
}
README = Path(__file__).parents[2] / "benchmarks" / "README.md"
# Up to the end of the line, over lines that end with a backslash.
TYPED = re.compile(r"python -m trol_benchmarks\.(\w+) ((?:[^`\n\\]|\\.)*)", re.DOTALL)


def typed(text: str) -> list[tuple[str, list[str]]]:
    return [(name, shlex.split(arguments.replace("\\\n", " "))) for name, arguments in TYPED.findall(text)]


@pytest.mark.parametrize(("name", "arguments"), typed(README.read_text(encoding="utf-8")))
def test_a_command_of_the_page_takes_its_arguments(name: str, arguments: list[str]) -> None:
    PROGRAMS[name]._parse(arguments)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_docstring_of_a_program_gives_its_command(name: str) -> None:
    ((called, arguments),) = typed(PROGRAMS[name].__doc__ or "")
    assert called == name
    PROGRAMS[name]._parse(arguments)


def test_the_page_names_every_program_a_user_starts() -> None:
    page = README.read_text(encoding="utf-8")
    assert {name for name, _ in typed(page)} == PROGRAMS.keys()
