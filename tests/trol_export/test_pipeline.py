"""The export as a whole: what the engine file then holds, and that it is all or nothing."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from emitted_graphs import program
from trol_export import graph_build, parity, pipeline
from trol_export.arena import ArenaLayout, stream_arena
from trol_export.checkpoint import Checkpoint
from trol_export.pipeline import ExportRequest, export_engine
from trol_graphs.eager import EagerSession, eager_model
from trol_graphs.model import dead_tensors, expected_tensors
from trol_runtime import TroL, atomic_file
from trol_runtime.bundle import Bundle
from trol_runtime.prompt import official_template
from trol_runtime.rope import rope_rows

ARCHS = ["internlm2", "phi3"]
Source = Callable[[str], Iterator[memoryview]]


@pytest.fixture(autouse=True)
def traces_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing is most of the time of so small an export; the same config gives the same trace."""
    monkeypatch.setattr(graph_build, "trace", lambda model, role: program(model.config, role))


# --- what the file holds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("precision", "stored"), [("fp32", "F32"), ("fp16", "F16")])
def test_the_engine_holds_every_weight_once_in_the_precision_asked_for(
    micro_engine: Callable[..., Path], arch: str, precision: str, stored: str
) -> None:
    manifest = Bundle.open(micro_engine(arch, precision)).manifest
    assert manifest.precision == precision
    assert {name: tensor.shape for name, tensor in manifest.tensors.items()} == expected_tensors(manifest.model)
    assert {tensor.stored for tensor in manifest.tensors.values()} == {stored}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_lie_in_the_file_as_in_the_checkpoint(
    micro_engine: Callable[..., Path], micro_checkpoint: Callable[..., Path], precision: str
) -> None:
    checkpoint = Checkpoint.open(micro_checkpoint("internlm2"))
    bundle = Bundle.open(micro_engine("internlm2", precision))
    data = bundle.path.read_bytes()
    dtype = {"fp32": np.float32, "fp16": np.float16}[precision]
    for name, tensor in bundle.manifest.tensors.items():
        stored = np.frombuffer(data, dtype, int(np.prod(tensor.shape)), bundle.arena_offset + tensor.offset)
        np.testing.assert_array_equal(stored.reshape(tensor.shape), checkpoint.numpy(name).astype(dtype))


def test_what_has_no_effect_is_dropped_and_listed(
    micro_engine: Callable[..., Path], micro_checkpoint: Callable[..., Path]
) -> None:
    manifest = Bundle.open(micro_engine("internlm2")).manifest
    unused_gates = {"trol_gating.pt: 0.weight", "trol_gating.pt: 0.bias"}
    assert set(manifest.producer["dropped"]) == dead_tensors(manifest.model) | unused_gates


def test_the_manifest_says_where_the_engine_comes_from_and_what_runs_it(
    micro_engine: Callable[..., Path], micro_checkpoint: Callable[..., Path]
) -> None:
    bundle = Bundle.open(micro_engine("internlm2"))
    producer, (plan,) = bundle.manifest.producer, bundle.manifest.plans
    assert producer["checkpoint"] == {"folder": micro_checkpoint("internlm2").name}
    assert {"trol-export", "torch", "onnx-ir", "onnxruntime", "tokenizers"} <= producer.keys()
    assert (plan.target, plan.roles) == ("cpu", ("vision", "prefill", "decode", "extend"))
    assert plan.versions == {"onnxruntime": ort.__version__}
    assert all(entry in bundle.entries for entry in plan.entries)
    assert bundle.manifest.prompt == official_template("internlm2")


def test_the_parity_record_passes_and_names_its_reference(micro_engine: Callable[..., Path]) -> None:
    manifest = Bundle.open(micro_engine("phi3", "fp16")).manifest
    assert (manifest.parity["verdict"], manifest.parity["reference"]) == ("pass", "eager model, fp32")
    assert all(row["verdict"] == "pass" for row in manifest.parity["outputs"])
    assert manifest.fp16_range["verdict"] == "fits"
    parts = [row["part"] for row in manifest.fp16_range["activations"]]
    assert {"layers.0", "layers.1"} <= set(parts)


