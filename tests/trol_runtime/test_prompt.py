"""The official prompts as segments: what is a mark, what is text, where pictures go."""

from __future__ import annotations

import itertools
import re
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trol_runtime.dataclass_json import dataclass_from_json
from trol_runtime.errors import EngineFileError, UsageError
from trol_runtime.prompt import Arch, PromptTemplate, Segment, official_template

ARCHS: list[Arch] = ["internlm2", "phi3"]

# Datasets whose official prompt asks something after the question; the suffix is the benchmarks' business.
OFFICIAL_SUFFIX = {
    "mmmu_choice": "\nAnswer with the option's letter from the given choices directly.",
    "mmmu_open": "\nAnswer the question using a single word or phrase.",
    "hallusionbench": "\nPlease answer yes or no.",
}


def runnable(golden_prompts: dict[str, Any], arch: Arch) -> dict[str, dict[str, Any]]:
    return {name: case for name, case in golden_prompts[arch]["prompts"].items() if case["generate"] == "ok"}


def rendered(arch: Arch, question: str, image_tokens: list[int]) -> str:
    """The prompt as one string, the form in which the official code builds it."""
    return "".join(s.text * s.repeat for s in official_template(arch).segments(question, image_tokens))


def expanded(prompt: str) -> str:
    """prompts.json writes a run of image tokens as `{<image> x 1225}`."""
    return re.sub(r"\{(\S+) x (\d+)\}", lambda run: run[1] * int(run[2]), prompt)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_official_prompt_that_runs_is_rendered_alike(golden_prompts: dict[str, Any], arch: Arch) -> None:
    cases = runnable(golden_prompts, arch)
    prompts = {
        name: rendered(
            arch,
            case["question_in"] + OFFICIAL_SUFFIX.get(name, ""),
            [case["image_tokens"]] if case["image_tokens"] else [],
        )
        for name, case in cases.items()
    }
    assert prompts == {name: expanded(case["prompt"]) for name, case in cases.items()}
    assert len(prompts) == 8


@pytest.mark.parametrize("arch", ARCHS)
def test_the_turn_end_is_the_mark_at_which_the_official_filter_cuts(golden_prompts: dict[str, Any], arch: Arch) -> None:
    assert official_template(arch).turn_end == golden_prompts[arch]["prompt_rule"]["test_end"]


def test_internlm2_segments_alternate_between_marks_and_text() -> None:
    segments = official_template("internlm2").segments("Why?", [1225])
    assert [segment for segment in segments if segment.is_mark] == [
        Segment("<s>", is_mark=True),
        Segment("[UNUSED_TOKEN_146]", is_mark=True),
        Segment("[UNUSED_TOKEN_145]", is_mark=True),
        Segment("[UNUSED_TOKEN_146]", is_mark=True),
        Segment("<image>", is_mark=True, repeat=1225),
        Segment("[UNUSED_TOKEN_145]", is_mark=True),
        Segment("[UNUSED_TOKEN_146]", is_mark=True),
    ]
    assert segments[5:9] == [
        Segment("[UNUSED_TOKEN_146]", is_mark=True),
        Segment("user\n"),
        Segment("<image>", is_mark=True, repeat=1225),
        Segment("\nWhy?"),
    ]


def test_a_phi3_picture_stands_between_its_own_marks() -> None:
    assert official_template("phi3").segments("Why?", [768])[7:12] == [
        Segment("<img>", is_mark=True),
        Segment("<IMG_CONTEXT>", is_mark=True, repeat=768),
        Segment("</img>", is_mark=True),
        Segment("\nWhy?"),
        Segment("<|end|>", is_mark=True),
    ]


@pytest.mark.parametrize("arch", ARCHS)
def test_pictures_without_a_tag_go_in_front_each_on_its_line(arch: Arch) -> None:
    assert rendered(arch, "Compare.", [2, 3]) == rendered(arch, "<image>\n<image>\nCompare.", [2, 3])


def test_pictures_with_tags_go_where_the_tags_are_in_order() -> None:
    prompt = rendered("phi3", "A <image> or B <image>?", [1, 2])
    assert "A <img><IMG_CONTEXT></img> or B <img><IMG_CONTEXT><IMG_CONTEXT></img>?<|end|>" in prompt


