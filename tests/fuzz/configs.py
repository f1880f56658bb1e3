"""A checkpoint's configuration, changed: what `trol-export --check` makes of it.

Whatever is accepted must fit the tensors that are there, and must be a model that a manifest can hold: written and read
again it is the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from fuzz.case import Case, Rule, WrongAnswerError
from fuzz.mutations import damaged_bytes, damaged_json, json_bytes
from fuzz.seeds import ARCHS, checkpoint_path
from trol_export.checkpoint_check import CheckReport, check_checkpoint
from trol_graphs.model import expected_tensors
from trol_runtime.dataclass_json import dataclass_from_json
from trol_runtime.errors import CheckpointError
from trol_runtime.model_config import ModelConfig

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Files that a micro checkpoint lacks, as a released one has them.
_FURTHER_FILES = {
    "generation_config.json": json_bytes({"eos_token_id": [2, 998], "do_sample": False, "max_length": 4096}),
    "tokenizer_config.json": json_bytes({"eos_token": "</s>", "legacy": False, "added_tokens_decoder": {}}),
    "special_tokens_map.json": json_bytes({"eos_token": {"content": "</s>"}, "additional_special_tokens": ["<image>"]}),
    "added_tokens.json": json_bytes({"</s>": 2}),
}
_SHARD = "model-00001-of-00001.safetensors"


class Configs:
    """Values and keys of every JSON file of a checkpoint, and bytes."""

    name = "configs"
    seeds = (*ARCHS, *(f"{arch} sharded" for arch in ARCHS))

    def __init__(self, seeds: Path) -> None:
        self._files: dict[str, dict[str, bytes]] = {}
        for arch in ARCHS:
            files = {path.name: path.read_bytes() for path in sorted(checkpoint_path(seeds, arch).iterdir())}
            files |= _FURTHER_FILES
            header = json.loads(files[WEIGHTS][8 : 8 + int.from_bytes(files[WEIGHTS][:8], "little")])
            index = {"metadata": {"total_size": 1}, "weight_map": {name: _SHARD for name in header if name[0] != "_"}}
            sharded = {**files, _SHARD: files[WEIGHTS], INDEX: json_bytes(index)}
            del sharded[WEIGHTS]
            self._files |= {arch: files, f"{arch} sharded": sharded}
        self._reports: dict[str, CheckReport] = {}

    @property
    def systematic(self) -> int:
        return 0

    def untouched(self, seed: str) -> Case:
        return Case(-1, seed, "nothing", Rule.SAME, self._files[seed])

    def case(self, number: int) -> Case:
        rng = Random(f"{self.name} {number}")
        seed = rng.choice(self.seeds)
        files = self._files[seed]
        others = [name for name in files if name.endswith(".json") and name != "tokenizer.json"]
        name = rng.choice(("config.json", "config.json", "config.json", *others))
        if rng.random() < 0.1:
            data, change = damaged_bytes(files[name], rng)
        else:
            data, change = damaged_json(json.loads(files[name]), rng)
        return Case(number, seed, f"{name}: {change}", Rule.OWN, {**files, name: data})

    def read(self, folder: Path, case: Case) -> bool:
        report = check_checkpoint(folder)
        json.dumps(report.to_json(), allow_nan=False)
        report.table()
        for line in (*report.deviations, *report.notes):
            if not line.isprintable() or len(line) > 1000:
                raise WrongAnswerError(f"no clear line: {line[:1000]!a}")
        if not report.ok:
            raise CheckpointError("; ".join(report.deviations[:1]))
        assert report.model is not None
        written = json.dumps(report.model.to_json(), allow_nan=False)
        if dataclass_from_json(ModelConfig, json.loads(written)) != report.model:
            raise WrongAnswerError(f"not the same when read again: {written}")
        if case.number < 0:
            self._reports[case.seed] = report
        known = self._reports[case.seed].model
        assert known is not None
        if expected_tensors(report.model) != expected_tensors(known):
            raise WrongAnswerError(f"accepted a model of other tensors: {report.model}")
        return report.model == known

    def extra_memory(self, case: Case) -> int:
        return 0
