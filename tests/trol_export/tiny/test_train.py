"""The command that trains: what it leaves, what interrupts it, and what it refuses, on a small model and few steps."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from short_recipe import short_recipe
from trol_export.checkpoint import Checkpoint
from trol_export.checkpoint_check import check_checkpoint
from trol_export.tiny import freed_memory, lessons, recipe, train, training_run
from trol_export.tiny.lessons import Lessons
from trol_export.tiny.recipe import model_config
from trol_export.tiny.training import CLOSED_GATE_BIAS, Training
from trol_runtime.atomic_file import AtomicFile
from trol_runtime.command import run_command
from trol_runtime.model_config import ModelConfig

NAME = "trol_export.tiny.train"
SHORT = short_recipe("tower", "everything", steps=2, batch=1)
STEPS_TAKEN = [["tower", 0], ["tower", 1], ["everything", 0], ["everything", 1]]
STEPS = len(STEPS_TAKEN)
TESTS = Path(__file__).parents[2]


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    stderr: str


Train = Callable[..., Ended]
ForOnce = Callable[[], AbstractContextManager[pytest.MonkeyPatch]]
Weights = dict[str, torch.Tensor]


def small_config(vocab_size: int) -> ModelConfig:
    config = model_config(vocab_size)
    tower = replace(config.vision, hidden_size=16, intermediate_size=24, layers=1, heads=2)
    decoder = replace(config.decoder, hidden_size=32, intermediate_size=48, layers=1, heads=4, lora_rank=3)
    return replace(config, vision=tower, decoder=decoder)


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "RELEASED", SHORT)
    monkeypatch.setattr(lessons, "model_config", small_config)
    monkeypatch.setattr(training_run, "_STEPS_BETWEEN_LINES", 1)
    monkeypatch.setattr(training_run, "_VALIDATION_PICTURES", 2)
    # It would hold for all tests that this process still runs.
    monkeypatch.setattr(freed_memory, "keep_freed_memory", lambda: True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: Path) -> Train:
    """Train in `folder` with these options besides."""
    threads = torch.get_num_threads()

    def call(*arguments: str | Path) -> Ended:
        capsys.readouterr()
        options = ["--folder", folder, "--no-compile", "--threads", threads, *arguments]
        code = run_command(NAME, train.main, [str(option) for option in options])
        stdout, stderr = capsys.readouterr()
        assert stdout == ""
        return Ended(code, stderr)

    return call


@pytest.fixture(scope="module")
def uninterrupted() -> Weights:
    """The weights at the end of a run that nothing interrupted, by checkpoint key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lessons, "model_config", small_config)
        training = Training(SHORT)
        while not training.done:
            training.step()
        return {name: weight.clone() for name, weight in training.released_weights().items()}


def require_released(folder: Path, weights: Weights) -> None:
    """The checkpoint in the folder holds these weights, rounded to fp16."""
    written = Checkpoint.open(folder / "checkpoint")
    for name, weight in weights.items():
        assert torch.from_numpy(written.numpy(name).copy()).equal(weight.half()), name


def logged(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "curves.json").read_text())


def steps_saved(folder: Path) -> int:
    """Steps in the state to go on from, 0 if there is none."""
    return len(steps_taken(folder))


def steps_taken(folder: Path) -> list[list[Any]]:
    """Phase and number of every step in that state."""
    path = folder / "training.pt"
    steps = torch.load(path, weights_only=True)["log"]["steps"] if path.exists() else []
    return [[step["phase"], step["step"]] for step in steps]


def require_logged(folder: Path, taken: list[list[Any]]) -> None:
    """State and curves have these steps, in this order, and no others."""
    assert steps_taken(folder) == taken
    counted = Counter(phase for phase, _ in taken)
    assert {phase: len(losses) for phase, losses in logged(folder)["loss"].items()} == counted


# A run


def test_a_run_ends_with_a_checkpoint_that_can_be_exported(run: Train, folder: Path, uninterrupted: Weights) -> None:
    ended = run()
    assert ended.code == 0
    assert {path.name for path in folder.iterdir()} == {"training.pt", "curves.json", "curves.png", "checkpoint"}
    assert check_checkpoint(folder / "checkpoint").deviations == []
    require_released(folder, uninterrupted)


