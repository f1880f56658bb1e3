"""JSON values to frozen dataclasses by their annotations; the key that does not fit is named.

Keys without a field are ignored, so that a reader accepts what a later version adds. Fields are int, float, str, bool,
None, Any, Literal, tuple[T, ...], dict[str, T], dataclasses, and unions of these (dataclasses told apart by `kind`).
"""

from __future__ import annotations

import reprlib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trol_runtime.errors import EngineFileError

T = TypeVar("T")


def dataclass_from_json(cls: type[T], data: Any, key: str = "") -> T:
    """Build `cls` from a JSON object; raises EngineFileError naming the missing or wrong-typed key as `key.field`."""
    if not isinstance(data, dict):
        raise _mismatch(key, "an object", data)
    values = {}
    hints = _type_hints(cls)  # type: ignore[arg-type]
    for field in fields(cls):  # type: ignore[arg-type]
        name = f"{key}.{field.name}" if key else field.name
        if field.name in data:
            values[field.name] = _value_from_json(hints[field.name], data[field.name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise EngineFileError(f"key {name!r} is missing")
    return cls(**values)


def _value_from_json(hint: Any, value: Any, key: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return dataclass_from_json(hint, value, key)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return _value_from_json(_union_member(arguments, value, key), value, key)
    if origin is Literal:
        if value not in arguments:
            raise _mismatch(key, " or ".join(map(repr, arguments)), value)
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _mismatch(key, "a list", value)
        return tuple(_value_from_json(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _mismatch(key, "an object", value)
        return {name: _value_from_json(arguments[1], item, f"{key}[{name!r}]") for name, item in value.items()}
    if not _is_plain(hint, value):
        raise _mismatch(key, _PLAIN_NAMES[hint], value)
    return value


def _union_member(members: tuple[Any, ...], value: Any, key: str) -> Any:
    """The union's member that `value` is meant to be."""
    for member in members:
        if is_dataclass(member):
            kind = next((field.default for field in fields(member) if field.name == "kind"), None)
            if isinstance(value, Mapping) and (kind is None or value.get("kind") == kind):
                return member
        elif _is_plain(member, value):
            return member
    names = [_PLAIN_NAMES.get(member, getattr(member, "__name__", str(member))) for member in members]
    raise _mismatch(key, " or ".join(names), value)


_PLAIN_NAMES: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "a boolean",
    type(None): "null",
}


def _is_plain(hint: Any, value: Any) -> bool:
    # JSON writes 1.0 as 1 in some tools; bool is an int in Python but not in JSON.
    accepted = (int, float) if hint is float else hint
    return hint in _PLAIN_NAMES and isinstance(value, accepted) and (hint is bool or not isinstance(value, bool))


@cache
def _type_hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _mismatch(key: str, expected: str, value: Any) -> EngineFileError:
    return EngineFileError(f"key {key!r} must be {expected}, found {reprlib.repr(value)}")
