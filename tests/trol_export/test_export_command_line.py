"""trol-export as typed: what it prints, how it exits, and that a mistake is one line and costs no work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trol_export.export_command_line import NEEDED
from trol_runtime.bundle import Bundle

COMMAND = Path(sys.executable).with_name("trol-export")


def change_tensor(checkpoint: Path, name: str, change: Callable[[torch.Tensor], Any]) -> None:
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


# --- help, and life without the extras ----------------------------------------------------------------------------


def without_modules(blocked: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where importing any of `blocked` fails."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); sys.argv[0] = 'trol-export'; "
        "from trol_export.export_command_line import script; script()"
    )
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)


def test_help_opens_with_what_to_type_and_needs_nothing_installed() -> None:
    ended = without_modules((*NEEDED, "numpy", "PIL", "tokenizers"), "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: trol-export --size 1.8b --precision fp16 ")


def test_without_the_extras_one_line_has_the_pip_command() -> None:
    ended = without_modules(("torch", "onnx_ir"), "--checkpoint", "anywhere")
    assert ended.returncode == 1
    assert ended.stderr == (
        "trol-export: exporting needs torch, onnx_ir, not installed here; install with: "
        "pip install 'trol-export[export,cpu]'\n"
    )


# --- wrong calls: exit 2, one line, nothing written ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --size --checkpoint --check --add-target is required; see: trol-export --help"),
        (["--size", "9b"], "there is no TroL of size '9b'; sizes are 1.8b, 3.8b, 7b, tiny"),
        (["--size", "7b", "--checkpoint", "MICRO"], "argument --checkpoint: not allowed with argument --size"),
        (["--checkpoint", "MICRO", "--precision", "int3"], "argument --precision: invalid choice: 'int3'"),
        (["--checkpoint", "MICRO", "--target", "tpu"], "argument --target: invalid choice: 'tpu'"),
        (["--add-target", "cpu", "engine.plan"], "--add-target cpu: expected tensorrt-rtx or tensorrt"),
        (["--add-target", "tensorrt-rtx"], "argument --add-target: expected 2 arguments"),
        (
            ["--add-target", "tensorrt", "a.plan", "--add-target", "tensorrt-rtx", "a.plan"],
            "--add-target is given 2 times, expected once: call again for the next",
        ),
        (["--add-target", "tensorrt", "engine.plan", "--max-seq", "64"], "exports nothing: leave out --max-seq"),
        (["--checkpoint", "MICRO", "--weights", "none"], "argument --weights: invalid choice: 'none'"),
        (
            ["--checkpoint", "MICRO", "--target", "tensorrt-rtx", "--opset", "17"],
            "argument --opset: invalid choice: '17'",
        ),
        (["--checkpoint", "MICRO", "--opset", "legacy"], "--opset is for plans: add --target tensorrt-rtx or tensorrt"),
        (["--checkpoint", "MICRO", "--weights", "shared"], "--weights is for plans: add --target tensorrt-rtx or"),
        (["--checkpoint", "MICRO", "--target", "cpu", "--opset", "modern"], "--opset is for plans: add --target"),
        (["--check", "MICRO", "--opset", "legacy"], "--check exports nothing: leave out --opset"),
        (["--checkpoint", "MICRO", "--max-seq", "many"], "argument --max-seq: invalid int value: 'many'"),
        (["--checkpoint", "MICRO", "--max-seq", "7"], "--max-seq is 7, expected at least 8"),
        (["--checkpoint", "MICRO", "--max-seq", "32769"], "--max-seq is 32769, this model allows 8 to 32768"),
        (["--checkpoint", "MICRO", "--max-batch", "0"], "--max-batch is 0, expected 1 or more"),
        (["--checkpoint", "MICRO", "--prec", "fp32"], "unrecognized arguments: --prec fp32"),
        (
            ["--checkpoint", "/no/such/folder"],
            "'/no/such/folder' does not exist: pass a checkpoint's directory or a hub",
        ),
        (["--checkpoint", "MICRO", "-o", "nowhere/engine.plan"], "directory nowhere does not exist; create it first"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    trol_export: Callable[..., Any],
    micro_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    micro = str(micro_checkpoint("internlm2"))
    ended = trol_export(*(micro if argument == "MICRO" else argument for argument in arguments))
    assert ended.code == 2
    assert ended.stdout == ""
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("trol-export: "))
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", ["engine.plan", "onnx/decode.onnx", "onnx/weights.safetensors"])
def test_an_existing_output_is_refused_before_the_checkpoint_is_even_looked_for(
    trol_export: Callable[..., Any], tmp_path: Path, existing: str
) -> None:
    path = tmp_path / existing
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    ended = trol_export(
        "--checkpoint", "/no/such/folder", "-o", tmp_path / "engine.plan", "--onnx-dir", tmp_path / "onnx"
    )
    assert ended.code == 2
    assert f"{path} already exists; pass --overwrite, or choose another place with -o or --onnx-dir" in ended.stderr
    assert path.read_text() == "precious"


# --- failures: exit 1, one line, nothing under the output's name --------------------------------------------------


def truncate_weights(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1000)


def scramble_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"hidden_size": ')


def remove_gate(checkpoint: Path) -> None:
    (checkpoint / "trol_gating.pt").unlink()


def remove_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()


def poison_weight(checkpoint: Path) -> None:
    change_tensor(checkpoint, "model.layers.1.feed_forward.w2.ffn.weight", lambda tensor: tensor[3, 5].fill_(torch.nan))


def enlarge_weight(checkpoint: Path) -> None:
    change_tensor(checkpoint, "model.layers.0.attention.wo.ffn.weight", lambda tensor: tensor[1, 2].fill_(1e5))


def poison_gate(checkpoint: Path) -> None:
    path = checkpoint / "trol_gating.pt"
    gates = torch.load(path, weights_only=True)
    gates["1.bias"].fill_(torch.inf)
    torch.save(gates, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate_weights, "model.safetensors is truncated: it has "),
        (scramble_config, "config.json is not JSON"),
        (remove_gate, "trol_gating.pt is missing"),
        (remove_tokenizer, "add the checkpoint's tokenizer files, or export with --no-tokenizer"),
        (
            poison_weight,
            "tensor 'model.layers.1.feed_forward.w2.ffn.weight' holds nan at [3, 5], expected finite weights",
        ),
        (poison_gate, "holds inf at [0], expected finite weights"),
        (
            enlarge_weight,
            "tensor 'model.layers.0.attention.wo.ffn.weight' holds 100000 at [1, 2], beyond fp16's 65504: "
            "export with --precision fp32",
        ),
    ],
)
def test_a_bad_checkpoint_is_one_line_and_exit_code_1_and_leaves_nothing(
    trol_export: Callable[..., Any],
    micro: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    damage(micro)
    ended = trol_export("--checkpoint", micro, "-o", tmp_path / "engine.plan")
    assert ended.code == 1
    assert ended.stdout == ""
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("trol-export: "))
    assert message in line
    assert list(tmp_path.iterdir()) == [micro]


def test_without_a_network_one_sentence_says_what_to_run_elsewhere(tmp_path: Path) -> None:
    ended = subprocess.run(
        [COMMAND, "--size", "1.8b", "-o", tmp_path / "engine.plan"],
        env={**os.environ, "HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert re.fullmatch(
        r"trol-export: 'BK-Lee/TroL-1.8B' is no directory here and cannot be fetched \(HF_HUB_OFFLINE is set\), "
        r"and \S+ does not hold all of it: where there is a network run `hf download BK-Lee/TroL-1.8B "
        r"--local-dir DIR`, bring DIR here and pass --checkpoint DIR\n",
        ended.stderr,
    )
    assert not (tmp_path / "engine.plan").exists()


# --- what it prints -----------------------------------------------------------------------------------------------


def test_an_export_prints_the_parity_table_on_stdout_and_its_steps_on_stderr(
    trol_export: Callable[..., Any], micro_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    engine = tmp_path / "engine.plan"
    ended = trol_export("--checkpoint", micro_checkpoint("phi3"), "-o", engine)
    assert ended.code == 0
    *table, activations, last = ended.stdout.splitlines()
    compared = r"(image_embeds|(text|picture): (prefill|decode \d|extend) logits)"
    row = rf"{compared} +max\|d\| \S+ \(limit \S+\)  cosine .*  pass"
    assert len(table) == 11
    assert all(re.fullmatch(row, line) for line in table)
    assert activations == "activations against fp16's range: fits"
    assert last == f"{engine}: {engine.stat().st_size:,} bytes, parity pass"
    steps = [line.rsplit(maxsplit=2)[0] for line in ended.stderr.splitlines()]
    traced = [f"trace {role}" for role in ("vision", "prefill", "decode", "extend")]
    assert steps[:5] == ["read checkpoint headers", *traced]
    assert steps[-1] == "compare with the eager model"
    assert Bundle.open(engine).manifest.precision == "fp16"  # the default


def test_json_is_one_object_with_the_record_that_the_engine_holds(
    trol_export: Callable[..., Any], micro_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    engine = tmp_path / "engine.plan"
    ended = trol_export("--checkpoint", micro_checkpoint("internlm2"), "--no-tokenizer", "-o", engine, "--json")
    manifest = Bundle.open(engine).manifest
    assert json.loads(ended.stdout) == {
        "engine": str(engine),
        "parity": manifest.parity,
        "fp16_range": manifest.fp16_range,
        "plans": [],
    }


def test_check_prints_what_stops_an_export_and_exits_with_1(trol_export: Callable[..., Any], micro: Path) -> None:
    assert trol_export("--check", micro).code == 0
    config = json.loads((micro / "config.json").read_text())
    (micro / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    remove_tokenizer(micro)
    ended = trol_export("--check", micro)
    assert ended.code == 1
    assert ended.stdout.endswith("2 deviation(s): cannot be exported\n")
    report = json.loads(trol_export("--check", micro, "--json").stdout)
    assert len(report["deviations"]) == 2


def test_a_reader_that_goes_away_costs_the_table_and_not_the_engine(
    micro_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    engine = tmp_path / "engine.plan"
    process = subprocess.Popen(
        [COMMAND, "--checkpoint", micro_checkpoint("internlm2"), "-o", engine],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert "Traceback" not in errors
    assert Bundle.open(engine).manifest.parity["verdict"] == "pass"


# --- interruptions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signal_number", "after"),
    [
        pytest.param(signal.SIGINT, "read checkpoint headers", id="Ctrl-C while graphs are traced"),
        pytest.param(signal.SIGINT, "write weights", id="Ctrl-C while the file is checked"),
        pytest.param(signal.SIGTERM, "trace prefill", id="a polite kill"),
    ],
)
def test_a_real_interruption_leaves_the_folder_as_it_was(
    micro_checkpoint: Callable[..., Path], tmp_path: Path, signal_number: int, after: str
) -> None:
    process = subprocess.Popen(
        [COMMAND, "--checkpoint", micro_checkpoint("internlm2"), "-o", tmp_path / "engine.plan"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(after):
                process.send_signal(signal_number)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.endswith("trol-export: interrupted\n")
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []
