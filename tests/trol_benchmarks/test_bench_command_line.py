"""trol-bench: the report on stdout, progress on stderr, one line for what is wrong, and nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import EngineOf
from recorded_machines import recorded
from small_question_set import small_question_set
from trol_benchmarks import accuracy, bench_command_line
from trol_benchmarks.bench_command_line import ACCURACY_EXAMPLES, EXAMPLES, _parse, main
from trol_benchmarks.world.test_set import write_question_set
from trol_runtime import machine
from trol_runtime.atomic_file import AtomicFile
from trol_runtime.command import run_command
from trol_runtime.errors import TrolError

Run = Callable[..., tuple[int, str, str]]

SET = small_question_set()


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines here have random weights and come to no end."""
    monkeypatch.setattr(accuracy, "MOST_NEW_TOKENS", 4)


@pytest.fixture
def engine(micro_engine: EngineOf) -> Path:
    return micro_engine("internlm2")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.zip"
    write_question_set(path, SET)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, stdout and stderr of the command."""

    def command(*argv: str | Path | int) -> tuple[int, str, str]:
        code = run_command("trol-bench", main, [str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def report(run: Run, *argv: str | Path | int) -> Any:
    code, out, _ = run("accuracy", *argv, "--json")
    assert code == 0
    return json.loads(out)


def refused(run: Run, *argv: str | Path | int) -> tuple[int, str]:
    """Exit code and the one line, when nothing was answered."""
    code, out, err = run("accuracy", *argv)
    assert out == ""
    assert err.count("\n") == 1
    return code, err.removeprefix("trol-bench: ").rstrip("\n")


def test_alone_it_prints_its_help_with_examples(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err.startswith("usage: trol-bench accuracy engine.plan ")
    assert all(arguments in err for arguments, _ in EXAMPLES)


@pytest.mark.parametrize("arguments", [arguments for arguments, _ in EXAMPLES])
def test_the_examples_of_the_help_can_be_typed(arguments: str) -> None:
    assert _parse(arguments.split()).engine == "engine.plan"


def test_the_help_of_a_command_opens_with_its_examples(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("accuracy", "--help")
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: trol-bench accuracy {ACCURACY_EXAMPLES[0][0]} ")


def test_a_wrong_call_is_one_line(run: Run) -> None:
    assert refused(run) == (2, "the following arguments are required: engine.plan; see: trol-bench accuracy --help")


def test_an_engine_is_asked_and_the_table_printed(run: Run, engine: Path, questions: Path) -> None:
    code, out, err = run("accuracy", engine, "--set", questions)
    assert code == 0
    assert out.startswith("engine    fp32 on cpu, SHA-256 ")
    assert f"test set  version 1, SHA-256 {SET.sha256[:16]}, 6 questions, greedy" in out
    assert out.splitlines()[-1].startswith("overall")
    assert err.startswith("micro-internlm2-fp32.plan: 6 of 6 answered, ")


def test_as_json_it_prints_the_report_alone(run: Run, engine: Path, questions: Path) -> None:
    found = report(run, engine, "--set", questions)
    assert set(found) == {"schema", "set", "engine", "families", "closed", "overall", "against"}
    assert found["set"] == {"version": 1, "sha256": SET.sha256, "n": 6}
    assert found["overall"]["n"] == 6
    assert found["against"] is None


def test_of_the_released_set_the_first_questions_can_be_asked_alone(run: Run, engine: Path) -> None:
    code, out, _ = run("accuracy", engine, "--limit", 3)
    assert code == 0
    assert "the first 3 of the 1,000 questions" in out


def test_a_backend_that_does_not_run_here_is_refused_in_one_line(
    run: Run, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "describe_machine", lambda: recorded("no_gpu"))
    line = "tensorrt-rtx needs an NVIDIA GPU, none to be seen here; run the target cpu"
    assert refused(run, engine, "--backend", "tensorrt-rtx") == (1, line)


def test_threads_are_for_the_cpu(run: Run, engine: Path) -> None:
    line = "--threads is for the CPU, and --backend is cuda; leave one of them out"
    assert refused(run, engine, "--backend", "cuda", "--threads", 2) == (2, line)


def test_another_engine_is_asked_the_same_questions(
    run: Run, engine: Path, questions: Path, micro_engine: EngineOf
) -> None:
    same = report(run, engine, "--set", questions, "--against", engine)
    assert same["against"]["engine"] == same["engine"]
    assert (same["against"]["equal_share"], same["against"]["p_value"]) == (1.0, 1.0)
    other = report(run, engine, "--set", questions, "--against", micro_engine("phi3"))
    assert other["against"]["engine"]["sha256"] != other["engine"]["sha256"]
    assert other["against"]["equal_share"] < 1


def test_a_record_stands_in_for_the_engine_that_it_was_taken_from(
    run: Run, engine: Path, questions: Path, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    first = report(run, engine, "--set", questions, "-o", record)
    written = json.loads(record.read_text())
    assert {key: written[key] for key in first} == first
    assert len(written["answers"]) == 6
    against = report(run, engine, "--set", questions, "--against", record)["against"]
    assert against["engine"] == first["engine"]
    assert against["equal_share"] == 1.0


def test_what_cannot_be_done_is_refused_before_anything_is_asked(
    run: Run, engine: Path, questions: Path, tmp_path: Path, tiny_engine: EngineOf
) -> None:
    asked = (engine, "--set", questions)
    silent, missing = tiny_engine("internlm2"), tmp_path / "missing.plan"
    assert refused(run, silent) == (
        2,
        f"{silent}: has no tokenizer, so it cannot be asked; export it without --no-tokenizer",
    )
    assert refused(run, *asked, "--against", silent)[1].startswith(f"{silent}: has no tokenizer")
    assert refused(run, *asked, "--against", missing)[1].startswith(f"{missing}: ")
    assert refused(run, *asked, "--limit", 7) == (
        2,
        "--limit is 7, expected 1 to 6, the questions of the test set",
    )
    assert refused(run, *asked, "--limit", 0)[0] == 2
    assert refused(run, *asked, "-o", questions) == (2, f"{questions}: already exists; choose another name with -o")
    assert refused(run, *asked, "-o", tmp_path / "no" / "x")[1].endswith("does not exist; create it first")
    assert refused(run, *asked, "--threads", 0) == (2, "threads is 0, expected a whole number, 1 or more")
    assert refused(run, engine, "--set", missing)[0] == 1


def test_a_second_engine_that_cannot_be_asked_is_refused_before_the_first_is(
    run: Run, engine: Path, questions: Path, micro_engine: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = micro_engine("phi3")
    monkeypatch.setattr(accuracy, "MOST_NEW_TOKENS", 1000)  # more than the engines hold
    code, line = refused(run, engine, "--set", questions, "--against", other)
    assert code == 1
    assert line.startswith(f"{other}: holds ")


def test_a_second_engine_that_fails_does_not_cost_the_answers_of_the_first(
    run: Run, engine: Path, questions: Path, tmp_path: Path, micro_engine: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter([accuracy.ask_engine])

    def failing(*arguments: Any) -> Any:
        ask = next(asked, None)
        if ask is None:
            raise TrolError("the logits are no numbers")
        return ask(*arguments)

    monkeypatch.setattr(accuracy, "ask_engine", failing)
    record = tmp_path / "record.json"
    code, out, err = run("accuracy", engine, "--set", questions, "--against", micro_engine("phi3"), "-o", record)
    assert (code, err.splitlines()[-1]) == (1, "trol-bench: the logits are no numbers")
    assert "overall" in out
    assert json.loads(record.read_text())["against"] is None


def test_a_record_of_another_test_set_is_refused(run: Run, engine: Path, questions: Path, tmp_path: Path) -> None:
    record, others = tmp_path / "record.json", tmp_path / "others.zip"
    report(run, engine, "--set", questions, "-o", record)
    write_question_set(others, small_question_set(seed=9))
    code, line = refused(run, engine, "--set", others, "--against", record)
    assert code == 1
    assert line.startswith(f"{record}: a test set of another version than the record: this one is version 1 ")


def test_an_interrupted_run_leaves_no_record(
    run: Run, engine: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(accuracy, "ask_engine", interrupted)
    assert run("accuracy", engine, "--set", questions, "-o", tmp_path / "record.json")[0] == 130
    assert sorted(tmp_path.iterdir()) == before


def test_the_record_is_written_even_where_nobody_reads_the_report_to_its_end(
    run: Run, engine: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(bench_command_line, "print", closed, raising=False)
    with pytest.raises(BrokenPipeError):
        main(["accuracy", str(engine), "--set", str(questions), "-o", str(tmp_path / "record.json")])
    assert "answers" in json.loads((tmp_path / "record.json").read_text())


def test_the_report_is_printed_even_where_the_disk_has_no_room_for_the_record(
    run: Run, engine: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: AtomicFile, data: bytes) -> None:
        raise TrolError(f"{self.path}: disk full")

    monkeypatch.setattr(AtomicFile, "write", full)
    code, out, err = run("accuracy", engine, "--set", questions, "-o", tmp_path / "record.json")
    assert code == 1
    assert "overall" in out
    assert err.splitlines()[-1] == f"trol-bench: {tmp_path / 'record.json'}: disk full"
    assert [path.name for path in tmp_path.iterdir()] == ["questions.zip"]