def test_it_says_how_far_it_is_what_it_knows_and_what_it_wrote(run: Train, folder: Path) -> None:
    lines = run().stderr.splitlines()
    expected = [
        *(rf"tower +step +{step}  loss \d+\.\d{{4}}  \d+\.\d min" for step in (1, 2)),
        *(rf"everything +step +{step}  loss \d+\.\d{{4}}  \d+\.\d min" for step in (1, 2)),
        r"(\w+ [01]\.\d{3}  )*\w+ [01]\.\d{3}",
        rf"wrote {re.escape(str(folder / 'checkpoint'))}",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_every_step_is_logged_and_accuracy_at_the_end(run: Train, folder: Path) -> None:
    run()
    log = logged(folder)
    require_logged(folder, STEPS_TAKEN)
    assert [point["steps"] for point in log["validation"]] == [STEPS]
    assert sum(log["validation"][0]["n"].values()) > 0


def test_accuracy_is_measured_now_and_then_as_soon_as_pictures_are_asked_about(
    run: Train, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "_STEPS_BETWEEN_VALIDATIONS", 2)
    monkeypatch.setattr(recipe, "RELEASED", short_recipe("tower", "decoder", "everything", steps=3, batch=1))
    run()
    assert [point["steps"] for point in logged(folder)["validation"]] == [5, 8, 9]


def test_another_seed_is_another_run(run: Train, folder: Path, uninterrupted: Weights) -> None:
    assert run("--seed", "1").code == 0
    name = "output.weight"
    written = torch.from_numpy(Checkpoint.open(folder / "checkpoint").numpy(name).copy())
    assert not written.equal(uninterrupted[name].half())


def test_without_traversal_the_checkpoint_has_a_closed_gate(run: Train, folder: Path) -> None:
    assert run("--no-traversal").code == 0
    written = Checkpoint.open(folder / "checkpoint")
    assert not written.numpy("trol_gating.weight").any()
    assert written.numpy("trol_gating.bias").tolist() == [CLOSED_GATE_BIAS]


# Interrupted, and going on


@pytest.fixture
def for_once(monkeypatch: pytest.MonkeyPatch) -> ForOnce:
    """Changes that end with the `with` block, so that the next command finds nothing in its way."""
    return monkeypatch.context


def clock(*minutes: float) -> SimpleNamespace:
    """A `time` that shows these times, one after the other."""
    left = iter(minutes)
    return SimpleNamespace(monotonic=lambda: 60 * next(left))


def test_after_the_minutes_given_it_stops_and_the_same_command_goes_on(
    run: Train, folder: Path, for_once: ForOnce, uninterrupted: Weights
) -> None:
    with for_once() as patch:
        patch.setattr(training_run, "_STEPS_BETWEEN_LINES", 100)
        patch.setattr(training_run, "time", clock(0, 0.5, 1.0, 1.6))  # at the beginning and after every step
        assert run("--minutes", "1.5") == (0, "stopped after 1.5 minutes; the same command goes on\n")
    assert {path.name for path in folder.iterdir()} == {"training.pt", "curves.json", "curves.png"}
    require_logged(folder, STEPS_TAKEN[:3])

    ended = run()
    assert ended.code == 0
    assert ended.stderr.startswith(f"going on in {folder} after 3 steps\neverything ")
    require_logged(folder, STEPS_TAKEN)
    require_released(folder, uninterrupted)


def interrupting(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function, behind whose n-th call somebody presses Ctrl-C."""
    calls = itertools.count(1)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        if next(calls) == call:
            raise KeyboardInterrupt
        return result

    return interrupted


INTERRUPTIONS = [
    pytest.param(Lessons, "prepare", 1, 0, id="in the first step"),
    pytest.param(Lessons, "prepare", 4, 3, id="in the last step"),
    pytest.param(torch.optim.AdamW, "step", 3, 2, id="in the middle of a step, its weights changed already"),
    pytest.param(Training, "step", 3, 2, id="between a step and its log"),
    pytest.param(Training, "state", 3, 3, id="while the state is saved"),
    pytest.param(AtomicFile, "write", 3, 3, id="while it is written"),
    pytest.param(Training, "accuracy", 1, 4, id="while accuracy is measured"),
]


@pytest.mark.parametrize(("part", "function", "call", "steps"), INTERRUPTIONS)
def test_whenever_it_is_interrupted_it_goes_on_to_the_same_bits(
    run: Train,
    folder: Path,
    for_once: ForOnce,
    uninterrupted: Weights,
    part: type,
    function: str,
    call: int,
    steps: int,
) -> None:
    with for_once() as patch:
        patch.setattr(training_run, "_STEPS_BETWEEN_SAVES", 1)
        patch.setattr(part, function, interrupting(getattr(part, function), call))
        ended = run()
    assert ended.code == 130
    assert ended.stderr.splitlines()[-1] == f"{NAME}: interrupted"
    assert steps_saved(folder) == steps
    assert [path.name for path in folder.glob("*.partial")] == []

    ended = run()
    assert ended.code == 0
    assert ended.stderr.startswith(f"going on in {folder} after {steps} steps\n" if steps else "tower ")
    require_released(folder, uninterrupted)
    log = logged(folder)
    require_logged(folder, STEPS_TAKEN)
    assert [point["steps"] for point in log["validation"]] == [STEPS]


def signalled(number: int) -> Callable[..., Any]:
    """`Lessons.prepare`, in the middle of a step, with a signal."""
    prepare = Lessons.prepare

    def prepare_signalled(*arguments: Any) -> Any:
        signal.raise_signal(number)
        return prepare(*arguments)

    return prepare_signalled


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_in_the_middle_of_a_step_waits_for_its_end(
    run: Train, folder: Path, for_once: ForOnce, number: int
) -> None:
    with for_once() as patch:
        patch.setattr(Lessons, "prepare", signalled(number))
        assert run().code == 130
    assert steps_saved(folder) == 1


def test_ctrl_c_that_is_ignored_stays_ignored(run: Train, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lessons, "prepare", signalled(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for its jobs in the background
    try:
        assert run().code == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps_saved(folder) == STEPS


def test_ctrl_c_that_also_ends_the_compilers_of_a_step_is_one_line(run: Train, folder: Path, for_once: ForOnce) -> None:
    def broken(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("C++ compile error")

    with for_once() as patch:
        patch.setattr(Lessons, "prepare", broken)
        assert run() == (130, f"{NAME}: interrupted\n")
    assert steps_saved(folder) == 0


COMMAND = f"""
from trol_export.tiny import lessons, recipe, train, training_run
from short_recipe import short_recipe
from trol_runtime.command import run_script

recipe.RELEASED = short_recipe("tower", steps=1000, batch=1)
training_run._STEPS_BETWEEN_LINES = 1
run_script("{NAME}", train.main)
"""


def test_ctrl_c_at_a_terminal_is_one_line(folder: Path) -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "--folder", folder, "--no-compile", "--threads", "1"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert command.stderr is not None
    first = command.stderr.readline()
    os.killpg(command.pid, signal.SIGINT)  # a terminal signals every process of the command
    _, rest = command.communicate(timeout=60)
    assert command.returncode == 130
    lines = [line for line in (first + rest).splitlines() if not line.startswith("tower ")]
    assert lines == [f"{NAME}: interrupted"]


def test_a_finished_run_has_nothing_left_to_train_and_writes_its_checkpoint_again(
    run: Train, folder: Path, uninterrupted: Weights
) -> None:
    run()
    shutil.rmtree(folder / "checkpoint")
    ended = run()
    assert ended == (0, f"going on in {folder} after {STEPS} steps\nwrote {folder / 'checkpoint'}\n")
    require_released(folder, uninterrupted)


def test_the_curves_say_what_run_they_are_of_and_what_it_took(run: Train, folder: Path) -> None:
    run()
    log = logged(folder)
    assert log["recipe"]["seed"] == 0
    assert [phase["name"] for phase in log["recipe"]["phases"]] == ["tower", "everything"]
    assert log["conditions"]["compiled"] is False
    assert log["conditions"]["torch"] == torch.__version__
    assert log["seconds"] > 0


def test_going_on_under_other_conditions_is_said(run: Train, folder: Path) -> None:
    run("--minutes", "1e-9")
    threads = torch.get_num_threads()
    ended = run("--threads", str(threads + 1))
    torch.set_num_threads(threads)
    assert ended.code == 0
    assert ended.stderr.splitlines()[1] == (
        f"until here with threads {threads}, from here with {threads + 1}: last bits may differ"
    )
    log = logged(folder)
    assert log["conditions"]["threads"] == threads + 1
    assert [(before["until"], before["threads"]) for before in log["earlier_conditions"]] == [(1, threads)]


@pytest.mark.slow  # torch compiles a minute
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_compiled_layers_give_the_same_bits_in_every_run_and_after_an_interruption(
    folder: Path, for_once: ForOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str) -> Weights:
        train.main(["--folder", str(folder / name), "--threads", "2"])
        checkpoint = Checkpoint.open(folder / name / "checkpoint")
        return {name: checkpoint.torch(name) for name in checkpoint.tensors}

    threads = torch.get_num_threads()
    once, again = trained("once"), trained("again")
    with for_once() as patch:
        patch.setattr(Lessons, "prepare", interrupting(Lessons.prepare, 4))
        with pytest.raises(KeyboardInterrupt):
            trained("interrupted")
    after = trained("interrupted")
    torch.set_num_threads(threads)
    for name, weight in once.items():
        assert weight.equal(again[name]), name
        assert weight.equal(after[name]), name


# Bad input


@pytest.mark.parametrize(
    ("cxx", "found"),
    [
        (None, "there is no C++ compiler 'g++'"),
        ("/nowhere/g++", "there is no C++ compiler '/nowhere/g++', which CXX names"),
        ("g++ -O2", "there is no C++ compiler 'g++ -O2', which CXX names"),  # torch takes it for one name, too
    ],
)
def test_without_a_compiler_it_says_how_to_do_without(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cxx: str | None,
    found: str,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx)
    assert run_command(NAME, train.main, ["--folder", str(folder)]) == 1
    assert capsys.readouterr().err == (
        f"{NAME}: {found}; by a compiler torch fuses operations: install what is missing, or train without, more "
        "slowly: --no-compile\n"
    )
    assert not folder.exists()


def test_a_compiler_without_pythons_headers_is_not_enough(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(train.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(train.sysconfig, "get_path", lambda _: str(tmp_path))
    assert run_command(NAME, train.main, ["--folder", str(folder)]) == 1
    assert capsys.readouterr().err.startswith(
        f"{NAME}: the C++ compiler needs {tmp_path / 'Python.h'}, which is not there; "
    )


def test_without_matplotlib_it_says_what_to_install(run: Train, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "NEEDED", ("torch", "matplotlib_that_is_not_there"))
    assert run() == (
        1,
        f"{NAME}: training needs matplotlib_that_is_not_there, not installed here; "
        "install with: pip install 'trol-export[export,bench]'\n",
    )
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes is 0, expected more than 0"),
        (["--minutes", "-1.5"], "--minutes is -1.5, expected more than 0"),
        (["--minutes", "nan"], "--minutes is nan, expected more than 0"),
        (["--minutes", "soon"], "argument --minutes: invalid float value: 'soon'; see: python -m {name} --help"),
        (["--threads", "0"], "--threads is 0, expected 1 to 1024"),
        (["--threads", "two"], "argument --threads: invalid int value: 'two'; see: python -m {name} --help"),
        (["--seed", "-1"], "--seed is -1, expected 0 to 4294967295"),
        (["--seed", "1.5"], "argument --seed: invalid int value: '1.5'; see: python -m {name} --help"),
        (["--traversal"], "unrecognized arguments: --traversal; see: python -m {name} --help"),
    ],
)
def test_options_that_make_no_sense_are_one_line(run: Train, folder: Path, arguments: list[str], message: str) -> None:
    assert run(*arguments) == (2, f"{NAME}: {message.format(name=NAME)}\n")
    assert not folder.exists()


@pytest.mark.parametrize("option", ["--seed", "--threads"])
def test_numbers_too_large_for_torch_are_one_line(run: Train, option: str) -> None:
    ended = run(option, str(2**70))
    assert ended.code == 2
    assert ended.stderr.startswith(f"{NAME}: {option} is {2**70}, expected ")


@pytest.mark.parametrize("inside", [False, True])
def test_a_folder_that_is_a_file_is_refused(run: Train, folder: Path, inside: bool) -> None:
    folder.write_text("precious")
    chosen = folder / "run" if inside else folder
    reason = "Not a directory" if inside else "File exists"
    assert run("--folder", chosen) == (2, f"{NAME}: {chosen} cannot be made ({reason}); choose another --folder\n")
    assert folder.read_text() == "precious"


def test_a_checkpoint_folder_that_holds_something_else_is_refused_before_training(run: Train, folder: Path) -> None:
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "notes.txt").write_text("precious")
    assert run() == (
        2,
        f"{NAME}: {folder / 'checkpoint'} holds notes.txt, which is no part of a checkpoint: choose another folder\n",
    )
    assert [path.name for path in folder.iterdir()] == ["checkpoint"]


class Hostile:
    """What a pickle should never run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a state of training ran a program",)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


GARBAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("precious"),
    "cut off": cut_off,
    "of something else": lambda path: torch.save({"weights": torch.ones(3)}, path),
    "no mapping": lambda path: torch.save([1, 2, 3], path),
    "a program": lambda path: path.write_bytes(pickle.dumps(Hostile())),
    "a folder": make_a_folder,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_state_that_cannot_be_read_is_one_line_and_stays(
    run: Train, folder: Path, garbage: Callable[[Path], object]
) -> None:
    run()
    path = folder / "training.pt"
    garbage(path)
    before = path.read_bytes() if path.is_file() else None
    ended = run()
    assert ended.code == 1
    pattern = (
        rf"{re.escape(NAME)}: {re.escape(str(path))} cannot be read \(\w+\), expected a state of a training run: "
        r"delete it to begin anew, or choose another --folder\n"
    )
    assert re.fullmatch(pattern, ended.stderr), ended.stderr
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("damage", ["lacks its weights", "of another model"])
def test_a_state_that_does_not_fit_is_one_line(run: Train, folder: Path, damage: str) -> None:
    run()
    path = folder / "training.pt"
    saved = torch.load(path, weights_only=True)
    if damage == "lacks its weights":
        del saved["training"]
    else:
        saved["training"]["model"]["trol.output.weight"] = torch.ones(3, 3)
    torch.save(saved, path)
    ended = run()
    assert ended.code == 1
    assert ended.stderr.startswith(f"{NAME}: {path} cannot be read (")


@pytest.mark.parametrize(
    ("options", "other"), [(["--seed", "1"], "seed"), (["--no-traversal"], "traversal"), ([], "phases")]
)
def test_a_state_of_other_options_is_left_alone(
    run: Train, folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], other: str
) -> None:
    run()
    before = (folder / "training.pt").read_bytes()
    how = "call with that run's options"
    if not options:
        monkeypatch.setattr(recipe, "RELEASED", replace(SHORT, phases=SHORT.phases[1:]))
        how = "take the version that began it"
    assert run(*options) == (
        2,
        f"{NAME}: {folder / 'training.pt'} is of a run with other {other}: "
        f"{how} to go on, or choose another --folder\n",
    )
    assert (folder / "training.pt").read_bytes() == before


# A full disk


def test_a_disk_that_fills_up_leaves_the_state_before_and_the_run_goes_on(
    run: Train, folder: Path, for_once: ForOnce, uninterrupted: Weights
) -> None:
    synced = itertools.count(1)

    def full(descriptor: int) -> None:
        if next(synced) > 2:  # the first state and its folder
            raise OSError(errno.ENOSPC, "No space left on device")

    with for_once() as patch:
        patch.setattr(training_run, "_STEPS_BETWEEN_SAVES", 1)
        patch.setattr(os, "fsync", full)
        ended = run()
    assert ended.code == 1
    path = re.escape(str(folder / "training.pt"))
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("tower ")]
    assert re.match(rf"{re.escape(NAME)}: {path}: disk full after [\d,]+ bytes of [\d,]+ needed; ", line)
    assert [path.name for path in folder.iterdir()] == ["training.pt"]
    assert steps_saved(folder) == 1

    assert run().code == 0
    require_released(folder, uninterrupted)


def test_too_little_room_is_noticed_before_anything_is_written(
    run: Train, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "_STEPS_BETWEEN_SAVES", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1234))
    ended = run()
    assert ended.code == 1
    path = re.escape(str(folder / "training.pt"))
    assert re.match(
        rf"{re.escape(NAME)}: {path}: needs [\d,]+ bytes, its disk has 1,234 free; ", ended.stderr.splitlines()[-1]
    )
    assert list(folder.iterdir()) == []
