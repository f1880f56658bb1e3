"""How an answer is generated: greedy, by sampling or with beams, how long it may be, and what ends it.

`GenerationConfig()` is greedy. Giving any of temperature, top_k, top_p, min_p turns sampling on; num_beams above 1
searches with beams; the two exclude each other. The settings of the official demo and evaluation have names.
"""

from __future__ import annotations

import math
import reprlib
import secrets
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, NamedTuple

from trol_runtime.errors import LimitError, UsageError

SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class GenerationConfig:
    """The options of one generation, checked when they are put together: every problem is a UsageError.

    max_new_tokens: an answer has at most this many; None: the engine's default
    min_new_tokens: neither eos nor, in an answer that is text, the turn-end mark comes before; stop texts end it anyway
    num_beams: answers that are followed in parallel; 1 does not search
    length_penalty: the power of the length that divides a beam's summed log-probability: above 0 favours long answers
    early_stopping: end a search when num_beams answers are complete, rather than when none promises to become better
    temperature: divides the logits; 1 if only others of the sampling options are given
    top_k: draw from the k best tokens
    top_p: draw from the fewest best tokens that together are at least this probable
    min_p: draw from the tokens that are at least this many times as probable as the best one
    repetition_penalty: above 1 disfavours what was said before, below 1 favours it
    seed: of the sampling; None: another one each time
    stop: texts that end an answer and are no part of it; a single text may be given as such
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _RANGES and not (value is None and field.default is None):
                object.__setattr__(self, field.name, _RANGES[field.name].checked(field.name, value))
        if not isinstance(self.early_stopping, bool):
            raise UsageError(f"early_stopping is {reprlib.repr(self.early_stopping)}, expected True or False")
        object.__setattr__(self, "stop", _texts(self.stop))
        self._check_for_contradictions()

    def _check_for_contradictions(self) -> None:
        sampling = " and ".join(name for name in SAMPLING_OPTIONS if getattr(self, name) is not None)
        if self.max_new_tokens is not None:
            _check_length(self.min_new_tokens, self.max_new_tokens)
        if sampling and self.num_beams > 1:
            raise UsageError(
                f"num_beams is {self.num_beams} and {sampling} given, but beams are not drawn; set num_beams to 1, or "
                f"leave out {sampling}"
            )
        if self.seed is not None and not sampling:
            raise UsageError(
                f"seed is {self.seed}, but nothing is drawn; give {', '.join(SAMPLING_OPTIONS[:-1])} or "
                f"{SAMPLING_OPTIONS[-1]} too, or leave out seed"
            )
        for name, default in (("length_penalty", 1.0), ("early_stopping", False)):
            if getattr(self, name) != default and self.num_beams == 1:
                raise UsageError(
                    f"{name} is {getattr(self, name)}, but only beams heed it and num_beams is 1; set num_beams to 2 "
                    f"or more, or leave out {name}"
                )

    @property
    def do_sample(self) -> bool:
        """Whether tokens are drawn; otherwise the best is taken, or the best beams."""
        return any(getattr(self, name) is not None for name in SAMPLING_OPTIONS)

    def seeded(self) -> GenerationConfig:
        """The same with a seed: where tokens are drawn and none is given, one by chance.

        So that it can be told and used again; 32 bits, as some readers of JSON round larger numbers.
        """
        return self.replaced(seed=secrets.randbits(32)) if self.do_sample and self.seed is None else self

    def new_tokens(self, default: int, room: int) -> int:
        """How many tokens an answer may have: max_new_tokens, or else `default`, as far as there is room for them.

        Raises UsageError when min_new_tokens is more than that, LimitError when it is more than the room.
        """
        wanted = default if self.max_new_tokens is None else self.max_new_tokens
        _check_length(self.min_new_tokens, wanted)
        if self.min_new_tokens > room:
            raise LimitError(
                f"min_new_tokens is {self.min_new_tokens}, but the prompt leaves room for {room} in the engine; lower "
                "it, shorten the prompt, or rebuild the engine with a larger --max-seq"
            )
        return min(wanted, room)

    @classmethod
    def named(cls, name: str) -> GenerationConfig:
        """The official settings of "demo" (greedy, 256 tokens) or of a benchmark (5 beams, 5, 512 or 1024 tokens)."""
        if name == "demo":
            return cls(max_new_tokens=256)
        for max_new_tokens, benchmarks in _OFFICIAL_NEW_TOKENS.items():
            if name in benchmarks:
                return cls(max_new_tokens=max_new_tokens, num_beams=5)
        names = ["demo", *(name for benchmarks in _OFFICIAL_NEW_TOKENS.values() for name in benchmarks)]
        raise UsageError(f"no generation settings are named {reprlib.repr(name)}, expected one of {', '.join(names)}")

    def replaced(self, **options: Any) -> GenerationConfig:
        """The same with other values of some fields; UsageError for a name that is none."""
        known = [field.name for field in fields(self)]
        for name in options:
            if name not in known:
                raise UsageError(f"unknown option {name!r}, expected one of {', '.join(known)}")
        return replace(self, **options)


_OFFICIAL_NEW_TOKENS = {
    5: (
        *("mme", "pope", "sqa", "mmbench", "mmbench_cn", "mmbench_dev", "mmbench_cn_dev", "seed", "qbench", "ai2d"),
        *("mmstar", "vqav2", "gqa", "chartqa", "hallusionbench", "textvqa", "mmmu"),
    ),
    512: ("vizwiz", "mathvista", "mathverse", "visualwebbench"),
    1024: ("llava", "mm-vet"),
}


class _Range(NamedTuple):
    """The numbers an option may be, and how to say so."""

    kind: type[int] | type[float]
    low: float
    high: float
    expected: str

    def checked(self, name: str, value: Any) -> int | float:
        """`value`, perhaps numpy's, as a plain number; UsageError if it is not one of these."""
        accepted: Any = Integral if self.kind is int else Real
        if not isinstance(value, accepted) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise UsageError(f"{name} is {reprlib.repr(value)}, expected {self.expected}")
        return self.kind(value)


