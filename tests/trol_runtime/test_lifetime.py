"""Threads, processes, replaced files and the end of a program: what `docs/runtime.md` calls safe or refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import EngineOf
from trol_runtime.bundle import ARENA_ENTRY, Bundle
from trol_runtime.engine import TroL
from trol_runtime.errors import EngineFileError, UsageError
from trol_runtime.kv_cache import KVCache
from trol_runtime.manifest import Limits
from trol_runtime.session import Session

PICTURES = [Image.new("RGB", (40 + 8 * n, 32), (20 * n, 90, 200 - 20 * n)) for n in range(6)]
QUESTIONS = [f"What is in picture {n}?" for n in range(6)]


def ask(model: TroL, number: int) -> str:
    return model.generate(QUESTIONS[number], [PICTURES[number]], max_new_tokens=24)


def python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


# --- threads


def test_threads_that_share_an_engine_get_the_answers_each_would_get_alone(micro_engine: EngineOf) -> None:
    model = TroL.load(micro_engine("internlm2"))
    alone = [ask(model, number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda number: ask(model, number % 6), range(24)))
    assert together == alone * 4


def test_threads_with_sessions_of_their_own_do_not_mix(micro_engine: EngineOf) -> None:
    model = TroL.load(micro_engine("phi3"))
    prompts = [np.arange(3 + n, 60 + 7 * n)[None] for n in range(4)]

    def steps(prompt: np.ndarray, keep_prefix: bool) -> list[int]:
        session = model.new_session(keep_prefix=keep_prefix)
        ids = [int(session.prefill(prompt).argmax())]
        for _ in range(12):
            ids.append(int(session.decode(np.array(ids[-1:])).argmax()))
        return ids

    alone = [steps(prompt, False) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(steps, prompts * 3, [False] * 8 + [True] * 4))
    assert together == alone * 3


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda session: session.reset(), id="reset"),
        pytest.param(lambda session: session.encode(np.zeros((1, 3, 28, 28), np.float32)), id="encode"),
        pytest.param(lambda session: session.prefill(np.array([[7]])), id="prefill"),
        pytest.param(lambda session: session.extend(np.array([[7]])), id="extend"),
        pytest.param(lambda session: session.decode(np.array([7])), id="decode"),
        pytest.param(lambda session: session.repeat(2), id="repeat"),
        pytest.param(lambda session: session.reorder(np.array([0])), id="reorder"),
        pytest.param(lambda session: session.fork(), id="fork"),
        pytest.param(lambda session: session.drop_prefix(), id="drop_prefix"),
    ],
)
def test_a_session_refuses_a_second_thread_while_it_runs(
    micro_engine: EngineOf, call: Callable[[Session], object]
) -> None:
    """Two conversations in one cache would both be wrong, and neither would say so."""
    running, go_on = threading.Event(), threading.Event()

    class SlowBackend:
        def new_cache(self, keeps_second_pass: bool) -> KVCache:
            return KVCache(config.decoder, 64, keeps_second_pass)

        def prefill(self, *arguments: Any) -> np.ndarray:
            running.set()
            assert go_on.wait(60)
            return np.zeros((1, 5), np.float32)

    config = Bundle.open(micro_engine("internlm2")).manifest.model
    session = Session(SlowBackend(), config, Limits(64, 2))  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(session.prefill, np.array([[4, 5, 6]]))
        assert running.wait(60)
        with pytest.raises(UsageError) as refused:
            call(session)
        go_on.set()
        assert first.result().shape == (1, 5)
    assert str(refused.value) == (
        "the session is in use by another thread; give every thread a session of its own: new_session()"
    )


def test_a_stop_from_another_thread_ends_an_answer_behind_its_step(micro_engine: EngineOf) -> None:
    model = TroL.load(micro_engine("internlm2"))
    for _ in range(20):
        answer = model.start("What?", max_new_tokens=200)
        stopper = threading.Timer(0.003, answer.stop)
        stopper.start()
        text = "".join(answer)
        stopper.join()
        assert answer.finish_reason in ("stop", "eos", "length")
        assert answer.text == text
        assert len(answer.token_ids) <= 200


# --- the engine file


def test_a_loaded_engine_goes_on_with_the_file_it_was_loaded_from(micro_engine: EngineOf, tmp_path: Path) -> None:
    """As `trol-export --overwrite` replaces it: by another file of the same name."""
    path = tmp_path / "engine.plan"
    shutil.copy(micro_engine("internlm2"), path)
    model = TroL.load(path)
    other = tmp_path / "other.plan"
    shutil.copy(micro_engine("phi3"), other)
    other.replace(path)
    expected = ask(TroL.load(micro_engine("internlm2")), 1)
    assert ask(model, 1) == expected
    path.unlink()
    assert ask(model, 1) == expected


def test_an_engine_replaced_while_it_is_loaded_is_refused(micro_engine: EngineOf, tmp_path: Path) -> None:
    """Its graphs may be those of the new file too, so only the file itself tells that the weights are others."""
    path = tmp_path / "engine.plan"
    shutil.copy(micro_engine("internlm2"), path)
    bundle = Bundle.open(path)
    replacement = bytearray(path.read_bytes())
    replacement[bundle.arena_offset + bundle.entries[ARENA_ENTRY].size // 2] ^= 1
    (tmp_path / "new.plan").write_bytes(replacement)
    (tmp_path / "new.plan").replace(path)
    with pytest.raises(EngineFileError) as refused:
        TroL(bundle)
    assert str(refused.value) == f"{path}: replaced while it was being loaded; load it again"


# --- processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_says_to_load_the_engine_in_the_child_and_can(micro_engine: EngineOf) -> None:
    """ONNX Runtime's threads do not come along: without the check the child would wait for ever."""
    script = """
        import os, sys, warnings
        import numpy as np
        from trol_runtime import TroL
        from trol_runtime.errors import TrolError
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is the point here
        model, prompt = TroL.load(sys.argv[1]), np.array([[5, 6, 7]])
        expected = model.generate_ids(prompt, max_new_tokens=4)
        child = os.fork()
        if child == 0:
            pixels = np.zeros((1, 3, 16, 16), np.float32)
            for call in (lambda: model.generate_ids(prompt), lambda: model.session.encode(pixels)):
                try:
                    call()
                except TrolError as error:
                    print(str(error).replace(str(os.getppid()), "PARENT").replace(str(os.getpid()), "CHILD"))
            print((TroL.load(sys.argv[1]).generate_ids(prompt, max_new_tokens=4) == expected).all(), flush=True)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print((model.generate_ids(prompt, max_new_tokens=4) == expected).all(), status)
    """
    done = python(script, micro_engine("internlm2"))
    refusal = (
        "the engine was loaded in process PARENT and is used in its fork CHILD; load it after forking, or start "
        "processes with multiprocessing's spawn"
    )
    assert done.stdout.splitlines() == [refusal, refusal, "True", "True 0"], done.stderr


