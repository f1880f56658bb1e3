"""`trol-export --check ID|DIR`: everything in which a checkpoint deviates from what an export expects, all at once.

Config, tensor headers and tokenizer are read, weights are not: NaN and fp16 overflow show during the export. Of a hub
repository only the small files and the headers are fetched.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trol_export import hub
from trol_export.checkpoint import (
    CHUNK_BYTES,
    DERIVED_SUFFIXES,
    GATE,
    GATING_FILE,
    Checkpoint,
    Headers,
    check_tensors,
    effective_gate,
    read_configs,
    read_gating,
)
from trol_export.checkpoint_config import ConfigReading, examine_config
from trol_export.token_ids import NO_TOKENIZER, read_token_ids
from trol_export.tokenizer_conversion import check_tokenizer
from trol_export.weight_files import TensorInfo, WeightFile
from trol_runtime.errors import CheckpointError
from trol_runtime.model_config import ModelConfig

NOTHING = ConfigReading(model=None, deviations=[], notes=[])


@dataclass(frozen=True)
class CheckReport:
    """What `check_checkpoint` found.

    commit:     the resolved commit of a hub repository, None for a directory
    model:      the model's shape, None when the config does not tell it
    dtypes:     stored bytes by safetensors dtype name
    deviations: what stops an export, one line each
    notes:      what is worth knowing and changes nothing, one line each
    """

    source: str
    commit: str | None
    model: ModelConfig | None
    tensors: int
    dtypes: dict[str, int]
    deviations: list[str]
    notes: list[str]

    @property
    def ok(self) -> bool:
        return not self.deviations

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "commit": self.commit,
            "ok": self.ok,
            "model": self.model.to_json() if self.model else None,
            "tensors": {"count": self.tensors, "bytes": self.dtypes},
            "deviations": self.deviations,
            "notes": self.notes,
        }

    def table(self) -> str:
        """The report for a person, several lines."""
        rows = [("checkpoint", self.source + (f" @ {self.commit}" if self.commit else ""))]
        rows += _model_rows(self.model) if self.model else []
        sizes = ", ".join(f"{count / 1e9:.2f} GB {dtype}" for dtype, count in sorted(self.dtypes.items()))
        rows.append(("tensors", f"{self.tensors}: {sizes}" if self.tensors else "none readable"))
        lines = [f"{name:<11} {text}" for name, text in rows]
        for title, entries in (("note", self.notes), ("deviation", self.deviations)):
            lines += [f"{title:<11} {entry}" for entry in entries]
        verdict = "can be exported" if self.ok else f"{len(self.deviations)} deviation(s): cannot be exported"
        return "\n".join([*lines, f"{'verdict':<11} {verdict}"])


def check_checkpoint(source: str | Path, revision: str = "main") -> CheckReport:
    """Check a checkpoint directory, or a hub repository such as BK-Lee/TroL-1.8B.

    Raises UsageError when `source` is neither, CheckpointError when it is a file or cannot be fetched at all.
    """
    repo_id = hub.repository_of_source(source)
    return _check_repository(repo_id, revision) if repo_id else _check_directory(Path(source))


def _check_directory(directory: Path) -> CheckReport:
    checkpoint, problems = Checkpoint.inspect(directory)
    return _report(checkpoint, directory, problems)


def _check_repository(repo_id: str, revision: str) -> CheckReport:
    directory, commit = hub.fetch_small_files(repo_id, revision)
    try:
        headers, problems = _remote_headers(repo_id, directory, hub.remote_tensors(repo_id, commit))
    except CheckpointError as error:
        # Without a network the cache may still hold the weights.
        cached, problems = Checkpoint.inspect(directory)
        if not cached.files.keys() - set(GATE):
            problems = [str(error)]
        headers = cached
    return replace(_report(headers, directory, problems), source=repo_id, commit=commit)


def _remote_headers(repo_id: str, directory: Path, tensors: dict[str, TensorInfo]) -> tuple[Headers, list[str]]:
    """Tensors as the hub's headers tell, everything else from the small files in `directory`."""
    problems: list[str] = []
    config, generation = read_configs(directory, problems)
    gating = read_gating(directory, problems)
    gate = (
        {name: replace(gating.tensors[key], name=name) for name, key in effective_gate(gating.tensors).items()}
        if gating
        else {}
    )
    return Headers(repo_id, config, generation, tensors | gate, gating), problems


def _report(headers: Headers, directory: Path, problems: list[str]) -> CheckReport:
    from trol_graphs.model import dead_tensors, expected_tensors

    deviations = list(problems)
    tokenizer_deviations: list[str] = []
    try:
        token_ids = read_token_ids(directory)
    except CheckpointError as error:
        token_ids, tokenizer_deviations = NO_TOKENIZER, [str(error)]
    # An unreadable config.json is among the problems already; its keys are not all missing on top of that.
    reading = (
        examine_config(headers.config, headers.generation, headers.shapes, token_ids) if headers.config else NOTHING
    )
    deviations += reading.deviations
    notes = [*reading.notes, *_gate_notes(headers.gating)]
    if reading.model:
        dead = dead_tensors(reading.model)
        if headers.tensors.keys() - set(GATE):
            deviations += check_tensors(headers, expected_tensors(reading.model), dead)
        tokenizer_deviations = tokenizer_deviations or check_tokenizer(directory, reading.model)
        notes += [
            f"'{name}' has no effect in the official code: it is not exported"
            for name in headers.tensors
            if name in dead or name.endswith(DERIVED_SUFFIXES)
        ]
    dtypes: Counter[str] = Counter()
    for info in headers.tensors.values():
        dtypes[info.dtype] += info.nbytes
    return CheckReport(
        source=headers.source,
        commit=None,
        model=reading.model,
        tensors=len(headers.tensors),
        dtypes=dict(dtypes),
        deviations=deviations + tokenizer_deviations,
        notes=notes,
    )


def _gate_notes(gating: WeightFile | None) -> list[str]:
    """Released files hold the same gate L times; where entries differ, only the last layer's counts."""
    if gating is None:
        return []
    stored = {name: b"".join(c.tobytes() for c in gating.chunks(name, CHUNK_BYTES)) for name in gating.tensors}
    values = [{value for name, value in stored.items() if name.endswith(part)} for part in (".weight", ".bias")]
    if all(len(alternatives) <= 1 for alternatives in values):
        return []
    return [
        f"{GATING_FILE}: the layers' entries differ; as in the official code all layers use the last one's: "
        + ", ".join(effective_gate(gating.tensors).values())
    ]


def _model_rows(model: ModelConfig) -> list[tuple[str, str]]:
    decoder, vision = model.decoder, model.vision
    lora = f", partial LoRA of rank {decoder.lora_rank}" if model.arch == "internlm2" else ""
    return [
        (
            "trunk",
            f"{model.arch}: {decoder.layers} layers, hidden {decoder.hidden_size}, {decoder.heads} heads, "
            f"{decoder.kv_heads} key/value heads, vocabulary {decoder.vocab_size}, "
            f"{decoder.rope.kind} RoPE up to {decoder.max_positions} positions{lora}",
        ),
        (
            "vision",
            f"{vision.kind}: {vision.layers} layers, hidden {vision.hidden_size}, {vision.heads} heads, "
            f"{vision.image_size} px, {vision.tokens_per_crop} tokens per crop",
        ),
        ("tokens", f"image {model.image_token_id}, end of sequence {', '.join(map(str, model.eos_token_ids))}"),
    ]