def test_without_limits_the_engine_takes_4096_tokens_and_five_rows(
    micro_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    request = ExportRequest(str(micro_checkpoint("internlm2")), tmp_path / "engine.plan", "fp32")
    limits = export_engine(request).limits
    assert (limits.max_seq, limits.max_batch) == (4096, 5)


def test_the_same_export_gives_the_same_bytes(
    micro_engine: Callable[..., Path], micro_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    first = micro_engine("phi3")
    limits = Bundle.open(first).manifest.limits
    again = tmp_path / "again.plan"
    program.cache_clear()  # traced anew
    export_engine(
        ExportRequest(str(micro_checkpoint("phi3")), again, "fp32", max_seq=limits.max_seq, max_batch=limits.max_batch)
    )
    assert again.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("max_seq", [8, 11])
def test_the_shortest_engines_can_be_checked_and_run(
    micro_checkpoint: Callable[..., Path], tmp_path: Path, max_seq: int
) -> None:
    engine = tmp_path / "engine.plan"
    export_engine(ExportRequest(str(micro_checkpoint("internlm2")), engine, "fp32", max_seq=max_seq))
    new_ids = TroL.load(engine).generate_ids(np.array([[1, 5]]), eos_token_id=-1)
    assert new_ids.shape == (1, max_seq - 2)


def test_without_a_tokenizer_the_engine_takes_ids_only(micro_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    engine = tmp_path / "engine.plan"
    export_engine(ExportRequest(str(micro_checkpoint("internlm2")), engine, "fp32", tokenizer=False))
    bundle = Bundle.open(engine)
    assert bundle.manifest.prompt is None
    assert "tokenizer.json" not in bundle.entries
    assert TroL.load(engine).generate_ids(np.array([[1, 5, 7]]), max_new_tokens=3).shape[0] == 1


def test_overwriting_replaces_an_engine_that_is_in_use(
    micro_engine: Callable[..., Path], micro_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    engine = tmp_path / "engine.plan"
    engine.write_bytes(micro_engine("phi3").read_bytes())
    in_use = TroL.load(engine)
    before = in_use.generate_ids(np.array([[1, 5, 7]]), max_new_tokens=3)
    export_engine(ExportRequest(str(micro_checkpoint("internlm2")), engine, "fp32", overwrite=True))
    assert Bundle.open(engine).manifest.model.arch == "internlm2"
    np.testing.assert_array_equal(in_use.generate_ids(np.array([[1, 5, 7]]), max_new_tokens=3), before)


# --- --onnx-dir ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_the_onnx_files_run_without_this_project(
    micro_checkpoint: Callable[..., Path], tmp_path: Path, arch: str
) -> None:
    checkpoint, folder = micro_checkpoint(arch), tmp_path / "onnx"
    export_engine(ExportRequest(str(checkpoint), tmp_path / "engine.plan", "fp32", onnx_dir=folder))
    assert sorted(path.name for path in folder.iterdir()) == [
        *("decode.onnx", "extend.onnx", "prefill.onnx", "vision.onnx", "weights.safetensors")
    ]
    config = Bundle.open(tmp_path / "engine.plan").manifest.model
    eager = EagerSession(eager_model(config, Checkpoint.open(checkpoint).torch))
    random = np.random.default_rng(0)
    pixels = random.standard_normal((1, 3, config.vision.image_size, config.vision.image_size), np.float32)
    (embeds,) = run_onnx(folder / "vision.onnx", {"pixel_values": pixels})
    # fp32 on both sides, two layers: they differ by the order of sums.
    np.testing.assert_allclose(embeds, eager.encode(pixels), rtol=0, atol=1e-5 * np.abs(embeds).max())
    ids = np.array([[1, *[config.image_token_id] * config.vision.tokens_per_crop, 9, 8, 7]])
    cos, sin = rope_rows(config.decoder, np.arange(ids.size)[None], ids.size)
    decoder = config.decoder
    empty = np.zeros((1, decoder.kv_heads, ids.size, decoder.head_dim), np.float32)
    kinds = ("past_key_values", "past_second_pass")
    caches = [f"{kind}.{i}.{part}" for kind in kinds for i in range(decoder.layers) for part in ("key", "value")]
    feeds = {"input_ids": ids, "image_embeds": embeds[0], "cos": cos, "sin": sin}
    expected = eager.prefill(ids, embeds)
    (prefill, *_) = run_onnx(folder / "prefill.onnx", feeds | dict.fromkeys(caches[: 2 * decoder.layers], empty))
    place = {"write_index": np.array([0]), "attention_mask": np.tri(ids.size, dtype=np.bool_)[None, None]}
    (extend, *_) = run_onnx(folder / "extend.onnx", feeds | place | dict.fromkeys(caches, empty))
    for logits in (prefill, extend):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(logits).max())


def run_onnx(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # caches are not bound in place here, of which ONNX Runtime warns
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def test_onnx_files_are_replaced_only_if_asked(micro_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "decode.onnx").write_text("old")
    request = ExportRequest(
        str(micro_checkpoint("internlm2")), tmp_path / "engine.plan", "fp32", onnx_dir=folder, overwrite=True
    )
    export_engine(request)
    assert (folder / "decode.onnx").read_bytes() == Bundle.open(request.output).read("graphs/decode.onnx")


def test_a_folder_for_onnx_files_that_cannot_be_made_is_refused_before_any_work(
    trol_export: Callable[..., Any], micro_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    engine = tmp_path / "engine.plan"
    ended = trol_export(
        "--checkpoint", micro_checkpoint("phi3"), "-o", engine, "--onnx-dir", tmp_path / "file" / "onnx"
    )
    assert ended.code == 2
    assert ended.stderr == f"trol-export: {tmp_path / 'file'} is a file; choose another folder with --onnx-dir\n"
    assert not engine.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-batch", "0"], "--max-batch is 0, expected 1 or more"),
        (["--max-seq", "3"], "--max-seq is 3, expected at least 8"),
    ],
)
def test_limits_no_model_allows_are_refused_before_anything_is_fetched(
    trol_export: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], message: str
) -> None:
    monkeypatch.setattr(pipeline, "fetch", lambda *_: pytest.fail("went to the hub"))
    ended = trol_export("--size", "7b", "-o", tmp_path / "engine.plan", *options)
    assert (ended.code, ended.stderr) == (2, f"trol-export: {message}\n")


def test_a_revision_of_a_folder_is_refused(
    trol_export: Callable[..., Any], micro_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = micro_checkpoint("phi3")
    ended = trol_export("--checkpoint", folder, "--revision", "v2", "-o", tmp_path / "engine.plan")
    assert ended.code == 2
    assert ended.stderr == f"trol-export: --revision v2 is for repositories of the hub, {folder} is a folder\n"


def test_onnx_files_need_room_for_a_second_copy_of_the_weights(
    trol_export: Callable[..., Any],
    micro_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Room for one engine and a half: enough without --onnx-dir, too little with it."""
    asked = ["--checkpoint", micro_checkpoint("phi3"), "--precision", "fp32", "--max-seq", "64"]
    assert trol_export(*asked, "-o", tmp_path / "first.plan").code == 0
    weights = Bundle.open(tmp_path / "first.plan").entries["weights.safetensors"].size
    total, used, _ = shutil.disk_usage(tmp_path)
    room = type(shutil.disk_usage(tmp_path))(total, used, 3 * weights // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    ended = trol_export(*asked, "-o", tmp_path / "second.plan", "--onnx-dir", tmp_path / "onnx")
    assert ended.code == 1
    assert "needs" in ended.stderr.splitlines()[-1]
    assert "free" in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "second.plan").exists()


def test_activations_beyond_fp16_are_said_aloud(
    trol_export: Callable[..., Any],
    micro_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parity, "FP16_MAX", 1.0)
    ended = trol_export("--checkpoint", micro_checkpoint("phi3"), "--precision", "fp16", "-o", tmp_path / "engine.plan")
    assert ended.code == 0
    assert "warning: fp16 overflows in " in ended.stderr
    assert "the CPU computes in fp32 and is not affected" in ended.stderr


# --- all or nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["build_graphs", "counted", "check_parity", "replace"])
def test_ctrl_c_at_any_moment_leaves_the_folder_as_it_was(
    trol_export: Callable[..., Any],
    micro_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    engine = tmp_path / "engine.plan"
    engine.write_text("yesterday's engine")
    monkeypatch.setattr(pipeline, moment, interrupt)
    ended = trol_export("--checkpoint", micro_checkpoint("internlm2"), "-o", engine, "--overwrite")
    assert ended.code == 130
    assert ended.stderr.endswith("trol-export: interrupted\n")
    assert list(tmp_path.iterdir()) == [engine]
    assert engine.read_text() == "yesterday's engine"


@pytest.mark.parametrize("room", [0, 90_000, 300_000], ids=["at the first byte", "in the graphs", "in the weights"])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(
    trol_export: Callable[..., Any],
    micro_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
) -> None:
    class SmallDisk(FileIO):
        def write(self, data: Any) -> int:
            left = room - self.tell()
            if left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(memoryview(data)[:left])

    monkeypatch.setattr(atomic_file, "FileIO", SmallDisk)
    engine = tmp_path / "engine.plan"
    ended = trol_export("--checkpoint", micro_checkpoint("internlm2"), "-o", engine)
    assert ended.code == 1
    assert f"trol-export: {engine}: disk full after {room:,} bytes" in ended.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_said_before_a_graph_is_traced(
    trol_export: Callable[..., Any],
    micro_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    ended = trol_export("--checkpoint", micro_checkpoint("internlm2"), "-o", tmp_path / "engine.plan")
    assert ended.code == 1
    assert "bytes, its disk has 1,000 free; free some or choose another place with -o" in ended.stderr
    assert "trace" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_weight_written_wrong_fails_the_parity_check_and_leaves_no_engine(
    trol_export: Callable[..., Any],
    micro_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(layout: ArenaLayout, source: Source) -> Iterator[bytes | memoryview]:
        def backwards(name: str) -> Iterator[memoryview]:
            for chunk in source(name):
                wrong = name == "model.layers.1.feed_forward.w3.ffn.weight"
                yield memoryview(np.frombuffer(chunk, np.float32)[::-1].tobytes()) if wrong else chunk

        return stream_arena(layout, backwards)

    monkeypatch.setattr(pipeline, "stream_arena", wrong)
    checkpoint = micro_checkpoint("internlm2")
    ended = trol_export("--checkpoint", checkpoint, "--precision", "fp32", "-o", tmp_path / "engine.plan")
    assert ended.code == 1
    assert ended.stdout == ""
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("trol-export: parity failed for 10 of 11 outputs: ")
    assert last.endswith("; no engine was written, please report this checkpoint")
    assert list(tmp_path.iterdir()) == []
