"""Torch files (`trol_gating.pt`, `pytorch_model.bin`) that are damaged, hold something else, or want to run code."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from fuzz.case import Case, Rule
from fuzz.mutations import damaged_bytes
from trol_export.checkpoint import CHUNK_BYTES
from trol_export.weight_files import TorchFile

FILE = "trol_gating.pt"
WITNESS = "code-was-run"


class _Runs:
    """Pickles as a call: whoever unpickles it makes the call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def _state() -> dict[str, torch.Tensor]:
    return {"0.weight": torch.arange(8.0).reshape(1, 8), "0.bias": torch.ones(1), "1.weight": torch.zeros(1, 8).half()}


_STRANGE: dict[str, Callable[[], Any]] = {
    "a list": lambda: [torch.zeros(1)],
    "a tensor": lambda: torch.zeros(3),
    "nothing": lambda: None,
    "numbers as names": lambda: {0: torch.zeros(1)},
    "texts as tensors": lambda: {"0.weight": "text"},
    "a dict in a dict": lambda: {"state_dict": _state()},
    "a sparse tensor": lambda: {"0.weight": torch.eye(3).to_sparse()},
    "complex numbers": lambda: {"0.weight": torch.zeros(2, dtype=torch.complex64)},
    "a quantised tensor": lambda: {"0.weight": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)},
    "a parameter": lambda: {"0.weight": torch.nn.Parameter(torch.zeros(2))},
    "a tensor with gradient": lambda: {"0.weight": torch.zeros(2, requires_grad=True)},
    "one value as a million": lambda: {"0.weight": torch.zeros(1).expand(1000, 1000)},
    "one value as a trillion": lambda: {"0.weight": torch.zeros(1).expand(10**6, 10**6)},
    "overlapping rows": lambda: {"0.weight": torch.zeros(10).as_strided((5, 6), (1, 1))},
    "a transposed tensor": lambda: {"0.weight": torch.arange(6.0).reshape(2, 3).T},
    "a negated view": lambda: {"0.weight": torch._neg_view(torch.ones(3))},
    "a meta tensor": lambda: {"0.weight": torch.zeros(3, device="meta")},
    "no values": lambda: {"0.weight": torch.zeros(0, 4)},
    "a control character": lambda: {"\x1b[31m\n": torch.zeros(1), "": torch.zeros(1)},
    "a call of os.system": lambda: {"0.weight": _Runs(__import__("os").system, f"touch {WITNESS}")},
    "a call of exec": lambda: {"0.weight": _Runs(exec, f"open({WITNESS!r}, 'w')")},
    "a call of open": lambda: {"0.weight": _Runs(open, WITNESS, "w")},
    "a call of torch.load": lambda: {"0.weight": _Runs(torch.load, "/etc/passwd")},
    "a call of getattr": lambda: _Runs(getattr, torch, "ops"),
}


class TorchFiles:
    """Strange contents in both of torch's formats, then damaged bytes of them all."""

    name = "torch files"
    seeds = ("zip", "legacy")

    def __init__(self, seeds: Path) -> None:
        self._files = {form: data for form in self.seeds if (data := _saved(_state(), form)) is not None}
        self._strange = [
            (form, f"{what}, {form}", data)
            for what, make in _STRANGE.items()
            for form in (*self.seeds, "pickle")
            if (data := _saved(make(), form)) is not None
        ]

    @property
    def systematic(self) -> int:
        return len(self._strange)

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, {FILE: self._files[seed]})

    def case(self, number: int) -> Case:
        if number < self.systematic:
            form, change, data = self._strange[number]
            rule = Rule.REFUSE if "a call of" in change else Rule.OWN
            return Case(number, form, change, rule, {FILE: data})
        rng = Random(f"{self.name} {number}")
        form = rng.choice(self.seeds)
        what, whole = rng.choice([("state", self._files[form]), *((change, data) for _, change, data in self._strange)])
        damaged = damaged_bytes(whole, rng)
        return Case(number, form, f"{what}: {damaged.change}", Rule.OWN, {FILE: damaged.data})

    def read(self, folder: Path, case: Case) -> bool:
        file = TorchFile(folder / FILE)
        for name in file.tensors:
            for chunk in file.chunks(name, CHUNK_BYTES):
                if chunk.size > CHUNK_BYTES:
                    raise AssertionError("a chunk is larger than its limit")
        return case.files[FILE] == self._files.get(case.seed)

    def extra_memory(self, case: Case) -> int:
        return 0


def _saved(value: Any, form: str) -> bytes | None:
    """In torch's zip format, the one before it, or as a bare pickle; None for what cannot be saved so."""
    file = io.BytesIO()
    try:
        if form == "pickle":
            return pickle.dumps(value)
        torch.save(value, file, _use_new_zipfile_serialization=form == "zip")
    except Exception:
        return None
    return file.getvalue()
