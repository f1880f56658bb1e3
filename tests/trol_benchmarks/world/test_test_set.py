"""The test set: the released one keeps its promises, a file is what was written, and damage is refused in one line."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from small_question_set import small_question_set
from trol_benchmarks.world import words, write_test_set
from trol_benchmarks.world.picture import draw
from trol_benchmarks.world.questions import FAMILIES, FORMS, READ
from trol_benchmarks.world.sampling import sample_scene
from trol_benchmarks.world.scoring import is_right
from trol_benchmarks.world.test_set import RELEASED, AskedQuestion, QuestionSet, read_question_set, write_question_set
from trol_benchmarks.world.write_test_set import draw_question_set, is_seen, main
from trol_runtime.command import run_command
from trol_runtime.errors import TrolError, UsageError


@pytest.fixture(scope="module")
def released() -> QuestionSet:
    return read_question_set()


@pytest.fixture(scope="module")
def drawn() -> QuestionSet:
    return draw_question_set(seed=7)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "set.zip"
    write_question_set(path, small_question_set())
    return path


def rewritten(path: Path, change: Callable[[dict[str, bytes]], Any]) -> Path:
    """The file with other entries, every CRC right."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(TrolError) as error:
        read_question_set(path)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


def read_or_refusal(path: Path) -> object:
    try:
        return read_question_set(path).questions
    except TrolError as error:
        return str(error)


# --- what a set holds


@pytest.mark.parametrize("which", ["released", "drawn"])
def test_a_set_has_1000_questions_and_as_many_of_every_family(which: str, request: pytest.FixtureRequest) -> None:
    question_set: QuestionSet = request.getfixturevalue(which)
    families = Counter(asked.question.family for asked in question_set.questions)
    assert families.total() == 1000
    assert families == {family: 112 if family == "description" else 111 for family in FAMILIES}


@pytest.mark.parametrize("which", ["released", "drawn"])
def test_half_of_what_is_to_be_read_training_never_shows(which: str, request: pytest.FixtureRequest) -> None:
    question_set: QuestionSet = request.getfixturevalue(which)
    seen = Counter((asked.question.family, asked.seen) for asked in question_set.questions)
    assert [(seen[family, True], seen[family, False]) for family in READ] == [(56, 55), (56, 55)]
    assert all(seen[family, False] > 20 for family in ("colour", "shape", "count", "position", "existence"))


@pytest.mark.parametrize("which", ["released", "drawn"])
def test_no_two_questions_of_a_family_are_about_one_picture(which: str, request: pytest.FixtureRequest) -> None:
    question_set: QuestionSet = request.getfixturevalue(which)
    asked_of = Counter((asked.picture, asked.question.family) for asked in question_set.questions)
    assert set(asked_of.values()) == {1}
    assert len({asked.id for asked in question_set.questions}) == 1000


@pytest.mark.parametrize("which", ["released", "drawn"])
def test_questions_about_one_picture_stand_together_and_every_picture_is_asked_about(
    which: str, request: pytest.FixtureRequest
) -> None:
    question_set: QuestionSet = request.getfixturevalue(which)
    pictures = [asked.picture for asked in question_set.questions]
    changes = sum(before != behind for before, behind in pairwise(pictures))
    assert changes + 1 == len(set(pictures)) == len(question_set.pictures)


def test_all_forms_are_mixed_and_the_first_tenth_is_of_all_families(released: QuestionSet) -> None:
    forms = Counter(asked.question.form for asked in released.questions)
    assert all(forms[form] > 200 for form in FORMS)
    assert {asked.question.family for asked in released.questions[:100]} == set(FAMILIES)


def test_the_answer_due_is_right_and_another_is_not(released: QuestionSet) -> None:
    assert all(is_right(asked.question, asked.question.answer) for asked in released.questions)
    assert not any(is_right(asked.question, "I cannot tell") for asked in released.questions)


def test_the_released_pictures_are_small_and_can_be_decoded(released: QuestionSet) -> None:
    assert RELEASED.stat().st_size <= 2_500_000
    for data in released.pictures.values():
        with Image.open(BytesIO(data)) as picture:
            assert picture.convert("RGB").width == picture.height >= 100


def test_a_version_has_one_content_for_good(released: QuestionSet) -> None:
    """Records of answers hold as long as this does: whoever draws the set anew gives it another version."""
    assert (released.version, released.sha256) == (
        1,
        "cea3a7d12206df9aab4150084e82be04de7aa5969ad1436a0519da6f2201a82d",
    )
    assert RELEASED.name == f"test_set_{released.version}.zip"


