"""Lines for `trol-run --jsonl`: a question that can be asked, or one clear error in the place of its answer."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from fuzz.case import Case, Rule, WrongAnswerError
from fuzz.mutations import damaged_bytes, damaged_json, json_bytes
from trol_runtime.questions import read_question

LINE = "questions.jsonl"
_QUESTIONS: dict[str, dict[str, Any]] = {
    "one picture": {"prompt": "What is it?", "image": "x.png", "id": 1},
    "two pictures": {"prompt": "<image> or <image>?", "images": ["a.png", "b.png"], "id": {"set": "a", "number": [1]}},
    "beams": {"prompt": "x", "num_beams": 5, "length_penalty": 0.5, "early_stopping": True, "max_new_tokens": 8},
    "sampling": {
        "prompt": "y", "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "seed": 3,
        "repetition_penalty": 1.1, "stop": ["\n", "."], "min_new_tokens": 2,
    },
}  # fmt: skip
_PROMPTS = ("", " ", "\0", "<image>" * 1000, "x" * 100_000, "</s>", "\u202e", "é\U0001f600", "\r", "\x85", "\ufeff")


class Questions:
    """Values, keys and bytes of lines of every kind."""

    name = "questions"
    seeds = tuple(_QUESTIONS)

    def __init__(self, seeds: Path) -> None:
        self._lines = {name: json_bytes(question) for name, question in _QUESTIONS.items()}
        self._read = {name: read_question(line.decode()) for name, line in self._lines.items()}

    @property
    def systematic(self) -> int:
        return 0

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, {LINE: self._lines[seed]})

    def case(self, number: int) -> Case:
        rng = Random(f"{self.name} {number}")
        seed = rng.choice(self.seeds)
        if rng.random() < 0.25:
            damaged = damaged_bytes(self._lines[seed], rng)
        elif rng.random() < 0.1:
            prompt = rng.choice(_PROMPTS)
            damaged = damaged_json({**_QUESTIONS[seed], "prompt": prompt}, rng)
        else:
            damaged = damaged_json(_QUESTIONS[seed], rng)
        return Case(number, seed, damaged.change, Rule.OWN, {LINE: damaged.data})

    def read(self, folder: Path, case: Case) -> bool:
        line = (folder / LINE).read_bytes().decode("utf-8", "surrogateescape")
        question = read_question(line)
        if not isinstance(question.prompt, str) or not all(isinstance(image, str) for image in question.images):
            raise WrongAnswerError(f"not a question: {question!r}"[:300])
        asked = json.loads(line)
        if question.prompt != asked.get("prompt", question.prompt):
            raise WrongAnswerError(f"asks {question.prompt!r}"[:300])
        return question == self._read[case.seed]

    def extra_memory(self, case: Case) -> int:
        return 0
