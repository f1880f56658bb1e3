"""TroL, the Python interface: text in and out, pictures from anywhere, engine files wherever they lie."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import MICRO_MAX_SEQ
from labelled_prompts import answerer_of
from small_prompts import assert_close, gradient, picture, picture_file, prompt_ids, text_ids
from trol_graphs.eager import EagerSession
from trol_runtime import TroL, memory_need
from trol_runtime.errors import EngineFileError, LimitError, MissingExtraError, PictureError, UsageError
from trol_runtime.generation import DEFAULT_MAX_NEW_TOKENS
from trol_runtime.generation_config import GenerationConfig

QUESTION = "What is in the picture?"


def answer_and_ids(model: TroL, *arguments: Any, **options: Any) -> tuple[str, list[int]]:
    made = model.start(*arguments, **{"max_new_tokens": 12, **options})
    return "".join(made), made.token_ids


# --- text


def test_an_answer_streams_in_pieces_that_together_are_the_whole(model: TroL) -> None:
    whole = model.generate(QUESTION, [picture(30, 20)], max_new_tokens=40)
    pieces = list(model.generate(QUESTION, [picture(30, 20)], max_new_tokens=40, stream=True))
    assert "".join(pieces) == whole
    assert len(pieces) > 5
    assert all(pieces)


def test_the_ids_of_an_answer_are_the_eager_models(model: TroL, eager: EagerSession) -> None:
    pictures = [picture(30, 20), picture(20, 30)]
    made = model.start("<image> or <image>?", pictures, max_new_tokens=12)
    text = "".join(made)
    tokenizer = answerer_of(model)._tokenizer
    crops = model.crops_per_image(pictures)
    ids = tokenizer.encode_prompt("<image> or <image>?", crops, 16)
    expected = eager.greedy(ids, eager.encode(model.preprocess(pictures)), 12)[0]
    assert made.token_ids == expected.tolist()
    assert text == tokenizer.decode(expected)
    assert (made.prompt_tokens, made.image_tokens) == (ids.shape[1], 16 * sum(crops))


def test_everything_that_can_be_wrong_is_raised_before_the_first_piece(model: TroL) -> None:
    """Not when the caller iterates, perhaps elsewhere."""
    with pytest.raises(UsageError):
        model.generate("<image>", [picture(9, 9), picture(9, 9)], stream=True)
    with pytest.raises(PictureError):
        model.generate("x", ["no.png"], stream=True)


def test_an_answer_is_not_disturbed_by_another_one_in_between(model: TroL) -> None:
    undisturbed = "".join(model.generate("hello", max_new_tokens=20, stream=True))
    pieces = model.generate("hello", max_new_tokens=20, stream=True)
    first = next(pieces)
    model.generate("something else", max_new_tokens=3)
    model.session.prefill(text_ids(model.config, 9))
    assert first + "".join(pieces) == undisturbed


def test_an_answer_leaves_the_callers_session_alone(model: TroL) -> None:
    session = model.session
    ids = text_ids(model.config, 9)
    session.prefill(ids)
    expected = session.decode(np.array([5]))
    session.prefill(ids)
    model.generate("hello", max_new_tokens=3)
    np.testing.assert_array_equal(session.decode(np.array([5])), expected)


def test_special_pieces_typed_by_a_user_are_text(model: TroL) -> None:
    mark = {"internlm2": "[UNUSED_TOKEN_145]", "phi3": "<|end|>"}[model.config.arch]
    tokenizer = answerer_of(model)._tokenizer
    mark_id = tokenizer._tokenizer.token_to_id(mark)
    plain, typed = (tokenizer.encode_prompt(text, [], 16)[0].tolist() for text in ("stop", f"stop {mark} </s> now"))
    assert typed.count(mark_id) == plain.count(mark_id)
    assert typed.count(2) == plain.count(2)
    made = model.start(f"stop {mark} </s> now", max_new_tokens=1)
    assert made.prompt_tokens == len(typed)


def test_a_picture_tag_without_pictures_is_text(model: TroL) -> None:
    assert model.start("what does <image> mean?", max_new_tokens=1).image_tokens == 0


def test_pictures_keep_the_order_of_the_prompt(model: TroL) -> None:
    a, b = picture(30, 20), picture(20, 30)
    assert answer_and_ids(model, "compare", [a, b]) != answer_and_ids(model, "compare", [b, a])


@pytest.mark.parametrize("prompt", [5, None, b"hello", ["hello"]])
def test_a_prompt_is_text(model: TroL, prompt: Any) -> None:
    for call in (model.generate, model.start):
        with pytest.raises(UsageError) as caught:
            call(prompt)
        assert str(caught.value) == f"the prompt is a {type(prompt).__name__}, expected text"


@pytest.mark.parametrize("config", [{"max_new_tokens": 3}, "greedy", 5, GenerationConfig])
def test_a_config_is_a_generation_config(model: TroL, config: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: model.generate("x", config=config),
        lambda: model.start("x", config=config),
        lambda: model.chat(config=config),
        lambda: model.generate_ids(text_ids(model.config, 4), config=config),
        lambda: model.complete(text_ids(model.config, 4), config=config),
    ]
    for call in calls:
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value) == f"config is a {type(config).__name__}, expected a GenerationConfig"


# --- pictures


def test_a_picture_may_come_as_path_bytes_stream_or_image(model: TroL, tmp_path: Path) -> None:
    file = picture_file(tmp_path)
    sources = [file, str(file), file.read_bytes(), io.BytesIO(file.read_bytes()), Image.open(file)]
    answers = [answer_and_ids(model, QUESTION, [source]) for source in sources]
    assert answers == [answers[0]] * len(answers)
    for source in (file, file.read_bytes(), Image.open(file)):
        np.testing.assert_array_equal(model.preprocess([source]), model.preprocess([picture(40, 50)]))


@pytest.mark.parametrize(
    "images",
    ["x.png", b"\x89PNG", Path("x.png"), io.BytesIO(b"\x89PNG"), Image.new("RGB", (9, 9)), None],
    ids=lambda images: type(images).__name__,
)
@pytest.mark.parametrize("method", ["generate", "start", "preprocess", "crops_per_image"])
def test_one_picture_must_come_in_a_list_too(model: TroL, method: str, images: Any) -> None:
    question = ["x"] if method in ("generate", "start") else []
    with pytest.raises(UsageError) as caught:
        getattr(model, method)(*question, images)
    assert str(caught.value) == (f"images is a {type(images).__name__}, expected a list of pictures: images=[...]")


def test_exif_orientation_is_ignored_unless_asked_for(model: TroL, tmp_path: Path) -> None:
    upright, file = gradient(40, 20), tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 8  # the camera was turned: rotate by 90 degrees to see it upright
    upright.save(file, exif=exif)
    assert answer_and_ids(model, QUESTION, [file]) == answer_and_ids(model, QUESTION, [upright])
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    assert answer_and_ids(model, QUESTION, [file], exif=True) == answer_and_ids(model, QUESTION, [turned])
    assert answer_and_ids(model, QUESTION, [turned]) != answer_and_ids(model, QUESTION, [upright])


# --- ids


def test_generate_ids_stops_after_eos_and_includes_it(model: TroL) -> None:
    ids = text_ids(model.config, 9)
    free = model.generate_ids(ids, max_new_tokens=10, eos_token_id=[])
    assert free.shape == (1, 10)
    stop = int(free[0, 4])
    first = free[0].tolist().index(stop) + 1
    np.testing.assert_array_equal(model.generate_ids(ids, max_new_tokens=10, eos_token_id=stop), free[:, :first])
    np.testing.assert_array_equal(model.generate_ids(ids, max_new_tokens=10, eos_token_id=[999, stop]), free[:, :first])


@pytest.mark.parametrize(
    ("eos_token_id", "found"),
    [
        ([[1, 2], [3]], "[[1, 2], [3]]"),
        ([1, None], "[1, None]"),
        (1.0, "1.0"),
        ([1.0], "[1.0]"),
        ("12", "'12'"),
        (True, "True"),
        (np.array(5), "array(5)"),
        (np.array([[1, 2], [3, 4]]), "array([[1, 2], [3, 4]])"),
    ],
    ids=str,
)
def test_what_ends_a_row_is_a_token_id_or_several(model: TroL, eos_token_id: Any, found: str) -> None:
    with pytest.raises(UsageError) as caught:
        model.generate_ids(text_ids(model.config, 4), eos_token_id=eos_token_id)
    vocabulary = model.config.decoder.vocab_size
    assert str(caught.value) == (f"eos_token_id is {found}, expected a token id or a list of fewer than {vocabulary}")


def test_not_every_token_can_end_a_row(model: TroL) -> None:
    """A search must have something to go on with."""
    every = range(model.config.decoder.vocab_size)
    with pytest.raises(UsageError, match=r"^eos_token_id is range\(0, \d+\), expected a token id or a list of fewer "):
        model.generate_ids(text_ids(model.config, 4), eos_token_id=every)
    for ids in (np.int64(7), np.array([7, 8]), {7}, (-1, 10**9)):  # what never comes ends nothing
        assert model.generate_ids(text_ids(model.config, 4), eos_token_id=ids, max_new_tokens=2).size  # type: ignore[arg-type]


def test_generate_ids_pads_rows_that_ended_before_others(model: TroL) -> None:
    ids = np.concatenate([text_ids(model.config, 9, seed) for seed in range(2)])
    free = model.generate_ids(ids, max_new_tokens=6, eos_token_id=[])
    stop = int(free[0, 1])
    assert stop not in free[1]
    found = model.generate_ids(ids, max_new_tokens=6, eos_token_id=stop)
    pad = model.config.pad_token_id
    ended = free[0].tolist().index(stop)
    assert found[0].tolist() == [*free[0, : ended + 1].tolist(), *[pad] * (5 - ended)]
    assert found[1].tolist() == free[1].tolist()


def test_generate_ids_takes_a_mask_and_embeddings(model: TroL) -> None:
    pixels = model.preprocess([picture(20, 20)])
    embeds = model.session.encode(pixels)
    ids = prompt_ids(model.config, [3, 3], [len(pixels)])
    alone = model.generate_ids(ids, embeds, max_new_tokens=5)
    padded, mask = np.pad(ids, ((0, 0), (7, 0))), np.pad(np.ones_like(ids), ((0, 0), (7, 0)))
    np.testing.assert_array_equal(model.generate_ids(padded, embeds, mask, max_new_tokens=5), alone)


def test_new_ids_are_clipped_to_the_room_left(model: TroL) -> None:
    ids = text_ids(model.config, MICRO_MAX_SEQ - 7)
    with pytest.warns(UserWarning, match="max_new_tokens") as caught:
        new_ids = model.generate_ids(ids, max_new_tokens=1000, eos_token_id=[])
    assert new_ids.shape == (1, 7)
    assert [str(warning.message) for warning in caught] == [
        "max_new_tokens is clipped from 1000 to 7: the engine holds 640 tokens, prompt included"
    ]
    assert caught[0].filename == __file__


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_clipped_to_the_room_left(model: TroL, stream: Any) -> None:
    room = MICRO_MAX_SEQ - model.start("x").prompt_tokens
    with pytest.warns(UserWarning, match="max_new_tokens") as caught:
        model.generate("x", max_new_tokens=room + 1, stream=stream)
    assert [str(warning.message) for warning in caught] == [
        f"max_new_tokens is clipped from {room + 1} to {room}: the engine holds 640 tokens, prompt included"
    ]
    assert caught[0].filename == __file__


def test_start_says_what_it_clipped_to_and_does_not_warn(model: TroL) -> None:
    made = model.start("x", max_new_tokens=1000)
    assert made.max_new_tokens == MICRO_MAX_SEQ - made.prompt_tokens


def test_what_fits_and_what_nobody_asked_for_does_not_warn(model: TroL) -> None:
    """A warning is an error in these tests."""
    ids = text_ids(model.config, MICRO_MAX_SEQ - 7)
    assert model.generate_ids(ids, max_new_tokens=7, eos_token_id=[]).shape == (1, 7)
    assert model.generate_ids(ids, eos_token_id=[]).shape == (1, 7)


def test_the_default_is_256_new_tokens(model: TroL) -> None:
    assert DEFAULT_MAX_NEW_TOKENS == 256
    assert model.start("x").max_new_tokens == 256


@pytest.mark.parametrize("padding", [0, 5])
def test_a_prompt_that_fills_the_engine_is_refused_before_it_is_run(
    model: TroL, monkeypatch: pytest.MonkeyPatch, padding: int
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("prefill runs")

    monkeypatch.setattr(model._backend, "prefill", refuse)
    ids = text_ids(model.config, MICRO_MAX_SEQ)
    padded, mask = np.pad(ids, ((0, 0), (padding, 0))), np.pad(np.ones_like(ids), ((0, 0), (padding, 0)))
    with pytest.raises(LimitError) as caught:
        model.generate_ids(padded, None, mask)
    assert str(caught.value) == (
        "the prompt has 640 tokens and fills the engine; shorten it or rebuild the engine with --max-seq 896"
    )


def test_a_question_too_long_says_how_many_tokens_and_what_to_rebuild_with(model: TroL) -> None:
    tokenizer = answerer_of(model)._tokenizer
    question = "z! " * 300
    pictures = [picture(20, 20)]
    tokens = tokenizer.encode_prompt(question, model.crops_per_image(pictures), 16).shape[1]
    assert tokens > MICRO_MAX_SEQ
    with pytest.raises(LimitError) as caught:
        model.generate(question, pictures)
    assert str(caught.value) == (
        f"the prompt has {tokens} tokens (16 of pictures), the engine holds 640 with the answer; shorten it or rebuild "
        f"the engine with --max-seq {tokens + 256}"
    )


@pytest.mark.parametrize("budget", [0, -1, 2.5, "3", True])
def test_a_budget_that_is_no_number_of_tokens_is_refused(model: TroL, budget: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: model.generate("x", max_new_tokens=budget),
        lambda: model.start("x", max_new_tokens=budget),
        lambda: model.generate_ids(text_ids(model.config, 4), max_new_tokens=budget),
    ]
    for call in calls:
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value) == f"max_new_tokens is {budget!r}, expected a whole number, 1 or more"


def test_a_budget_may_be_a_number_of_numpy(model: TroL) -> None:
    made = model.start("x", max_new_tokens=np.int64(3))
    assert (made.max_new_tokens, type(made.max_new_tokens)) == (3, int)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "a"])
def test_threads_that_are_no_number_of_cores_are_refused(model: TroL, micro_engine: Any, threads: Any) -> None:
    with pytest.raises(UsageError) as caught:
        TroL.load(micro_engine(model.config.arch), threads=threads)
    assert str(caught.value) == f"threads is {threads!r}, expected a whole number, 1 or more"


# --- files


@pytest.mark.parametrize(
    "place", ["renamed.bin", "with spaces/my engine.plan", "модель 模型/двигатель €.plan", "a'b\"c&d/x;y.plan"]
)
def test_an_engine_runs_under_any_name_in_any_folder(
    model: TroL, micro_engine: Any, tmp_path: Path, place: str
) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    shutil.copy(micro_engine(model.config.arch), path)
    ids = text_ids(model.config, 9)
    moved = TroL.load(path)
    np.testing.assert_array_equal(moved.session.prefill(ids), model.session.prefill(ids))
    assert moved.session.encode(moved.preprocess([picture(9, 9)])).shape[2] == 32


def test_an_engine_runs_through_a_link_and_a_relative_path(
    model: TroL, micro_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link.plan").symlink_to(micro_engine(model.config.arch))
    monkeypatch.chdir(tmp_path)
    ids = text_ids(model.config, 9)
    np.testing.assert_array_equal(TroL.load("link.plan").session.prefill(ids), model.session.prefill(ids))


def test_a_missing_engine_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(EngineFileError, match=r"no\.plan: no such file; make one with: trol-export --size"):
        TroL.load(tmp_path / "no.plan")


def test_an_engine_without_tokenizer_takes_ids_and_refuses_text(tiny_engine: Any) -> None:
    model = TroL.load(tiny_engine("internlm2"))
    assert model.generate_ids(text_ids(model.config, 9), max_new_tokens=2, eos_token_id=[]).shape == (1, 2)
    with pytest.raises(UsageError) as caught:
        model.generate("hello")
    assert str(caught.value) == "the engine has no tokenizer; use generate_ids, or export without --no-tokenizer"


def test_an_unknown_backend_is_refused(model: TroL, micro_engine: Any) -> None:
    with pytest.raises(UsageError) as caught:
        TroL.load(micro_engine(model.config.arch), backend="gpu")
    assert str(caught.value) == "unknown backend 'gpu'; this version runs engines on: cpu, cuda, tensorrt-rtx, tensorrt"


def test_too_little_memory_is_said_before_anything_is_loaded(
    micro_engine: Any, arch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even onnxruntime is not imported yet."""
    copied, mapped = micro_engine(arch, "fp16"), micro_engine(arch, "fp32")
    monkeypatch.setattr(memory_need, "memory_available_bytes", lambda: 1000)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    need = r"^the engine needs \d+ KiB of mapped weights \+ \d+ KiB as fp32 copies \+ .*; free memory"
    with pytest.raises(LimitError, match=need):
        TroL.load(copied)
    with pytest.raises(MissingExtraError):
        TroL.load(mapped)  # needs no memory of its own


