"""The export, from a checkpoint directory to a checked engine.plan.

Order matters: everything that can be refused is refused from headers before the slow part, graphs come from the config
alone, weights are streamed once, and the written file is compared with the eager model before it gets its name.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from trol_export.arena import ArenaLayout, plan_arena, stream_arena
from trol_export.checkpoint import GATING_FILE, Checkpoint, effective_gate, require_tensors
from trol_export.checkpoint_config import read_model_config
from trol_export.graph_build import ROLES, EngineGraphs, build_graphs, graph_entry
from trol_export.hub import fetch, repository_of_size, repository_of_source
from trol_export.parity import DECODE_STEPS
from trol_export.parity_check import check_parity
from trol_export.progress import counted
from trol_export.tiny.packaged import PACKAGED_SIZE, packaged_checkpoint
from trol_export.token_ids import read_token_ids
from trol_export.tokenizer_conversion import convert_tokenizer
from trol_export.weight_conversion import FloatType
from trol_export.weight_files import TensorInfo
from trol_graphs.model import dead_tensors, expected_tensors
from trol_runtime.bundle import ARENA_ENTRY, Bundle
from trol_runtime.bundle_writer import BundleWriter
from trol_runtime.cpu_backend import LANGUAGE_ENTRY, TARGET, VISION_ENTRY
from trol_runtime.engine import TOKENIZER_ENTRY
from trol_runtime.errors import TrolError, UsageError
from trol_runtime.generation import DEFAULT_MAX_NEW_TOKENS
from trol_runtime.manifest import Limits, Manifest, PlanEntry, TensorEntry
from trol_runtime.model_config import ModelConfig
from trol_runtime.ort_session import require_onnxruntime
from trol_runtime.progress import step
from trol_runtime.prompt import official_template

# What --onnx-dir writes beside the weights.
ONNX_FILES = {role: f"{role}.onnx" for role in ROLES}
DEFAULT_REVISION = "main"
DEFAULT_MAX_SEQ = 4096
LEAST_MAX_SEQ = 2 * DECODE_STEPS  # the parity check needs a short prompt and its decode steps
DEFAULT_MAX_BATCH = 5  # the official evaluations search with five beams
STORED: dict[str, FloatType] = {"fp32": "F32", "fp16": "F16"}


@dataclass(frozen=True)
class ExportRequest:
    """What to make of which checkpoint.

    source: a checkpoint's folder, a repository of the hub, or with `is_size` a size such as "1.8b" or "tiny"
    max_seq: pictures, text and answer of a row together; None: 4096, or what the model allows if that is less
    """

    source: str
    output: Path
    precision: Literal["fp32", "fp16"]
    max_seq: int | None = None
    max_batch: int = DEFAULT_MAX_BATCH
    tokenizer: bool = True
    onnx_dir: Path | None = None
    overwrite: bool = False
    is_size: bool = False
    revision: str = DEFAULT_REVISION


def export_engine(request: ExportRequest) -> Manifest:
    """Write `request.output` and return its manifest, parity record included.

    Raises CheckpointError, UsageError and other TrolErrors; nothing gets the output's name unless parity holds.
    """
    _check_request(request)
    onnxruntime = require_onnxruntime()  # runs the parity check, after all the work
    writer = BundleWriter(request.output, overwrite=request.overwrite)
    directory, origin = _locate(request)
    with step("read checkpoint headers"):
        checkpoint = Checkpoint.open(directory)
        token_ids = read_token_ids(directory)
        config = read_model_config(checkpoint.config, checkpoint.generation, checkpoint.shapes, token_ids)
        expected = expected_tensors(config)
        require_tensors(checkpoint, expected, dead_tensors(config))
        limits = _limits(request, config)
        tokenizer = convert_tokenizer(directory, config) if request.tokenizer else None
        stored = STORED[request.precision]
        layout = plan_arena(TensorInfo(name, stored, shape) for name, shape in expected.items())
        _require_disk(request, writer, layout.data_bytes)
    with writer:
        offsets = {name: len(layout.header) + offset for name, offset in layout.offsets.items()}
        graphs = build_graphs(config, request.precision, offsets, step)
        versions = {"onnxruntime": onnxruntime.__version__}
        manifest = _manifest(request, checkpoint, origin, config, limits, layout, graphs, versions)
        for entry, data in graphs.entries.items():
            writer.add(entry, data)
        if tokenizer is not None:
            writer.add(TOKENIZER_ENTRY, tokenizer)
        with step(f"write weights, {layout.data_bytes / 1e9:.2f} GB"):
            chunks = stream_arena(layout, lambda name: checkpoint.stream(name, stored))
            writer.add_arena(layout, counted(chunks, layout.data_bytes))
        unchecked = writer.write_provisional(manifest)
        with step("compare with the eager model"):
            report = check_parity(Bundle.open(unchecked), checkpoint)
        if not report.passed:
            raise TrolError(f"{report.verdict()}; no engine was written, please report this checkpoint")
        manifest = replace(manifest, parity=report.parity_json(), fp16_range=report.fp16_range_json())
        writer.finish(manifest)
    if request.onnx_dir is not None:
        with step(f"copy graphs and weights to {request.onnx_dir}"):
            _extract_onnx(Bundle.open(request.output), request.onnx_dir, request.overwrite)
    return manifest


def _locate(request: ExportRequest) -> tuple[Path, dict[str, str]]:
    """The checkpoint's folder, fetched if need be, and where it came from, for the manifest."""
    repository = repository_of_size(request.source) if request.is_size else repository_of_source(request.source)
    if repository is not None:
        snapshot = fetch(repository, request.revision)
        return snapshot.directory, {"repository": repository, "revision": request.revision, "commit": snapshot.commit}
    if request.revision != DEFAULT_REVISION:
        place = "comes with this package" if request.is_size else "is a folder"
        raise UsageError(f"--revision {request.revision} is for repositories of the hub, {request.source} {place}")
    if request.is_size:
        return packaged_checkpoint(), {"package": "trol-export", "size": PACKAGED_SIZE}
    folder = Path(request.source)
    return folder, {"folder": folder.resolve().name}