@pytest.mark.parametrize("arch", ARCHS)
def test_a_tag_without_pictures_is_text(arch: Arch) -> None:
    segments = official_template(arch).segments("What does <image> mean?", [])
    assert any("What does <image> mean?" in segment.text for segment in segments if not segment.is_mark)
    assert not any(segment.is_mark and segment.text == "<image>" for segment in segments)


@pytest.mark.parametrize(
    ("question", "pictures", "found"),
    [
        pytest.param("<image> and <image>", 1, "2 <image> for 1 picture(s)", id="more tags than pictures"),
        pytest.param("only <image>", 3, "1 <image> for 3 picture(s)", id="fewer tags than pictures"),
    ],
)
def test_a_wrong_number_of_tags_is_refused(question: str, pictures: int, found: str) -> None:
    with pytest.raises(UsageError) as error:
        official_template("internlm2").segments(question, [4] * pictures)
    assert str(error.value) == (
        f"the prompt holds {found}: write one <image> per picture, or none to put all pictures in front"
    )


@pytest.mark.parametrize("arch", ARCHS)
@given(question=st.text() | st.sampled_from(["<s>", "</s>", "[UNUSED_TOKEN_145]", "<|end|>", "<IMG_CONTEXT>", "<img>"]))
def test_what_a_user_types_adds_no_mark(arch: Arch, question: str) -> None:
    def marks(text: str) -> list[str]:
        return [segment.text for segment in official_template(arch).segments(text, []) if segment.is_mark]

    assert marks(question) == marks("Why?")


@pytest.mark.parametrize("arch", ARCHS)
@given(question=st.text(), pictures=st.lists(st.integers(1, 9), max_size=3))
def test_no_segment_is_empty_and_no_two_texts_are_neighbours(arch: Arch, question: str, pictures: list[int]) -> None:
    segments = official_template(arch).segments(question.replace("<image>", ""), pictures)
    assert all(segment.text for segment in segments)
    assert all(a.is_mark or b.is_mark for a, b in itertools.pairwise(segments))
    assert sum(segment.repeat for segment in segments if segment.repeat > 1) == sum(n for n in pictures if n > 1)


@pytest.mark.parametrize(
    ("arch", "begins"),
    [
        pytest.param("internlm2", "[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]user\n", id="internlm2"),
        pytest.param("phi3", "<|end|>\n<|user|>\n", id="phi3"),
    ],
)
def test_a_further_turn_ends_the_answer_and_then_goes_on_like_the_first(arch: Arch, begins: str) -> None:
    """Ours: the official code has one turn. Behind its beginning everything is the official turn's."""
    template = official_template(arch)
    further = template.segments("A <image> or B <image>?", [1, 2], follows_answer=True)
    first = rendered(arch, "A <image> or B <image>?", [1, 2]).removeprefix(template.before_question)
    assert "".join(s.text * s.repeat for s in further) == begins + first
    assert further[0] == Segment(template.turn_end, is_mark=True)
    assert template.before_question.endswith(begins)  # as the first turn's own system text ends


@pytest.mark.parametrize("arch", ARCHS)
def test_a_further_turn_needs_no_piece_that_the_first_does_not(arch: Arch) -> None:
    template = official_template(arch)
    further = template.segments("Why?", [2], follows_answer=True)
    assert {segment.text for segment in further if segment.is_mark} <= set(template.control_pieces)
    assert not any(mark in segment.text for segment in further if not segment.is_mark for mark in template.marks)


def test_an_engine_from_before_there_were_further_turns_is_refused() -> None:
    stored = asdict(official_template("phi3")) | {"marks": ["<s>"]}  # JSON has lists
    del stored["next_turn"]
    with pytest.raises(EngineFileError, match=r"^key 'prompt\.next_turn' is missing$"):
        dataclass_from_json(PromptTemplate, stored, "prompt")


@pytest.mark.parametrize("arch", ARCHS)
def test_a_further_turn_refuses_a_wrong_number_of_tags_too(arch: Arch) -> None:
    with pytest.raises(UsageError, match=r"^the prompt holds 1 <image> for 2 picture\(s\): "):
        official_template(arch).segments("<image>?", [4, 4], follows_answer=True)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_control_pieces_are_all_that_the_vocabulary_must_hold(arch: Arch) -> None:
    template = official_template(arch)
    used = {segment.text for segment in template.segments("Why?", [2]) if segment.is_mark}
    assert set(template.control_pieces) == used | {template.turn_end}
    assert len(template.control_pieces) == len(set(template.control_pieces))