def test_no_option_is_a_word_that_is_unfit_to_be_read(released: QuestionSet) -> None:
    assert not {option for asked in released.questions for option in asked.question.options} & words.UNFIT


def test_whether_training_may_have_shown_it_is_asked_of_what_the_question_is_about() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = sample_scene(rng, "train")
        assert all(is_seen(family, scene) for family in FAMILIES)
    kept = [scene for scene in (sample_scene(rng, "test", "objects") for _ in range(50)) if not is_seen("shape", scene)]
    assert kept
    for scene in kept:
        assert is_seen("word", scene)
        assert is_seen("number", scene)
        assert not is_seen("description", scene)
        assert not is_seen("existence", replace(scene, prints=()))


# --- drawing


def test_a_seed_gives_one_set(drawn: QuestionSet) -> None:
    assert draw_question_set(seed=7) == drawn
    assert draw_question_set(seed=8).sha256 != drawn.sha256


def test_a_shipped_picture_is_the_drawn_one_where_the_scene_asks_for_a_jpeg() -> None:
    from trol_benchmarks.world.write_test_set import _encoded

    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng, "test") for _ in range(20)]
    compressed = [scene for scene in scenes if scene.look.quality is not None]
    assert compressed
    for scene in compressed:
        with Image.open(BytesIO(_encoded(scene))) as shipped:
            assert np.array_equal(np.asarray(shipped.convert("RGB")), np.asarray(draw(scene)))


def test_the_writer_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "set.zip"
    assert run_command("write_test_set", main, [str(path), "--seed", "7"]) == 0
    question_set = read_question_set(path)
    assert question_set.seed == 7
    assert capsys.readouterr().err == (
        f"{path}: 1,000 questions about {len(question_set.pictures)} pictures, SHA-256 {question_set.sha256}\n"
    )


