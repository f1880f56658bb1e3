from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from trol_benchmarks.export_cost import (
    Export,
    copy_and_hash,
    cost_record,
    export_weights,
    main,
    stages_in,
    weight_files,
)
from trol_benchmarks.resident_memory import Peak
from trol_runtime.errors import TrolError, UsageError
from trol_runtime.progress import step


def export(weights: float, gigabytes: str = "2.00", tracing: float = 1.0) -> Export:
    stages = {"trace prefill": tracing, "trace decode": 0.5, f"write weights, {gigabytes} GB": weights}
    return Export(stages, 99.0, Peak())


def test_stages_are_read_as_trol_export_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    with step("trace prefill"), step("write weights, 4.90 GB"):
        pass
    printed = capsys.readouterr().err.splitlines()
    assert set(stages_in([*printed, "trol-export: something else"])) == {"trace prefill", "write weights, 4.90 GB"}


def test_seconds_of_a_stage_are_read() -> None:
    assert stages_in(["write weights, 4.90 GB                          39.0 s"]) == {"write weights, 4.90 GB": 39.0}


def test_the_weight_stage_is_counted_per_byte_written() -> None:
    assert export(weights=10.0, gigabytes="4.00").weight_seconds_per_gb == 2.5


def test_tracing_is_the_sum_over_the_roles() -> None:
    assert export(1.0).tracing_seconds == 1.5


def test_both_sides_are_compared_by_their_medians() -> None:
    record = cost_record([1.0, 1.0, 9.0], [export(2.0), export(3.0), export(4.0)], export(1.0, tracing=7.0))
    assert record["weight_stage_to_copy"]["of_medians"] == 1.5
    assert record["tracing_s"]["max"] == 7.5


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs the command sha256sum")
def test_copies_are_gone_after_they_were_timed(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    weights = source / "model.safetensors"
    weights.write_bytes(bytes(1000))
    assert copy_and_hash([weights], folder) > 0
    assert not list(folder.iterdir())


def test_only_files_with_tensors_are_copied(tmp_path: Path) -> None:
    for name in ("model-2.safetensors", "trol_gating.pt", "config.json", "tokenizer.model", "model-1.safetensors"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 200_000_000)  # sparse: takes no room
    assert [file.name for file in weight_files(tmp_path)] == [
        "model-1.safetensors",
        "model-2.safetensors",
        "trol_gating.pt",
    ]


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no .safetensors, .bin, .pt files; give the folder of a checkpoint"):
        main([str(tmp_path)])


def test_a_checkpoint_too_small_to_be_timed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="holds less than 500 MB of weights, whose times would be noise"):
        main([str(tmp_path)])


def test_an_export_is_interrupted_once_its_weights_are_written(tmp_path: Path) -> None:
    left = tmp_path / "left"
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"  # as trol-export does
        "try:\n"
        "    print('trace vision      1.5 s', file=sys.stderr, flush=True)\n"
        "    print('write weights, 4.00 GB      8.0 s', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        f"    open({str(left)!r}, 'w').close()\n"
    )
    done = export_weights([sys.executable, "-c", script])
    assert done.stages == {"trace vision": 1.5, "write weights, 4.00 GB": 8.0}
    assert left.exists(), "the export had no time to clean up"


def test_an_export_that_fails_before_its_weights_is_reported() -> None:
    with pytest.raises(TrolError, match=r"ended with code 1, expected 0; its last line: trol-export: disk full"):
        export_weights([sys.executable, "-c", "import sys; sys.exit('trol-export: disk full')"])
