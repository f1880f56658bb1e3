"""trol-inspect: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from recorded_machines import NAMES, printed, recorded
from small_engine import SMALL_ENTRIES, small_manifest, write_small_engine
from small_plan import SMALL_CONTENTS, small_plan
from trol_runtime import inspect_command_line, system_report
from trol_runtime.bundle import Bundle
from trol_runtime.command import run_command
from trol_runtime.inspect_command_line import EXAMPLES, main
from trol_runtime.machine import MachineDescription
from trol_runtime.plan_store import add_plan
from trol_runtime.system_report import report_on
from trol_runtime.weight_form import Probe

REPORT = """\
file        {path}, {size:,} bytes, format 1
model       internlm2, 6 layers, hidden 32, 8 heads (4 for K/V), vocabulary 601
vision      clip, 2 layers, 70 x 70 pixels, 25 tokens per crop
precision   fp32
limits      128 tokens per row, 5 rows
weights     76,946 bytes in 2 tensors
K/V cache   768 bytes per token and row (fp32)
CPU memory  75.14 KiB of mapped weights + 36 bytes as fp32 copies + 768 bytes per token
prompt      template stored
generation  eos_token_id 2, 600
producer    torch 2.13.0, trol-export 0.1.0

runs on:
  target  key     roles            precision  weights  mixer  opset   sm  built with          built here
  cpu     x86_64  prefill, decode  fp32       -        -      modern  -   onnxruntime 1.31.1  -

entries:
  entry                 bytes
  graphs/prefill.onnx       7
  graphs/decode.onnx       30
  tokenizer.json            2
  alignment.pad        {pad:,}
  weights.safetensors  81,280
  manifest.json        {manifest:>6,}

parity:
  verdict  pass
  output          max_abs_diff  limit   cosine  verdict
  prefill logits       0.00012  0.001  0.99999  pass
  decode logits              0  0.001        1  pass

fp16 range:
  limit  65504
  part      max_abs
  layers.0     12.5
  layers.1      431