def _limits(request: ExportRequest, config: ModelConfig) -> Limits:
    most = config.decoder.max_positions
    max_seq = min(DEFAULT_MAX_SEQ, most) if request.max_seq is None else request.max_seq
    if max_seq > most:
        raise UsageError(f"--max-seq is {max_seq}, this model allows {LEAST_MAX_SEQ} to {most}")
    return Limits(max_seq, request.max_batch)


def _manifest(
    request: ExportRequest,
    checkpoint: Checkpoint,
    origin: dict[str, str],
    config: ModelConfig,
    limits: Limits,
    layout: ArenaLayout,
    graphs: EngineGraphs,
    versions: dict[str, str],
) -> Manifest:
    tools = versions | {name: version(name) for name in ("trol-export", "torch", "onnx-ir", "tokenizers")}
    dropped = [name for name in checkpoint.tensors if name not in layout.offsets] + _unused_gates(checkpoint)
    plan = PlanEntry(
        target=TARGET,
        key=f"onnxruntime-{request.precision}",
        roles=tuple(graphs.roles),
        precision="fp32",
        entries=(LANGUAGE_ENTRY, VISION_ENTRY),
        versions=versions,
    )
    return Manifest(
        producer={**tools, "checkpoint": origin, "dropped": dropped},
        model=config,
        precision=request.precision,
        limits=limits,
        tensors={t.name: TensorEntry(t.dtype, t.dtype, t.shape, layout.offsets[t.name]) for t in layout.tensors},
        graphs=graphs.roles,
        plans=(plan,),
        prompt=official_template(config.arch) if request.tokenizer else None,
        generation={"max_new_tokens": DEFAULT_MAX_NEW_TOKENS, "do_sample": False, "num_beams": 1},
    )


def _unused_gates(checkpoint: Checkpoint) -> list[str]:
    """The entries of trol_gating.pt that the official loader overwrites: all but the last layer's."""
    assert checkpoint.gating is not None  # Checkpoint.open refuses to do without
    stored = checkpoint.gating.tensors
    in_force = effective_gate(stored).values()
    return [f"{GATING_FILE}: {name}" for name in stored if name not in in_force]


def _check_request(request: ExportRequest) -> None:
    """Refuse what can be refused before anything is fetched or read."""
    if request.max_seq is not None and request.max_seq < LEAST_MAX_SEQ:
        raise UsageError(f"--max-seq is {request.max_seq}, expected at least {LEAST_MAX_SEQ}")
    if request.max_batch < 1:
        raise UsageError(f"--max-batch is {request.max_batch}, expected 1 or more")
    if request.onnx_dir is not None and not _nearest_folder(request.onnx_dir).is_dir():
        raise UsageError(f"{_nearest_folder(request.onnx_dir)} is a file; choose another folder with --onnx-dir")
    outputs = [request.output]
    if request.onnx_dir is not None:
        outputs += [request.onnx_dir / name for name in (*ONNX_FILES.values(), ARENA_ENTRY)]
    existing = [path for path in outputs if os.path.lexists(path)]
    if existing and not request.overwrite:
        raise UsageError(
            f"{existing[0]} already exists; pass --overwrite, or choose another place with -o or --onnx-dir"
        )


def _require_disk(request: ExportRequest, writer: BundleWriter, weights: int) -> None:
    """Raise TrolError unless the weights fit where the engine goes, and once more where --onnx-dir leaves its copy."""
    if request.onnx_dir is None:
        writer.require_free_bytes(weights)
        return
    folder = _nearest_folder(request.onnx_dir)
    same_disk = folder.stat().st_dev == request.output.absolute().parent.stat().st_dev
    writer.require_free_bytes(2 * weights if same_disk else weights)
    free = shutil.disk_usage(folder).free
    if free < weights:
        raise TrolError(f"{request.onnx_dir} needs {weights:,} bytes, its disk has {free:,} free; choose another place")


def _nearest_folder(path: Path) -> Path:
    """`path` or the first of its parents that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _extract_onnx(bundle: Bundle, directory: Path, overwrite: bool) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrolError(
            f"{directory} cannot be made ({error.strerror}); choose another place with --onnx-dir"
        ) from None
    for role, file_name in ONNX_FILES.items():
        bundle.extract(graph_entry(role), directory / file_name, overwrite=overwrite)
    bundle.extract(ARENA_ENTRY, directory / ARENA_ENTRY, overwrite=overwrite)
