"""A trained model's parameters to a checkpoint directory in the official layout, complete or not at all.

config.json, generation_config.json, tokenizer.json
model.safetensors   every parameter but the gate, and the two dead tensors that official checkpoints hold
trol_gating.pt      the gate, once per layer: upstream saves a list that holds the same gate L times
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors

from trol_export.checkpoint import GATE, GATING_FILE, SAFETENSORS_FILE
from trol_export.checkpoint_check import check_checkpoint
from trol_runtime.atomic_file import sync_directory
from trol_runtime.errors import CheckpointError, NumericError, TrolError, UsageError
from trol_runtime.prompt import official_template

FILES = frozenset(["config.json", "generation_config.json", "tokenizer.json", SAFETENSORS_FILE, GATING_FILE])

State = Mapping[str, torch.Tensor]


def write_checkpoint(
    directory: Path,
    config_json: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    state: State,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write `directory`; a checkpoint of this layout that is already there is replaced.

    config_json, tokenizer: what config.json and tokenizer.json hold
    state:                  the parameters of `trol_graphs.model.expected_tensors`, an InternLM2 variant's
    dtype:                  how they are stored, rounded to nearest even

    Raises UsageError when `directory` holds anything else; NumericError, naming the tensor, for values that `dtype`
    cannot hold; CheckpointError when an export would refuse the result; TrolError when the disk is full.
    """
    require_replaceable(directory)
    stored = {name: _stored(name, tensor, dtype) for name, tensor in state.items()}
    files = _files(config_json, tokenizer, stored)
    unfinished = directory.with_name(f".{directory.name}.{os.urandom(4).hex()}.partial")
    try:
        unfinished.mkdir(parents=True)
        for name, data in files.items():
            _write(unfinished / name, data)
        _require_exportable(unfinished, directory)
        sync_directory(unfinished)
        _rename(unfinished, directory)
        sync_directory(directory.parent)
    except OSError as error:
        reason = "disk full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        needed = sum(map(len, files.values()))
        raise TrolError(
            f"{directory}: the checkpoint of {needed:,} bytes cannot be written ({reason}); "
            "free some space or choose another folder"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def require_replaceable(directory: Path) -> None:
    """Raise UsageError when there is something at `directory` that is no checkpoint of this layout.

    For callers who would like to know before they train.
    """
    if not os.path.lexists(directory):
        return
    if directory.is_symlink() or not directory.is_dir():
        raise UsageError(f"{directory} is no folder: choose another name for the checkpoint")
    others = sorted({path.name for path in directory.iterdir()} - FILES)
    if others:
        raise UsageError(f"{directory} holds {others[0]}, which is no part of a checkpoint: choose another folder")


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    values = tensor.detach().cpu()
    stored = values.to(dtype)
    finite = stored.isfinite()
    if not finite.all():
        value = values[~finite].flatten()[0].item()
        raise NumericError(
            f"'{name}' holds {value:g}, expected finite numbers up to {torch.finfo(dtype).max:g}, the largest of "
            f"{str(dtype).removeprefix('torch.')}: the training has diverged"
        )
    return stored.contiguous()


def _files(config_json: Mapping[str, Any], tokenizer: Mapping[str, Any], stored: State) -> dict[str, bytes]:
    """File name -> content."""
    weights = {name: tensor for name, tensor in stored.items() if name not in GATE} | dict(_dead(stored))
    turn_end = tokenizer["model"]["vocab"][official_template("internlm2").turn_end]
    generation = {
        "bos_token_id": config_json["bos_token_id"],
        "eos_token_id": [config_json["eos_token_id"], turn_end],
    }
    # One tensor under L names is stored once.
    layers = range(config_json["num_hidden_layers"])
    gating = io.BytesIO()
    torch.save({f"{n}.{gate.rpartition('.')[2]}": stored[gate] for n in layers for gate in GATE}, gating)
    return {
        "config.json": _json_bytes(config_json),
        "generation_config.json": _json_bytes(generation),
        "tokenizer.json": _json_bytes(tokenizer),
        SAFETENSORS_FILE: to_safetensors(weights, metadata={"format": "pt"}),
        GATING_FILE: gating.getvalue(),
    }


def _dead(stored: State) -> Iterator[tuple[str, torch.Tensor]]:
    """The norm behind CLIP's last layer, which the official code loads and never reads, without effect: 1 x + 0."""
    tower = "vit.vision_tower.vision_model."
    for part, fill in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
        yield f"{tower}post_layernorm.{part}", fill(stored[f"{tower}pre_layrnorm.{part}"])


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _require_exportable(unfinished: Path, directory: Path) -> None:
    deviations = check_checkpoint(unfinished).deviations
    if deviations:
        raise CheckpointError(f"{directory} would be refused by an export and is not written: {'; '.join(deviations)}")


def _rename(unfinished: Path, directory: Path) -> None:
    """Give the finished folder its name; one that is there leaves it first, and comes back when that fails."""
    if not directory.exists():
        unfinished.rename(directory)
        return
    replaced = unfinished.with_suffix(".replaced")
    try:
        directory.rename(replaced)
        unfinished.rename(directory)
    except BaseException:
        if replaced.exists() and not directory.exists():
            replaced.rename(directory)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
