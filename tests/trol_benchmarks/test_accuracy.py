"""Asking an engine: answers as it gives them alone, each picture read once, and what cannot be asked is refused."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import EngineOf
from small_question_set import small_question_set
from trol_benchmarks import accuracy
from trol_benchmarks.accuracy import MOST_NEW_TOKENS, ask_engine, open_engine
from trol_benchmarks.world.test_set import AskedQuestion
from trol_runtime import TroL
from trol_runtime.bundle import Bundle
from trol_runtime.cpu_backend import CpuBackend
from trol_runtime.errors import EngineFileError, LimitError, UsageError

SET = small_question_set()


@pytest.mark.parametrize("arch", ["internlm2", "phi3"])
def test_an_answer_is_the_greedy_one_that_the_engine_gives_alone(micro_engine: EngineOf, arch: str) -> None:
    path = micro_engine(arch)  # type: ignore[arg-type]
    answers = ask_engine(open_engine(str(path)), SET, SET.questions)
    model = TroL.load(path)
    assert list(answers.of) == [question.id for question in SET.questions]
    for question in SET.questions:
        alone = model.start(question.question.text, [SET.pictures[question.picture]], max_new_tokens=MOST_NEW_TOKENS)
        text = "".join(alone)
        assert answers.of[question.id].text == text
        assert answers.of[question.id].token_ids == tuple(alone.token_ids)


def test_each_picture_is_read_once(micro_engine: EngineOf, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    encode = CpuBackend.encode

    def counted(self: CpuBackend, pixel_values: object) -> object:
        encoded.append(pixel_values)
        return encode(self, pixel_values)  # type: ignore[arg-type]

    monkeypatch.setattr(CpuBackend, "encode", counted)
    ask_engine(open_engine(str(micro_engine("internlm2"))), SET, SET.questions)
    assert len(encoded) == len(SET.pictures)


def test_the_engine_that_answered_is_named_by_its_file_and_its_tokenizer(micro_engine: EngineOf) -> None:
    path = micro_engine("internlm2", "fp16")
    bundle = open_engine(str(path))
    engine = ask_engine(bundle, SET, SET.questions[:1]).engine
    assert engine.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (engine.precision, engine.target) == ("fp16", "cpu")
    assert engine.tokenizer_sha256 == hashlib.sha256(bundle.read("tokenizer.json")).hexdigest()


def test_it_answers_on_the_backend_named_and_the_answers_say_which(
    micro_engine: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def on_a_gpu(bundle: Bundle, threads: int | None, backend: str) -> TroL:
        loaded.append(backend)
        return TroL(bundle, threads)

    monkeypatch.setattr(accuracy, "TroL", on_a_gpu)
    answers = ask_engine(open_engine(str(micro_engine("internlm2"))), SET, SET.questions[:1], backend="cuda")
    assert loaded == ["cuda"]
    assert answers.engine.target == "cuda"


def test_an_engine_that_is_replaced_while_it_is_loaded_is_refused(micro_engine: EngineOf, tmp_path: Path) -> None:
    path = tmp_path / "engine.plan"
    shutil.copyfile(micro_engine("internlm2"), path)
    bundle = open_engine(str(path))
    path.unlink()
    shutil.copyfile(micro_engine("internlm2", "fp16"), path)
    with pytest.raises(EngineFileError, match="changed since the file was opened; load it again"):
        ask_engine(bundle, SET, SET.questions)


def test_an_engine_that_is_gone_when_it_has_answered_was_named_before(micro_engine: EngineOf, tmp_path: Path) -> None:
    path = tmp_path / "engine.plan"
    shutil.copyfile(micro_engine("internlm2"), path)
    bundle = open_engine(str(path))

    class Vanishing(tuple[AskedQuestion, ...]):
        def __iter__(self) -> Iterator[AskedQuestion]:
            path.unlink()
            return super().__iter__()

    answers = ask_engine(bundle, SET, Vanishing(SET.questions[:1]))
    assert answers.engine.sha256 == hashlib.sha256(micro_engine("internlm2").read_bytes()).hexdigest()


def test_an_engine_without_room_for_an_answer_is_refused_rather_than_counted_as_wrong(
    micro_engine: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = micro_engine("internlm2")
    holds = open_engine(str(path)).manifest.limits.max_seq
    monkeypatch.setattr(accuracy, "MOST_NEW_TOKENS", holds)
    with pytest.raises(LimitError) as error:
        ask_engine(open_engine(str(path)), SET, SET.questions)
    pattern = (
        rf"{re.escape(str(path))}: holds {holds} tokens, of which a question leaves \d+ for its answer, expected "
        rf"{holds} or more; export it with a larger --max-seq"
    )
    assert re.fullmatch(pattern, str(error.value))


def test_progress_is_told_on_stderr(micro_engine: EngineOf, capsys: pytest.CaptureFixture[str]) -> None:
    path = micro_engine("internlm2")
    ask_engine(open_engine(str(path)), SET, SET.questions)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{path.name}: 6 of 6 answered, ")


def test_an_engine_without_a_tokenizer_is_refused(tiny_engine: EngineOf) -> None:
    path = tiny_engine("internlm2")
    with pytest.raises(UsageError) as error:
        open_engine(str(path))
    assert str(error.value) == f"{path}: has no tokenizer, so it cannot be asked; export it without --no-tokenizer"


def test_a_file_that_is_no_engine_is_refused(tmp_path: object) -> None:
    with pytest.raises(EngineFileError, match=r"no\.plan"):
        open_engine(f"{tmp_path}/no.plan")


def test_a_device_without_matplotlib_can_measure() -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from trol_benchmarks import accuracy, accuracy_record, accuracy_report\n"
        "from trol_benchmarks.world.test_set import read_question_set\n"
        "print(len(read_question_set().questions))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1000\n"