"""


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return write_small_engine(tmp_path / "engine.plan")


def inspect(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    code = run_command("trol-inspect", main, [str(argument) for argument in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_report_says_what_is_inside_what_it_runs_on_and_how_exact_it_is(
    engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {name: entry.size for name, entry in Bundle.open(engine).entries.items()}
    expected = REPORT.format(
        path=engine, size=engine.stat().st_size, pad=sizes["alignment.pad"], manifest=sizes["manifest.json"]
    )
    assert inspect(capsys, engine) == (0, expected, "")


def test_json_is_the_manifest_and_the_size_of_the_file(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inspect(capsys, engine, "--json")
    manifest = json.loads(Bundle.open(engine).manifest.to_bytes())
    assert (code, err) == (0, "")
    assert json.loads(out) == {**manifest, "file_bytes": engine.stat().st_size}


def test_verify_says_so_on_stderr_and_still_reports(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inspect(capsys, engine, "--verify")
    assert (code, err) == (0, f"{engine}: 6 entries and 1 blocks of weights verified\n")
    assert out.startswith("file ")


def test_verify_finds_damaged_weights_and_prints_no_report(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(engine.read_bytes())
    data[Bundle.open(engine).arena_offset + 300] ^= 1
    engine.write_bytes(data)
    assert inspect(capsys, engine)[0] == 0
    code, out, err = inspect(capsys, engine, "--verify")
    assert (code, out) == (1, "")
    assert err.startswith(f"trol-inspect: {engine}: 1 of 1 blocks of weights.safetensors damaged")


def test_extract_writes_the_entry_to_the_file_named_by_o(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = inspect(capsys, engine, "--extract", "graphs/decode.onnx", "-o", tmp_path / "d.onnx")
    assert (code, out, err) == (0, "", f"{tmp_path / 'd.onnx'}: 30 bytes written\n")
    assert (tmp_path / "d.onnx").read_bytes() == SMALL_ENTRIES["graphs/decode.onnx"]


def test_extract_without_o_takes_the_last_part_of_the_entry_name(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert inspect(capsys, engine, "--extract", "graphs/decode.onnx")[0] == 0
    assert (tmp_path / "decode.onnx").read_bytes() == SMALL_ENTRIES["graphs/decode.onnx"]


@pytest.mark.parametrize("entry", ["../../etc/passwd", "/etc/passwd", "graphs", "graphs/../tokenizer.json", ""])
def test_extract_takes_only_names_of_entries(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = inspect(capsys, engine, "--extract", entry)
    assert (code, out) == (2, "")
    assert err == f"trol-inspect: {engine}: no entry {entry!r}; it holds {', '.join(Bundle.open(engine).entries)}\n"
    assert list(tmp_path.iterdir()) == [engine]


def test_extract_never_replaces_the_engine_itself(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = engine.read_bytes()
    code, _, err = inspect(capsys, engine, "--extract", "tokenizer.json", "-o", engine)
    assert (code, err) == (2, f"trol-inspect: {engine}: already exists; choose another name with -o\n")
    assert engine.read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "which engine file? Type: trol-inspect engine.plan (or trol-inspect --system)"),
        (["a.plan", "--probe"], "--probe is about this machine: add --system, or leave it out"),
        (["a.plan", "--system"], "--system describes this machine: leave out the engine file and its options"),
        (["a.plan", "-o", "x"], "-o names the file for --extract ENTRY; add --extract, or leave out -o"),
        (["a.plan", "--json", "--extract", "x"], "--json and --extract exclude each other; run trol-inspect twice"),
        (["a.plan", "--verfy"], "unrecognized arguments: --verfy; see: trol-inspect --help"),
        (["a.plan", "--extract"], "argument --extract: expected one argument; see: trol-inspect --help"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert inspect(capsys, *argv) == (2, "", f"trol-inspect: {message}\n")


def test_a_missing_engine_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inspect(capsys, tmp_path / "no.plan")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "no.plan: no such file; make one with: trol-export --size" in err


def test_an_engine_without_plan_parity_or_prompt_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = replace(small_manifest(), plans=(), parity={}, fp16_range={}, prompt=None, generation={})
    code, out, _ = inspect(capsys, write_small_engine(tmp_path / "bare.plan", bare))
    assert code == 0
    assert "\nprompt      none: exported with --no-tokenizer, takes token ids only\n" in out
    assert "\nruns on: nothing recorded\n" in out
    assert "\nparity: nothing recorded\n" in out


def test_plans_are_listed_with_what_they_were_built_for_and_whether_that_was_here(
    engine: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plan = small_plan(Bundle.open(engine).manifest, mixer="function", opset="legacy", gpu="Jetson AGX Orin")
    add_plan(engine, plan, SMALL_CONTENTS)
    _, out, _ = inspect(capsys, engine)
    heading, cpu, tensorrt = (re.split("  +", line.strip()) for line in out.split("runs on:\n")[1].splitlines()[:3])
    versions = "cuda 13.0, tensorrt 10.16.2.10"
    assert heading == [
        *("target", "key", "roles", "precision"),
        *("weights", "mixer", "opset", "sm", "built with", "built here"),
    ]
    assert cpu == ["cpu", "x86_64", "prefill, decode", "fp32", "-", "-", "modern", "-", "onnxruntime 1.31.1", "-"]
    assert tensorrt == [
        *("tensorrt", plan.key, "prefill, decode", "fp16"),
        *("shared", "function", "legacy", "8.7 (Jetson AGX Orin)", versions, "yes"),
    ]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    _, out, _ = inspect(capsys, engine)
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("  tensorrt ")] == ["no"]


def test_what_a_plan_computes_in_is_told_by_role_and_group_of_layers(
    engine: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    computes = {"prefill": {"attention": "fp16 4", "norms": "fp32 9"}, "decode": {"attention": "fp16 2"}}
    plan = replace(small_plan(Bundle.open(engine).manifest), computes=computes)
    add_plan(engine, plan, SMALL_CONTENTS)
    _, out, _ = inspect(capsys, engine)
    rows = [re.split("  +", line.strip()) for line in out.split("computes in:\n")[1].splitlines()[:3]]
    assert rows == [
        ["target", "key", "role", "attention", "norms"],
        ["tensorrt", plan.key, "decode", "fp16 2", "-"],
        ["tensorrt", plan.key, "prefill", "fp16 4", "fp32 9"],
    ]


def test_help_opens_with_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for line, (arguments, meaning) in zip(lines, EXAMPLES, strict=False):
        assert f"trol-inspect {arguments} " in line
        assert line.endswith(meaning)


def test_system_needs_no_engine(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inspect(capsys, "--system")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["CPU", "memory", "system"]
    assert re.search(r"^runs:\n  cpu +yes$", out, re.MULTILINE)


def test_system_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = inspect(capsys, "--system", "--json")
    assert code == 0
    values = json.loads(out)
    assert values["runs"]["cpu"] == "yes"
    assert MachineDescription.from_json(values).packages["numpy"]


@pytest.mark.parametrize("name", NAMES)
def test_system_prints_what_a_machine_is_builds_and_runs(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_report, "describe_machine", lambda: recorded(name))
    assert inspect(capsys, "--system") == (0, printed(name), "")


def test_a_closed_pipe_ends_the_command_quietly(engine: Path) -> None:
    program = "from trol_runtime.inspect_command_line import script; script()"
    command = [sys.executable, "-c", program, str(engine)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=20) == 141


def test_a_probe_says_which_form_of_weights_is_better_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = report_on(recorded("orin_nano_jetpack_7_2"))
    report = replace(report, builds={**report.builds, "tensorrt": "yes"}, runs={**report.runs, "tensorrt": "yes"})
    monkeypatch.setattr(inspect_command_line, "system_report", lambda: report)
    monkeypatch.setattr(inspect_command_line, "probe", lambda target: Probe(shared_us=312.25, embedded_us=250.0))
    code, out, _ = inspect(capsys, "--system", "--probe")
    assert code == 0
    assert out.endswith(
        "weights of plans, by one linear:\n  tensorrt  embedded (312.2 us a run as input, 250.0 us inside the plan)\n"
    )
    found = json.loads(inspect(capsys, "--system", "--probe", "--json")[1])["probes"]
    assert found == {"tensorrt": {"shared_us": 312.25, "embedded_us": 250.0, "weights": "embedded"}}


def test_without_a_gpu_there_is_nothing_to_probe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_command_line, "system_report", lambda: report_on(recorded("no_gpu")))
    code, out, err = inspect(capsys, "--system", "--probe")
    assert (code, out) == (1, "")
    assert err.startswith("trol-inspect: --probe needs a GPU whose plans are built here; tensorrt-rtx: ")
    assert err.count("\n") == 1
