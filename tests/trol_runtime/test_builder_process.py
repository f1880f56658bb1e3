"""A builder runs in a process of its own: what it says comes back, and where it fails its line is the error."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trol_runtime.builder_process import run_builder
from trol_runtime.errors import TrolError
from trol_runtime.plan_build import BUILDER


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module `builder`, to be written."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "builder.py"


def test_what_it_says_comes_back_and_progress_goes_to_stderr(module: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module.write_text("import sys\nprint('halfway', file=sys.stderr)\nprint(' and '.join(sys.argv[1:]))")
    assert run_builder("builder", "one", "two words") == "one and two words\n"
    assert capfd.readouterr() == ("", "halfway\n")


def test_its_line_is_the_error_where_it_fails(module: Path) -> None:
    module.write_text("print('no GPU here; look for one')\nraise SystemExit(1)")
    with pytest.raises(TrolError, match=r"^no GPU here; look for one$"):
        run_builder("builder")


def test_one_that_dies_without_a_word_is_named(module: Path) -> None:
    module.write_text("raise SystemExit(3)")
    with pytest.raises(TrolError, match=r"^builder ended with 3$"):
        run_builder("builder")


def test_what_lies_in_the_current_folder_is_not_its_code(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / "json.py").write_text("print('anything')")
    (downloads / "runpy.py").write_text("print('anything')")
    module.write_text("import json\nprint(json.dumps('mine'))")
    monkeypatch.chdir(downloads)
    assert run_builder("builder") == '"mine"\n'


def test_it_ends_with_whoever_started_it(module: Path, tmp_path: Path) -> None:
    module.write_text("import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)")
    caller = "import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
    caller += "from trol_runtime.builder_process import run_builder; run_builder('builder')"
    with subprocess.Popen([sys.executable, "-c", caller], cwd=tmp_path, env=_with_sources(module)) as process:
        pid = tmp_path / "pid"
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.05)
        process.terminate()  # reaches the caller alone, unlike Ctrl-C in a terminal
        process.wait(30)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_it_does_not_read_what_is_meant_for_us(module: Path) -> None:
    module.write_text("import sys\nprint(len(sys.stdin.read()))")
    caller = "from trol_runtime.builder_process import run_builder; print(run_builder('builder'), input())"
    done = subprocess.run(
        [sys.executable, "-c", caller], input="a question", text=True, capture_output=True, env=_with_sources(module)
    )
    assert done.stdout == "0\n a question\n"


def _with_sources(module: Path) -> dict[str, str]:
    """The environment of a process that finds the module and this project."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(module.parent), *sys.path])}


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_the_real_builder_names_a_file_that_is_no_engine(tmp_path: Path, target: str) -> None:
    (tmp_path / "engine.plan").write_bytes(b"no engine")
    with pytest.raises(TrolError, match=str(tmp_path / "engine.plan")):
        run_builder(BUILDER, target, str(tmp_path / "engine.plan"))