@pytest.mark.parametrize("ending", ["an answer half read", "a thread that goes on", "a model in a cycle"])
def test_a_program_ends_quietly_in_the_middle_of_work(micro_engine: EngineOf, ending: str) -> None:
    script = """
        import sys, threading
        from trol_runtime import TroL
        model = TroL.load(sys.argv[1])
        if sys.argv[2] == "an answer half read":
            pieces = model.generate("What?", stream=True, max_new_tokens=300)
            next(pieces)
        elif sys.argv[2] == "a thread that goes on":
            begun = threading.Event()
            def talk():
                while True:
                    model.generate("What?", max_new_tokens=8)
                    begun.set()
            threading.Thread(target=talk, daemon=True).start()
            begun.wait()
        else:
            model.cycle = [model, model.new_session(keep_prefix=True)]
        print("end", flush=True)
    """
    done = python(script, micro_engine("internlm2"), ending)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


# --- memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("keep_prefix", [False, True])
def test_a_run_without_memory_is_one_line_and_the_session_goes_on(tiny_engine: EngineOf, keep_prefix: bool) -> None:
    """3900 tokens take hundreds of MiB, in the cache or while they run; onnxruntime itself would write to stderr."""
    script = """
        import resource, sys
        import numpy as np
        from trol_runtime import TroL
        from trol_runtime.errors import LimitError
        session = TroL.load(sys.argv[1], threads=1).new_session(keep_prefix=sys.argv[2] == "True")
        ids = np.array([[4, 5, 6]])
        expected = session.prefill(ids)
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2**20 * int(sys.argv[3]), unlimited[1]))
        try:
            session.prefill(np.full((1, 3900), 7))
        except LimitError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        print(session.lengths.tolist(), np.array_equal(session.prefill(ids), expected))
    """
    of_a_run = (
        "there is not enough memory for the activations of this run; free some, send a shorter prompt or fewer "
        "pictures, or read prompts in parts: prefill_chunk=256, --prefill-chunk 256"
    )
    for mib, refusal in ((2, "the KV cache of 1 row(s) of "), (60, of_a_run)):
        done = python(script, tiny_engine("internlm2"), keep_prefix, mib)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0].startswith(refusal)
        assert lines[1:] == ["[] True"]


MANY_GENERATIONS = """
    import gc, sys
    import numpy as np
    from PIL import Image
    from trol_runtime import TroL

    def anonymous_kib():
        gc.collect()
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        return int(status["RssAnon"].split()[0])

    model = TroL.load(sys.argv[1], threads=1)
    picture = Image.new("RGB", (60, 40), (200, 30, 30))
    kept = model.new_session(keep_prefix=True)

    def generate(number):
        way = number % 5
        if way == 0:
            model.generate("What?", [picture], max_new_tokens=8)
        elif way == 1:
            model.generate(f"What is {number}?", [picture], max_new_tokens=4, session=kept)
        elif way == 2:
            model.generate("What?", max_new_tokens=4, num_beams=3)
        elif way == 3:
            model.generate("What?", max_new_tokens=8, temperature=1.0, seed=number)
        else:
            chat = model.chat(max_new_tokens=4)
            "".join(chat.ask("What?", [picture]))
            "".join(chat.fork().ask("And?"))

    taken = []
    for window in range(12):
        for number in range(int(sys.argv[2])):
            generate(number)
        taken.append(anonymous_kib())
    # The allocator breathes by some MiB; its lowest points tell what stays. The first windows warm it up.
    print(min(taken[7:]) - min(taken[2:7]))
"""


def grown_kib(engine: Path, per_window: int) -> int:
    """How much anonymous memory stays over ten windows of generations, after two to warm up."""
    done = python(MANY_GENERATIONS, engine, per_window)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_generations_of_all_kinds_take_no_memory(micro_engine: EngineOf) -> None:
    # A session's cache takes 256 KiB or more here: one that stays per generation would be 12 MiB in half the windows.
    assert grown_kib(micro_engine("internlm2"), 10) < 4096


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["internlm2", "phi3"])
def test_a_thousand_generations_of_all_kinds_take_no_memory(micro_engine: EngineOf, arch: Any) -> None:
    # The lowest points differ by up to 2 MiB without a leak. 4 MiB over the 500 generations of half the windows are
    # 8 KiB each; the smallest cache of a session takes 64 KiB here.
    assert grown_kib(micro_engine(arch), 100) < 4096