def test_an_fp16_engine_computes_in_fp32_from_its_rounded_weights(model: TroL, micro_engine: Any) -> None:
    half = TroL.load(micro_engine(model.config.arch, "fp16"))
    ids = text_ids(model.config, 30)
    found, expected = half.session.prefill(ids), model.session.prefill(ids)
    assert found.dtype == np.float32
    # The fp16 budget of INTERFACES; a wrong rounding of one weight is far outside.
    assert_close(found, expected, budget=0.01)
    assert half.session.cache_bytes == model.session.cache_bytes


# --- imports


def modules_after(program: str) -> set[str]:
    listing = f"{program}\nimport sys; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in process.stdout.split()}


def test_importing_the_package_needs_nothing() -> None:
    assert not {"numpy", "PIL", "tokenizers", "onnxruntime", "torch"} & modules_after("import trol_runtime")


def test_the_runtime_never_imports_the_exporter(micro_engine: Any, arch: Any) -> None:
    loaded = modules_after(
        f"from trol_runtime import TroL; TroL.load({os.fspath(micro_engine(arch))!r}).generate('hi')"
    )
    assert {"numpy", "PIL", "tokenizers", "onnxruntime"} <= loaded
    assert not {"torch", "onnx", "onnx_ir", "safetensors", "trol_export", "trol_graphs", "trol_engines"} & loaded


