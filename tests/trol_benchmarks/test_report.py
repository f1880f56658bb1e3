from __future__ import annotations

import json
from pathlib import Path

import pytest

from trol_benchmarks import memory
from trol_benchmarks.report import gib, report, table
from trol_runtime.errors import UsageError


def test_columns_line_up_and_a_row_may_end_early() -> None:
    rows = [("medians", "engine", "baseline"), ("prefill", "1.00 s", "12.00 s"), ("resident", "")]
    assert table(rows).splitlines() == [
        "medians   engine  baseline",
        "prefill   1.00 s   12.00 s",
        "resident",
    ]


def test_the_record_says_what_was_measured_where_and_with_which_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["memory", "engine.plan", "--threads", "2"])
    report("memory", {"ratio": 1.01}, [("ratio", "1.01")], tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    assert capsys.readouterr().out == "ratio  1.01\n"
    assert record["benchmark"] == "memory"
    assert record["arguments"] == ["engine.plan", "--threads", "2"]
    assert record["machine"]["cores"] >= 1
    assert record["ratio"] == 1.01


def test_without_a_file_only_the_table_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report("memory", {}, [("ratio", "1.01")], None)
    assert capsys.readouterr().out == "ratio  1.01\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("folder", "{0}/folder is a folder; name a file"),
        ("missing/record.json", "{0}/missing/record.json: folder {0}/missing does not exist; create it first"),
    ],
)
def test_a_record_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError) as caught:
        memory.main([str(tmp_path / "no.plan"), "--json", str(tmp_path / file)])
    assert str(caught.value) == f"argument --json: {message.format(tmp_path)}; see: memory --help"


def test_a_record_without_the_right_to_write_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UsageError, match=r"record\.json cannot be written; name another file; see: memory --help$"):
        memory.main(["no.plan", "--json", str(tmp_path / "record.json")])
    assert not list(tmp_path.iterdir())


def test_memory_is_shown_in_binary_units() -> None:
    assert gib(3 * 2**29) == "1.50 GiB"
