"""Calls compared with what a pybind11 class declares: it keeps no signatures, but says them in its docstrings."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type)

_OPENING, _CLOSING = "([{<", ")]}>"


def declared_by(real: Any) -> Callable[[Kind], Kind]:
    """For a class that stands in for `real`: its methods take the arguments that the real ones do, and no others.

    Raises AttributeError for a method that the real class does not have.
    """

    def checked(fake: Kind) -> Kind:
        for name, function in list(vars(fake).items()):
            if inspect.isfunction(function) and not name.startswith("_"):
                setattr(fake, name, _checked(f"{real.__name__}.{name}", function, signatures(getattr(real, name))))
        return fake

    return checked


def signatures(method: Any) -> list[inspect.Signature]:
    """Of a method, one for each of its overloads; the first parameter of each is `self`."""
    lines = re.findall(rf"^(?:\d+\. )?{method.__name__}\((.*)\) ->", method.__doc__ or "", re.MULTILINE)
    found = [inspect.Signature([_parameter(one) for one in _arguments(line)]) for line in lines]
    assert found, f"{method.__name__} does not say what it takes"
    return found


def _checked(name: str, function: Callable[..., Any], declared: list[inspect.Signature]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if not any(_fits(signature, *arguments, **named) for signature in declared):
            raise TypeError(f"{name} takes {' or '.join(map(str, declared))}, not {arguments[1:]} {named}")
        return function(*arguments, **named)

    return call


def _fits(signature: inspect.Signature, /, *arguments: Any, **named: Any) -> bool:
    try:
        signature.bind(*arguments, **named)
    except TypeError:
        return False
    return True


def _parameter(declaration: str) -> inspect.Parameter:
    """Of "name: type = default"."""
    name, has_default, _ = declaration.partition(" = ")
    return inspect.Parameter(
        name.partition(":")[0].strip(),
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None if has_default else inspect.Parameter.empty,
    )


def _arguments(line: str) -> Iterator[str]:
    """Split at the commas that are in no bracket; defaults look like "<Strategy.STATIC: 0>"."""
    depth, begin = 0, 0
    for place, character in enumerate(line):
        depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and not depth:
            yield line[begin:place]
            begin = place + 1
    if line:
        yield line[begin:]