def test_a_file_that_is_there_is_refused_before_a_picture_is_drawn(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(write_test_set, "draw_question_set", lambda _: pytest.fail("drew"))
    assert run_command("write_test_set", main, [str(written)]) == 2
    assert capsys.readouterr().err == f"write_test_set: {written}: already exists; choose another name with FILE\n"


def test_a_seed_below_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--seed is -1, expected 0 or more$"):
        main([str(tmp_path / "set.zip"), "--seed", "-1"])


# --- the file


def test_what_is_read_is_what_was_written(written: Path) -> None:
    assert read_question_set(written) == small_question_set()


def test_equal_sets_are_equal_bytes_and_a_file_is_never_replaced(written: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.zip"
    write_question_set(again, small_question_set())
    assert again.read_bytes() == written.read_bytes()
    with pytest.raises(UsageError, match="already exists"):
        write_question_set(again, small_question_set(seed=5))
    assert again.read_bytes() == written.read_bytes()


def test_the_hash_is_of_what_sha256sum_prints(written: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(written) as file:
        file.extractall(tmp_path / "set")
    listed = "".join(
        f"{hashlib.sha256((tmp_path / 'set' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("pictures/0.png", "pictures/1.png", "questions.jsonl")
    )
    assert hashlib.sha256(listed.encode()).hexdigest() == read_question_set(written).sha256
    assert json.loads((tmp_path / "set" / "set.json").read_text())["sha256"] == read_question_set(written).sha256


def test_the_hash_changes_with_any_question_and_any_picture() -> None:
    question_set = small_question_set()
    first, *others = question_set.questions
    edited = (replace(first, question=replace(first.question, answer="green")), *others)
    assert replace(question_set, questions=edited).sha256 != question_set.sha256
    assert (
        replace(question_set, pictures={**question_set.pictures, "pictures/0.png": b""}).sha256 != question_set.sha256
    )


def test_an_edited_question_is_refused(written: Path) -> None:
    rewritten(written, lambda entries: entries.update({"questions.jsonl": b'{"id": 1}\n'}))
    assert re.fullmatch(
        r"damaged or edited: the SHA-256 of its content is [0-9a-f]{16}\.\.\., expected "
        + small_question_set().sha256[:16]
        + r"\.\.\.; give an undamaged test set, or leave out --set",
        refusal(written),
    )


def test_an_added_or_missing_picture_is_refused(written: Path) -> None:
    rewritten(written, lambda entries: entries.update({"pictures/2.png": b"x"}))
    assert refusal(written).startswith("damaged or edited: ")
    rewritten(written, lambda entries: [entries.pop("pictures/2.png"), entries.pop("pictures/1.png")])
    assert refusal(written).startswith("damaged or edited: ")


def test_a_set_of_another_version_is_refused(written: Path) -> None:
    def newer(entries: dict[str, bytes]) -> None:
        entries["set.json"] = json.dumps(json.loads(entries["set.json"]) | {"version": 2}).encode()

    assert refusal(rewritten(written, newer)) == (
        "a test set of version 2, this release knows version 1; leave out --set, or install the release that it "
        "belongs to"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda entries: entries.clear(), "it lacks 'set.json'"),
        (lambda entries: entries.update({"set.json": b"{}"}), "it lacks 'version'"),
        (lambda entries: entries.update({"set.json": b"[1]"}), "list indices must be integers or slices, not str"),
        (lambda entries: entries.update({"set.json": b"\xff"}), "'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_zip_file_of_something_else_is_refused(
    written: Path, change: Callable[[dict[str, bytes]], Any], reason: str
) -> None:
    message = refusal(rewritten(written, change))
    assert message.startswith(f"no test set, or a damaged one ({reason}")
    assert message.endswith("; give an undamaged test set, or leave out --set")


def with_questions(path: Path, *questions: AskedQuestion) -> Path:
    """A file of these questions, every hash right."""
    path.unlink()
    write_question_set(path, replace(small_question_set(), questions=questions))
    return path


def test_a_set_that_cannot_be_asked_or_counted_is_refused(written: Path) -> None:
    first, second, *_ = small_question_set().questions
    remedy = "give an undamaged test set, or leave out --set"
    assert refusal(with_questions(written)) == f"no test set, or a damaged one (it has no questions); {remedy}"
    assert refusal(with_questions(written, first, replace(second, id=first.id))) == (
        f"no test set, or a damaged one (the id 0-colour occurs twice); {remedy}"
    )
    other = replace(first, question=replace(first.question, family="smell"))
    assert "there is no family of questions 'smell' in the drawn world" in refusal(with_questions(written, other))
    other = replace(first, question=replace(first.question, form="sung"))
    assert "there is no form of questions 'sung' in the drawn world" in refusal(with_questions(written, other))
    assert "it lacks 'pictures/9.png'" in refusal(with_questions(written, replace(first, picture="pictures/9.png")))


def test_a_set_whose_hash_would_not_be_that_of_what_is_read_is_refused(written: Path) -> None:
    def spaced(entries: dict[str, bytes]) -> None:
        entries["questions.jsonl"] = entries["questions.jsonl"].replace(b'": "', b'":  "')
        listed = sorted((name, data) for name, data in entries.items() if name != "set.json")
        lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in listed)
        about = json.loads(entries["set.json"]) | {"sha256": hashlib.sha256(lines.encode()).hexdigest()}
        entries["set.json"] = json.dumps(about).encode()

    assert "questions.jsonl is not in the form that write_test_set gives it" in refusal(rewritten(written, spaced))


def test_a_file_cut_short_anywhere_is_refused(written: Path) -> None:
    whole = written.read_bytes()
    for length in range(0, len(whole), 97):
        written.write_bytes(whole[:length])
        assert refusal(written) == (
            "no test set, or a damaged one (File is not a zip file); give an undamaged test set, or leave out --set"
        )


def test_a_flipped_byte_is_refused_or_changes_nothing(written: Path) -> None:
    whole = written.read_bytes()
    for place in range(0, len(whole), 7):
        written.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        found = read_or_refusal(written)
        assert found == small_question_set().questions or (isinstance(found, str) and "\n" not in found)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_an_archive_with_compressed_entries_is_refused(written: Path, tmp_path: Path, method: int) -> None:
    path = tmp_path / "compressed.zip"
    with zipfile.ZipFile(written) as stored, zipfile.ZipFile(path, "w", method) as file:
        for name in stored.namelist():
            file.writestr(name, stored.read(name))
    assert refusal(path).startswith("no test set, or a damaged one (compressed entries); ")


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    remedy = "give an undamaged test set, or leave out --set"
    assert refusal(tmp_path / "none.zip") == f"cannot be read (No such file or directory); {remedy}"
    assert refusal(tmp_path) == f"cannot be read (Is a directory); {remedy}"


def test_an_archive_that_unpacks_to_far_more_than_a_set_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("set.json", bytes(300 << 20))
    assert refusal(path).startswith("no test set, or a damaged one (more than 268,435,456 bytes)")