@pytest.mark.parametrize("session", ["x", 3], ids=["text", "number"])
def test_what_is_no_session_is_refused(model: TroL, session: Any) -> None:
    with pytest.raises(UsageError) as refused:
        model.generate_ids(np.array([[5, 6]]), session=session)
    assert str(refused.value) == "session is none of this engine; make it with this model's new_session()"


def test_a_session_of_another_engine_is_refused_even_where_the_engines_look_alike(
    model: TroL, micro_engine: Callable[..., Path], arch: str
) -> None:
    other = TroL.load(micro_engine(arch))
    with pytest.raises(UsageError, match="session is none of this engine; make it with this model's new_session"):
        model.generate_ids(np.array([[5, 6]]), session=other.new_session())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "the engine file is a NoneType, expected its path"),
        ("a\0b", "the path a\\x00b holds a zero byte; expected the path of an engine file"),
    ],
)
def test_what_is_no_path_is_refused(path: Any, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        TroL.load(path)
    assert str(refused.value) == message


def test_rows_of_different_lengths_are_refused(model: TroL) -> None:
    ragged: Any = [[1, 2], [3]]
    for name, call in {
        "input_ids": lambda: model.session.prefill(ragged),
        "attention_mask": lambda: model.session.prefill(np.array([[1, 2]]), None, ragged),
        "image_embeds": lambda: model.session.prefill(np.array([[1, 2]]), ragged),
        "pixel_values": lambda: model.session.encode(ragged),
    }.items():
        with pytest.raises(UsageError) as refused:
            call()
        assert str(refused.value) == f"{name} has rows of different lengths; expected one array, padded on the left"