_ABOVE_ZERO = math.ulp(0.0)
_SEEDS = 2**64  # keys of the random generator
# Bounds of factors and powers are far beyond use, and keep scores inside float32 and powers of lengths inside float64.
_RANGES = {
    "max_new_tokens": _Range(int, 1, math.inf, "a whole number, 1 or more"),
    "min_new_tokens": _Range(int, 0, math.inf, "a whole number, 0 or more"),
    "num_beams": _Range(int, 1, math.inf, "a whole number, 1 or more"),
    "length_penalty": _Range(float, -10, 10, "a number from -10 to 10"),
    "temperature": _Range(
        float, 1e-6, 1e6, "a number from 0.000001 to 1000000; leave it out to take the best token each time"
    ),
    "top_k": _Range(int, 1, math.inf, "a whole number, 1 or more; leave it out to draw from all tokens"),
    "top_p": _Range(float, _ABOVE_ZERO, 1, "a number above 0, at most 1; leave it out to draw from all tokens"),
    "min_p": _Range(float, 0, 1, "a number from 0 to 1"),
    "repetition_penalty": _Range(float, 1e-6, 1e6, "a number from 0.000001 to 1000000; 1 penalises nothing"),
    "seed": _Range(int, 0, _SEEDS - 1, f"a whole number from 0 to {_SEEDS - 1}"),
}


def _check_length(least: int, most: int) -> None:
    if least > most:
        raise UsageError(
            f"min_new_tokens is {least}, more than max_new_tokens, {most}; lower the one or raise the other"
        )


def _texts(stop: Any) -> tuple[str, ...]:
    """Stop texts as a tuple; UsageError unless they are one text or a list of them, none of them empty."""
    texts = (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"stop is {reprlib.repr(stop)}, expected a text or a list of texts")
    if "" in texts:
        raise UsageError("stop holds an empty text, which would end every answer before it begins; leave it out")
    return tuple(texts)
